//! Where the tokens of an image of several tiles stand (LLaVA-NeXT), pruned or not.
//!
//! The first tile is the whole image; the others are a grid over a canvas on which the image lies centred. Their tokens
//! are laid out in two dimensions, rows and columns that show only the canvas are cut off (`spatial_unpad`), and each
//! row ends with the `image_newline` embedding. The published code asserts the full grid after pruning; here the
//! kept tokens take the same way, so a model of this kind can be trained while pruned.
//!
//! Source: `pack_image_features` of LLaVA-NeXT in transformers; all counts are known on the host.

use std::ops::Range;

use dualspeed_ops::Backend;

use crate::config::NewlinePolicy;
use crate::pruner::KeptTokens;
use crate::splice::ImageRows;

/// How the tiles of one image lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileLayout {
    /// Patches along a side of a tile.
    pub side: usize,
    /// Tiles of the grid, down and across.
    pub grid: [usize; 2],
    /// Rows of patches of the whole grid that show the image.
    pub rows: Range<usize>,
    /// Columns of patches of the whole grid that show the image.
    pub columns: Range<usize>,
}

/// An entry of the sequence that an image becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The n-th of the kept tokens.
    Kept(usize),
    /// The newline embedding.
    Newline,
}

impl TileLayout {
    /// Tiles, the whole image included.
    pub fn tiles(&self) -> usize {
        1 + self.grid[0] * self.grid[1]
    }

    /// Tokens of a tile.
    pub fn tile_tokens(&self) -> usize {
        self.side * self.side
    }

    /// Whether the layout can be: the image lies within the grid.
    pub fn is_valid(&self) -> bool {
        let within = |range: &Range<usize>, tiles: usize| {
            range.start <= range.end && range.end <= tiles * self.side
        };
        self.side > 0 && within(&self.rows, self.grid[0]) && within(&self.columns, self.grid[1])
    }

    /// Tokens of the image without pruning, newlines included.
    pub fn full_length(&self) -> usize {
        self.tile_tokens() + self.rows.len() * (self.columns.len() + 1)
    }

    /// Row and column in the grid of a token of a grid tile, `tile * side^2 + index`; `None` for the first tile's.
    fn cell(&self, token: usize) -> Option<(usize, usize)> {
        let tile = (token / self.tile_tokens()).checked_sub(1)?;
        let index = token % self.tile_tokens();
        let (down, across) = (tile / self.grid[1], tile % self.grid[1]);
        Some((down * self.side + index / self.side, across * self.side + index % self.side))
    }

    /// For every tile which of its tokens show the image.
    pub fn valid(&self) -> Vec<Vec<bool>> {
        let shows = |token| match self.cell(token) {
            Some((row, column)) => self.rows.contains(&row) && self.columns.contains(&column),
            None => true,
        };
        let n = self.tile_tokens();
        (0..self.tiles()).map(|tile| (tile * n..(tile + 1) * n).map(shows).collect()).collect()
    }

    /// The sequence that kept tokens make, each with its place in the unpruned one. `kept` holds
    /// `tile * side^2 + index` of each token, valid ones only.
    ///
    /// With every valid token and [`NewlinePolicy::All`] or `Survivors` this is `spatial_unpad`.
    pub fn arrange(&self, kept: &[usize], newline: NewlinePolicy) -> Vec<(Slot, usize)> {
        let n = self.tile_tokens();
        let mut base: Vec<_> = Vec::new();
        let mut rows: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.rows.len()];
        for (at, token) in kept.iter().enumerate() {
            match self.cell(*token) {
                None => base.push((*token, at)),
                Some((row, column)) => {
                    let row = row.checked_sub(self.rows.start).and_then(|row| rows.get_mut(row));
                    let column = column.checked_sub(self.columns.start);
                    if let (Some(row), Some(column)) = (row, column) {
                        row.push((column, at));
                    }
                }
            }
        }
        base.sort_unstable();
        let mut slots: Vec<_> =
            base.into_iter().map(|(token, at)| (Slot::Kept(at), token)).collect();
        let width = self.columns.len() + 1;
        for (index, mut row) in rows.into_iter().enumerate() {
            row.sort_unstable();
            let start = n + index * width;
            let ended = match newline {
                NewlinePolicy::All => true,
                NewlinePolicy::Survivors => !row.is_empty(),
                NewlinePolicy::None => false,
            };
            slots.extend(row.into_iter().map(|(column, at)| (Slot::Kept(at), start + column)));
            if ended {
                slots.push((Slot::Newline, start + width - 1));
            }
        }
        slots
    }
}

