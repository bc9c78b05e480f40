//! An image as slots: its tokens in the order in which they are read, and the newlines between rows (LLaVA-NeXT).
//!
//! Of an image of several tiles the first tile is the whole image; the others are a grid over a canvas on which the image
//! lies centred. Their tokens are laid out in two dimensions, rows and columns that show only the canvas are cut off
//! (`spatial_unpad`), and each row ends with the `image_newline` embedding. The published code asserts the full grid
//! after pruning; here kept tokens take the same way, so a model of this kind can be trained while pruned.
//!
//! Source: `pack_image_features` of LLaVA-NeXT in transformers; all counts are known on the host.

use dualspeed_data::Tiling;

use super::place::Place;
use super::slot::Source;
use crate::config::NewlinePolicy;

/// One entry of the sequence that an image becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageToken {
    /// A row of the table of visual tokens, or the newline.
    pub source: Source,
    /// Where it would stand in the image's sequence without pruning.
    pub offset: usize,
    /// Where it stands in the image.
    pub place: Place,
}

/// The sequence that an image becomes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageSlots {
    /// In the order in which they are read.
    pub tokens: Vec<ImageToken>,
    /// Entries of the image without pruning, newlines included.
    pub full_length: usize,
    /// Positions that the image takes on its longest axis.
    pub extent: usize,
}

impl ImageSlots {
    /// An image of one tile, a grid of `side` tokens a side: rows `start..` of the table hold the tokens `kept`, indices in
    /// the unpruned image of `full` tokens.
    pub fn flat(start: usize, kept: &[usize], full: usize, side: usize) -> Self {
        let tokens = kept.iter().enumerate().map(|(at, token)| ImageToken {
            source: Source::Visual(start + at),
            offset: *token,
            place: Place::in_tiles(*token, side),
        });
        Self { tokens: tokens.collect(), full_length: full.max(kept.len()), extent: side.max(1) }
    }

    /// Rows `start..start + length` of the table one after another: tokens that stand nowhere, such as merged ones, in an image of
    /// `full` tokens.
    pub fn sequential(start: usize, length: usize, full: usize) -> Self {
        let tokens = (0..length).map(|at| ImageToken {
            source: Source::Visual(start + at),
            offset: at,
            place: Place { column: at, ..Place::default() },
        });
        Self { tokens: tokens.collect(), full_length: full.max(length), extent: length }
    }

