//! Pruners: the base, every method against a restatement in plain loops, what holds for all.

mod base;
mod cases;
mod layers;
mod properties;
mod published;
mod reference;
mod reference_merges;
mod tiles;
