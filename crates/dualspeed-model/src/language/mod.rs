//! The language model: one decoder, described by flags, and text generation with it.
//!
//! | module | concept |
//! |---|---|
//! | [`layer`] | the weights of a block, and how the block operation takes them |
//! | [`rotary`] | cosines and sines of positions of one or three axes |
//! | [`cache`] | keys and values of the positions seen so far |
//! | [`decoder`] | the forward |
//! | [`generate`] | one token after another |

pub mod cache;
pub mod decoder;
pub mod generate;
pub mod layer;
pub mod rotary;

pub use cache::KvCache;
pub use decoder::{Decoder, DecoderOptions};
pub use generate::{GenerateOptions, Generated};
