//! Behaviour of the model crate on the ndarray backend.
#![cfg(feature = "ndarray")]

mod decoder;
mod fixtures;
mod freezing;
mod gradients;
mod pruners;
mod published;
mod qwen2;
mod qwen2_files;
mod splice;
mod support;
mod tower;
mod towers;
mod views;