    /// An image of several tiles: rows `start..` of the table hold the tokens `kept`, each `tile * side^2 + index`, valid ones
    /// only.
    ///
    /// With every valid token and [`NewlinePolicy::All`] or `Survivors` this is `spatial_unpad`.
    pub fn tiled(start: usize, kept: &[usize], tiling: &Tiling, newline: NewlinePolicy) -> Self {
        let n = tiling.tile_tokens();
        let token = |at: usize, token: usize, offset: usize| ImageToken {
            source: Source::Visual(start + at),
            offset,
            place: Place::in_tiles(token, tiling.side),
        };
        let mut tokens = Vec::new();
        let mut rows: Vec<Vec<(usize, usize)>> = vec![Vec::new(); tiling.rows.len()];
        for (at, kept) in kept.iter().enumerate() {
            match tiling.cell(*kept) {
                None => tokens.push(token(at, *kept, *kept)),
                Some((row, column)) => {
                    let row = row.checked_sub(tiling.rows.start).and_then(|row| rows.get_mut(row));
                    let column = column.checked_sub(tiling.columns.start);
                    if let (Some(row), Some(column)) = (row, column) {
                        row.push((column, at));
                    }
                }
            }
        }
        tokens.sort_unstable_by_key(|token| token.offset);
        let width = tiling.columns.len() + 1;
        for (index, mut row) in rows.into_iter().enumerate() {
            row.sort_unstable();
            let first = n + index * width;
            let ended = match newline {
                NewlinePolicy::All => true,
                // Of an image too narrow to show in any column, rows are newlines alone, pruned or not.
                NewlinePolicy::Survivors => !row.is_empty() || tiling.columns.is_empty(),
                NewlinePolicy::None => false,
            };
            tokens.extend(row.into_iter().map(|(column, at)| token(at, kept[at], first + column)));
            if ended {
                let offset = first + width - 1;
                let place = Place { time: 0, tile: 1, row: index, column: width - 1 };
                tokens.push(ImageToken { source: Source::Newline, offset, place });
            }
        }
        let extent = tiling.rows.len().max(width).max(tiling.side);
        Self { tokens, full_length: tiling.full_length(), extent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two tiles across, 2 x 2 patches each, of which the left column is canvas.
    fn tiling() -> Tiling {
        Tiling { side: 2, grid: [1, 2], rows: 0..2, columns: 1..4 }
    }

    fn kept_of(slots: &ImageSlots, kept: &[usize]) -> Vec<Option<usize>> {
        let token = |token: &ImageToken| match token.source {
            Source::Visual(at) => Some(kept[at]),
            _ => None,
        };
        slots.tokens.iter().map(token).collect()
    }

    fn offsets(slots: &ImageSlots) -> Vec<usize> {
        slots.tokens.iter().map(|token| token.offset).collect()
    }

    #[test]
    fn without_pruning_rows_run_across_tiles() {
        let tiling = tiling();
        let valid = tiling.valid();
        let kept: Vec<usize> = (0..12).filter(|token| valid[token / 4][token % 4]).collect();
        let slots = ImageSlots::tiled(0, &kept, &tiling, NewlinePolicy::All);
        let base = [0, 1, 2, 3].map(Some);
        let rows = [Some(5), Some(8), Some(9), None, Some(7), Some(10), Some(11), None];
        assert_eq!(kept_of(&slots, &kept), [&base[..], &rows[..]].concat());
        assert_eq!(offsets(&slots), (0..slots.full_length).collect::<Vec<_>>());
    }

    #[test]
    fn policies_differ_on_rows_without_survivors() {
        let (tiling, kept) = (tiling(), [2, 10]);
        let slots = |newline| ImageSlots::tiled(0, &kept, &tiling, newline);
        let all = slots(NewlinePolicy::All);
        assert_eq!(kept_of(&all, &kept), [Some(2), None, Some(10), None]);
        assert_eq!(offsets(&all), [2, 7, 9, 11]);
        assert_eq!(kept_of(&slots(NewlinePolicy::Survivors), &kept), [Some(2), Some(10), None]);
        assert_eq!(kept_of(&slots(NewlinePolicy::None), &kept), [Some(2), Some(10)]);
    }

    /// An image so narrow that the patches cut off leave no column: transformers keeps its newlines.
    #[test]
    fn rows_without_a_column_keep_their_newlines() {
        let tiling = Tiling { side: 2, grid: [2, 1], rows: 0..4, columns: 1..1 };
        assert_eq!(tiling.full_length(), 4 + 4);
        for (kept, length) in [(&[0, 1, 2, 3][..], 8), (&[2][..], 5)] {
            let slots = ImageSlots::tiled(0, kept, &tiling, NewlinePolicy::Survivors);
            assert_eq!(slots.tokens.len(), length);
            assert_eq!(slots, ImageSlots::tiled(0, kept, &tiling, NewlinePolicy::All));
            assert_eq!(offsets(&slots)[kept.len()..], [4, 5, 6, 7]);
        }
        let none = ImageSlots::tiled(0, &[2], &tiling, NewlinePolicy::None);
        assert_eq!(none.tokens.len(), 1);
    }

    #[test]
    fn tokens_of_a_flat_image_know_their_row_and_column() {
        let slots = ImageSlots::flat(8, &[1, 6], 9, 3);
        assert_eq!(slots.tokens[1].place, Place { time: 0, tile: 0, row: 2, column: 0 });
        assert_eq!((slots.tokens[1].source, slots.full_length), (Source::Visual(9), 9));
    }
}
