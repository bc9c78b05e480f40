//! Images of any resolution (LLaVA-NeXT's anyres): which grid of tiles an image gets, and where on it the image lies.
//! Arithmetic on the host, no pixels.
//!
//! Source: `select_best_resolution`, `get_patch_output_size` and `unpad_image` of LLaVA-NeXT in transformers. Their two
//! roundings differ (pixels are rounded up, patches down), so a row of patches may show a line of canvas.

use std::ops::Range;

/// A size or resolution in pixels, `[height, width]`.
pub type Size = [usize; 2];

/// The resolution that loses least of the image and, of those, wastes least canvas; `None` of none.
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

/// Size of an image scaled to fit a canvas, its aspect ratio kept.
pub fn fitted_size(image: Size, canvas: Size) -> Size {
    let [height, width] = image.map(|side| side.max(1) as f64);
    let (scale_w, scale_h) = (canvas[1] as f64 / width, canvas[0] as f64 / height);
    if scale_w < scale_h {
        [((height * scale_w).ceil() as usize).clamp(1, canvas[0]), canvas[1]]
    } else {
        [canvas[0], ((width * scale_h).ceil() as usize).clamp(1, canvas[1])]
    }
}

/// Rows and columns of patches that show the image, on a canvas of `patches` patches.
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

/// How an image is cut into tiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Tiles of the grid, down and across; beside them there is one of the whole image.
    pub grid: [usize; 2],
    /// Size of the grid, in pixels.
    pub canvas: Size,
    /// Size of the image on it.
    pub fitted: Size,
    /// Patches along a side of a tile.
    pub side: usize,
    /// Rows of patches of the whole grid that show the image.
    pub rows: Range<usize>,
    /// Columns of patches of the whole grid that show the image.
    pub columns: Range<usize>,
}

impl Tiling {
    /// Tiles of `tile` pixels and `side` patches a side; `None` if no pinpoint is a grid of them.
    pub fn new(image: Size, pinpoints: &[Size], tile: usize, side: usize) -> Option<Self> {
        let canvas = best_resolution(image, pinpoints)?;
        let grid = canvas.map(|pixels| pixels / tile.max(1));
        if grid.contains(&0) || grid.map(|n| n * tile) != canvas {
            return None;
        }
        let (rows, columns) = unpadded(image, grid.map(|n| n * side));
        Some(Self { grid, canvas, fitted: fitted_size(image, canvas), side, rows, columns })
    }

    /// Tiles, that of the whole image included.
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

    /// Row and column in the grid of a token of a grid tile, `tile * side^2 + index`; `None` for the first tile's.
    pub fn cell(&self, token: usize) -> Option<(usize, usize)> {
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

    /// Visual tokens without pruning, newlines included.
    pub fn tokens(&self) -> usize {
        self.side * self.side + self.rows.len() * (self.columns.len() + 1)
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
        assert_eq!(tiling.tokens(), 576 + 48 * 49);
    }
}
