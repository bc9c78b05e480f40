//! Behaviour of the model crate on the ndarray backend.
#![cfg(feature = "ndarray")]

mod custom_parts;
mod decoder;
mod decoder_families;
mod decoder_files;
mod decoder_flags;
mod exported_parts;
mod fixtures;
mod freezing;
mod gradients;
mod layout;
mod parts;
mod positions;
mod projection;
mod pruners;
mod published;
mod siglip;
mod support;
mod tower;
mod towers;
mod trained_tower;
mod views;
