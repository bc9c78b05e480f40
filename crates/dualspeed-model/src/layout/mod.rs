//! From text and images to sequences: a list of slots per sample, padded into a batch at the end.
//!
//! | module | concept |
//! |---|---|
//! | [`text`] | token ids and labels of a batch, and what can be wrong with them |
//! | [`place`] | where a visual token stands, and rotary positions of one or three axes |
//! | [`image`] | an image's tokens and newlines in the order in which they are read |
//! | [`slot`], [`sequence`] | slots (source, position, label), sample by sample |
//! | [`padded`] | sequences side by side in one batch |
//!
//! All of it is host arithmetic: nothing else in this crate knows about padding.

pub mod image;
pub mod padded;
pub mod place;
pub mod sequence;
pub mod slot;
pub mod text;

pub use image::{ImageSlots, ImageToken};
pub use padded::PaddedBatch;
pub use place::{Place, Position};
pub use sequence::{LayoutOptions, Positions, Sequence, lay_out};
pub use slot::{Slot, Source};
pub use text::{LayoutError, TextBatch};
