//! Images of any resolution (LLaVA-NeXT's anyres): which grid of tiles an image gets, and where on it the image lies.
//! Arithmetic on the host, no pixels.
//!
//! Source: `select_best_resolution`, `get_patch_output_size` and `unpad_image` of LLaVA-NeXT in transformers. Their two
//! roundings differ (pixels are rounded up, patches down), so a row of patches may show a line of canvas.

use std::ops::Range;

/// A size or resolution in pixels, `[height, width]`.
pub type Size = [usize; 2];

/// Finds the resolution that loses least of the image and, of those, wastes least canvas; `None` of none.
pub fn best_resolution(image: Size, pinpoints: &[Size]) -> Option<Size> {
    let mut best: Option<(Size, usize, usize)> = None;
    let [height, width] = image.map(|side| side.max(1));
    for &[high, wide] in pinpoints {
        let scale = (wide as f64 / width as f64).min(high as f64 / height as f64);
        let shown = (width as f64 * scale) as usize * (height as f64 * scale) as usize;
        let effective = shown.min(width * height);
        let wasted = (high * wide).saturating_sub(effective);
        let better = best.is_none_or(|(_, most, least)| {
            effective > most || (effective == most && wasted < least)
        });
        if better {
            best = Some(([high, wide], effective, wasted));
        }
    }
    best.map(|(size, ..)| size)
}

/// Scales the size of an image to fit a canvas, its aspect ratio kept.
pub fn fitted_size(image: Size, canvas: Size) -> Size {
    let [height, width] = image.map(|side| side.max(1) as f64);
    let (scale_w, scale_h) = (canvas[1] as f64 / width, canvas[0] as f64 / height);
    if scale_w < scale_h {
        [((height * scale_w).ceil() as usize).clamp(1, canvas[0]), canvas[1]]
    } else {
        [canvas[0], ((width * scale_h).ceil() as usize).clamp(1, canvas[1])]
    }
}

/// Finds the rows and columns of patches that show the image, on a canvas of `patches` patches.
pub fn unpadded(image: Size, patches: Size) -> (Range<usize>, Range<usize>) {
    let [height, width] = image.map(|side| side.max(1) as f64);
    let [rows, columns] = patches;
    // As in Python: rounded to seven digits, then cut.
    let cut = |side: f64| ((side * 1e7).round_ties_even() / 1e7) as usize;
    let centred = |all: usize, shown: usize| {
        let margin = all.saturating_sub(shown) / 2;
        margin..all - margin
    };
    if width / height > columns as f64 / rows as f64 {
        (centred(rows, cut(height * (columns as f64 / width))), 0..columns)
    } else {
        (0..rows, centred(columns, cut(width * (rows as f64 / height))))
    }
}

/// How the tiles of one image lie: first a tile of the whole image, then a grid of full resolution over a canvas on which
/// the image lies centred. Tokens of the grid stand in rows and columns over all its tiles; those that show only the
/// canvas are cut off, and each row that is left ends with a newline.
///
/// Source: `pack_image_features` and `unpad_image` of LLaVA-NeXT in transformers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Patches along a side of a tile.
    pub side: usize,
    /// Tiles of the grid, down and across.
    pub grid: [usize; 2],
    /// Rows of patches of the whole grid that show the image.
    pub rows: Range<usize>,
    /// Columns of patches of the whole grid that show the image.
    pub columns: Range<usize>,
}

impl Tiling {
    /// Chooses the grid for an image of `[height, width]` pixels: tiles of `tile` pixels and `side` patches a side.
    /// `None` if the best of `pinpoints` is no grid of whole tiles, or there is none.
    pub fn new(image: Size, pinpoints: &[Size], tile: usize, side: usize) -> Option<Self> {
        let canvas = best_resolution(image, pinpoints)?;
        let grid = canvas.map(|pixels| pixels / tile.max(1));
        if grid.contains(&0) || grid.map(|n| n * tile) != canvas {
            return None;
        }
        let (rows, columns) = unpadded(image, grid.map(|n| n * side));
        Some(Self { side, grid, rows, columns })
    }

    /// Number of tiles, that of the whole image included.
    pub fn tiles(&self) -> usize {
        1 + self.grid[0] * self.grid[1]
    }

    /// Number of tokens of a tile.
    pub fn tile_tokens(&self) -> usize {
        self.side * self.side
    }

    /// Whether there can be such tiles: the image lies within the grid.
    pub fn is_valid(&self) -> bool {
        let within = |range: &Range<usize>, tiles: usize| {
            range.start <= range.end && range.end <= tiles * self.side
        };
        self.side > 0 && within(&self.rows, self.grid[0]) && within(&self.columns, self.grid[1])
    }

    /// Number of visual tokens without pruning, newlines included.
    pub fn full_length(&self) -> usize {
        self.tile_tokens() + self.rows.len() * (self.columns.len() + 1)
    }

    /// Row and column in the grid of token `tile * side^2 + index`; `None` for tokens of the first tile, which shows the
    /// whole image.
    pub fn cell(&self, token: usize) -> Option<(usize, usize)> {
        let tile = token.checked_div(self.tile_tokens())?.checked_sub(1)?;
        let index = token % self.tile_tokens();
        let (down, across) = (tile.checked_div(self.grid[1])?, tile % self.grid[1]);
        Some((down * self.side + index / self.side, across * self.side + index % self.side))
    }

    /// Says of every tile which of its tokens show the image: `[tiles][side^2]`.
    pub fn valid(&self) -> Vec<Vec<bool>> {
        let shows = |token| match self.cell(token) {
            Some((row, column)) => self.rows.contains(&row) && self.columns.contains(&column),
            None => true,
        };
        let n = self.tile_tokens();
        (0..self.tiles()).map(|tile| (tile * n..(tile + 1) * n).map(shows).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINPOINTS: [Size; 5] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

    #[test]
    fn grids_follow_the_aspect_ratio() {
        let grid = |size| Tiling::new(size, &PINPOINTS, 336, 24).map(|tiling| tiling.grid);
        assert_eq!(grid([672, 672]), Some([2, 2]));
        assert_eq!(grid([300, 1000]), Some([1, 3]));
        assert_eq!(grid([1000, 300]), Some([3, 1]));
        assert_eq!(grid([1, 1]), Some([1, 2]));
        assert_eq!(Tiling::new([10, 10], &[], 336, 24), None);
        assert_eq!(Tiling::new([10, 10], &[[300, 300]], 336, 24), None);
    }

    #[test]
    fn a_full_grid_has_the_published_number_of_tokens() {
        let tiling = Tiling::new([672, 672], &PINPOINTS, 336, 24).unwrap();
        assert_eq!(tiling.full_length(), 576 + 48 * 49);
    }
    #[test]
    fn tokens_of_the_grid_have_cells_over_all_tiles() {
        // Two tiles across, 2 x 2 patches each, of which the left column is canvas.
        let tiling = Tiling { side: 2, grid: [1, 2], rows: 0..2, columns: 1..4 };
        assert!(tiling.is_valid());
        let cells: Vec<_> = (0..12).map(|token| tiling.cell(token)).collect();
        assert_eq!(cells[..4], [None; 4]);
        let grid = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)];
        assert_eq!(cells[4..], grid.map(Some));
        assert_eq!(tiling.valid(), [vec![true; 4], vec![false, true, false, true], vec![true; 4]]);
        assert_eq!((tiling.tiles(), tiling.full_length()), (3, 4 + 2 * 4));
        assert!(!Tiling { columns: 1..5, ..tiling.clone() }.is_valid());
        assert_eq!(Tiling { grid: [0, 0], ..tiling }.cell(7), None);
    }
}
