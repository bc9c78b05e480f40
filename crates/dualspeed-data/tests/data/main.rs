//! Behaviour of dualspeed-data, one module per concept.

mod images;
mod json;
mod questions;
mod records;
mod sampler;
mod scenes;
mod sources;
mod templates;
mod text;