/// The rows of the table of kept tokens that make each image, newlines being the row after the last. Picks are read back
/// from the device: where a row of patches ends depends on them. Merged tokens, which stand nowhere, follow each other
/// without newlines.
pub(crate) fn image_rows<B: Backend>(
    layouts: &[TileLayout],
    kept: &KeptTokens<B>,
    newline: NewlinePolicy,
) -> Vec<ImageRows> {
    let [images, most, _] = kept.tokens.dims();
    let picks = picks(kept);
    let rows_of = |(image, layout): (usize, &TileLayout)| {
        let (start, length) = (image * most, kept.lengths[image]);
        let tokens: Vec<usize> = match &picks {
            Some(picks) => picks[start..start + length].to_vec(),
            None => {
                let valid = layout.valid().concat();
                (0..valid.len()).filter(|token| valid[*token]).collect()
            }
        };
        let full = layout.full_length();
        if tokens.len() != length {
            return ImageRows { full, ..ImageRows::consecutive(start, length) };
        }
        let slots = layout.arrange(&tokens, newline);
        let row = |slot: &(Slot, usize)| match slot.0 {
            Slot::Kept(at) => start + at,
            Slot::Newline => images * most,
        };
        let places = slots.iter().map(|(_, place)| *place).collect();
        ImageRows { rows: slots.iter().map(row).collect(), places, full }
    };
    layouts.iter().enumerate().map(rows_of).collect()
}

/// The rows of images of one tile each, with the places the tokens had before pruning.
pub(crate) fn single_rows<B: Backend>(kept: &KeptTokens<B>, full: usize) -> Vec<ImageRows> {
    let most = kept.keep();
    let picks = picks(kept);
    let rows_of = |(image, length): (usize, &usize)| {
        let own = image * most..image * most + length;
        let places = match &picks {
            Some(picks) => picks[own.clone()].to_vec(),
            None => (0..*length).collect(),
        };
        ImageRows { rows: own.collect(), places, full: full.max(*length) }
    };
    kept.lengths.iter().enumerate().map(rows_of).collect()
}

/// Where every kept token stood in its image; `None` for merged and unpruned tokens.
fn picks<B: Backend>(kept: &KeptTokens<B>) -> Option<Vec<usize>> {
    let indices = kept.indices.as_ref()?;
    Some(indices.to_data().iter::<i64>().map(|pick| pick.max(0) as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two tiles across, 2 x 2 patches each, of which the left column is canvas.
    fn layout() -> TileLayout {
        TileLayout { side: 2, grid: [1, 2], rows: 0..2, columns: 1..4 }
    }

    fn kept_of(slots: &[(Slot, usize)], kept: &[usize]) -> Vec<Option<usize>> {
        let token = |(slot, _): &(Slot, usize)| match slot {
            Slot::Kept(at) => Some(kept[*at]),
            Slot::Newline => None,
        };
        slots.iter().map(token).collect()
    }

    #[test]
    fn without_pruning_rows_run_across_tiles() {
        let layout = layout();
        let valid = layout.valid();
        let kept: Vec<usize> = (0..12).filter(|token| valid[token / 4][token % 4]).collect();
        let slots = layout.arrange(&kept, NewlinePolicy::All);
        let expected = [
            Some(0),
            Some(1),
            Some(2),
            Some(3),
            Some(5),
            Some(8),
            Some(9),
            None,
            Some(7),
            Some(10),
            Some(11),
            None,
        ];
        assert_eq!(kept_of(&slots, &kept), expected);
        let places: Vec<usize> = slots.iter().map(|(_, place)| *place).collect();
        assert_eq!(places, (0..layout.full_length()).collect::<Vec<_>>());
    }

    #[test]
    fn policies_differ_on_rows_without_survivors() {
        let (layout, kept) = (layout(), [2, 10]);
        let all = layout.arrange(&kept, NewlinePolicy::All);
        assert_eq!(kept_of(&all, &kept), [Some(2), None, Some(10), None]);
        assert_eq!(all.iter().map(|(_, place)| *place).collect::<Vec<_>>(), [2, 7, 9, 11]);
        let survivors = layout.arrange(&kept, NewlinePolicy::Survivors);
        assert_eq!(kept_of(&survivors, &kept), [Some(2), Some(10), None]);
        let none = layout.arrange(&kept, NewlinePolicy::None);
        assert_eq!(kept_of(&none, &kept), [Some(2), Some(10)]);
    }
}
