//! Behaviour of dualspeed-data, one module per concept.

mod images;
mod json;
mod pictures;
mod questions;
mod sampler;
mod scenes;
mod sources;
mod templates;
mod text;
