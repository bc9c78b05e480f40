//! One position of a sequence: where it comes from, where it stands, what it is supervised with.

use super::place::Position;

/// Where the embedding of a position comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A token id of the vocabulary.
    Text(i64),
    /// A row of the batch's table of visual tokens.
    Visual(usize),
    /// The `image_newline` embedding, which ends a row of patches of an image of several tiles.
    Newline,
    /// A row of the mode isolator.
    Isolator(usize),
}

/// One position of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Where its embedding comes from.
    pub source: Source,
    /// Its rotary position.
    pub position: Position,
    /// The label of this position, [`IGNORE_INDEX`](dualspeed_data::IGNORE_INDEX) where there is none; the position before predicts it.
    pub label: i64,
    /// Index in `input_ids` of its token, or of its image's placeholder.
    pub index: usize,
}
