//! Keys and values of the positions that a decoder has seen.

use dualspeed_ops::{Backend, BlockCache};

use crate::layout::Position;

/// Keys and values of the positions seen so far, block by block.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    pub(super) blocks: Vec<BlockCache<B>>,
    seen: usize,
    /// Per block the rotary position of the next token; they differ where tokens were dropped on the
    /// way and the rest renumbered.
    pub(super) next: Vec<Position>,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache for a decoder of `layers` blocks.
    pub fn new(layers: usize) -> Self {
        let blocks = (0..layers).map(|_| BlockCache::new()).collect();
        Self { blocks, seen: 0, next: vec![Position::default(); layers] }
    }

    /// Positions that went into the decoder.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// Counts the positions of a forward.
    pub(super) fn saw(&mut self, positions: usize) {
        self.seen += positions;
    }
}
