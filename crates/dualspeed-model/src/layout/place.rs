//! Where visual tokens stand, and the rotary positions that follow from it.

/// Where a visual token stands in its image, before pruning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The frame; 0 in a still image.
    pub time: usize,
    /// The tile, 0 being the whole image (LLaVA-NeXT's base tile).
    pub tile: usize,
    /// Row in the tile's grid.
    pub row: usize,
    /// Column in the tile's grid.
    pub column: usize,
}

impl Place {
    /// The place of token `index` of an image whose tiles are grids of `side` tokens a side, counted tile by tile, row by row.
    pub fn in_tiles(index: usize, side: usize) -> Self {
        let side = side.max(1);
        let (tile, index) = (index / (side * side), index % (side * side));
        Self { time: 0, tile, row: index / side, column: index % side }
    }
}

/// A rotary position: time, row and column. Decoders of one axis read the first; text has the same number on all three.
///
/// Source: Qwen2-VL's multimodal rotary embedding, arXiv 2409.12191, section 2.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position(pub [usize; 3]);

impl Position {
    /// The position of text: the same on every axis.
    pub fn text(position: usize) -> Self {
        Self([position; 3])
    }

    /// The position of the text after these: one more than the largest on any axis.
    pub fn after(positions: &[Self]) -> Option<Self> {
        let largest = positions.iter().flat_map(|position| position.0).max()?;
        Some(Self::text(largest + 1))
    }

    /// The position `by` further on every axis.
    pub fn advanced(self, by: usize) -> Self {
        Self(self.0.map(|axis| axis + by))
    }

    /// The position of a visual token of an image that begins at `start`.
    pub fn visual(start: usize, place: Place) -> Self {
        Self([start + place.time, start + place.row, start + place.column])
    }
}
