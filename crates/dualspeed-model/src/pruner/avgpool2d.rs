//! The control that averages instead of choosing.

use burn::tensor::{Tensor, TensorData};
use dualspeed_ops::Backend;

use super::{Kept, PruneContext, PruneError, Pruner, VisualTokens};

/// Adaptive 2-D average pooling of the square patch grid to `rows * columns = keep` cells, the
/// factors as close to a square as `keep` allows.
///
/// Cell borders are those of PyTorch's `adaptive_avg_pool2d`: `floor(i g / r)` to
/// `ceil((i + 1) g / r)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct AvgPool2d;

impl AvgPool2d {
    /// Rows and columns that make `keep` cells of a `side * side` grid, if any.
    fn cells(side: usize, keep: usize) -> Option<(usize, usize)> {
        (1..=side)
            .rev()
            .filter(|rows| keep.is_multiple_of(*rows) && keep / rows <= side)
            .map(|rows| (rows, keep / rows))
            .filter(|(rows, columns)| rows <= columns)
            .max_by_key(|(rows, _)| *rows)
    }

    /// The feasible count nearest to `keep` (the lower one if two are equally near).
    fn nearest(side: usize, keep: usize) -> usize {
        (1..=keep)
            .find_map(|distance| {
                [keep - distance, keep + distance]
                    .into_iter()
                    .find(|count| *count > 0 && Self::cells(side, *count).is_some())
            })
            .unwrap_or(1)
    }
}

impl<B: Backend> Pruner<B> for AvgPool2d {
    fn name(&self) -> &str {
        "avgpool2d"
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>,
        keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        let (images, n) = (visual.num_images(), visual.num_tokens());
        if visual.compacted {
            return Err(PruneError::NotAGrid { pruner: Pruner::<B>::name(self).to_owned() });
        }
        let side = n.isqrt();
        let grid = if side * side == n { Self::cells(side, keep) } else { None };
        let Some((rows, columns)) = grid else {
            let nearest = Self::nearest(side, keep);
            let pruner = Pruner::<B>::name(self).to_owned();
            return Err(PruneError::NoGrid { pruner, keep, tokens: n, nearest });
        };
        let span = |i: usize, parts: usize| (i * side / parts)..((i + 1) * side).div_ceil(parts);
        let mut weights = vec![0f32; keep * n];
        for cell in 0..keep {
            let (ys, xs) = (span(cell / columns, rows), span(cell % columns, columns));
            let share = 1.0 / (ys.len() * xs.len()) as f32;
            for y in ys {
                for x in xs.clone() {
                    weights[cell * n + y * side + x] = share;
                }
            }
        }
        let weights = TensorData::new(weights, [1, keep, n]);
        let weights = Tensor::<B, 3>::from_data(weights, &visual.projected.device());
        Ok(Kept::Merge(weights.expand([images, keep, n])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_as_square_as_the_count_allows() {
        assert_eq!(AvgPool2d::cells(12, 14), Some((2, 7)));
        assert_eq!(AvgPool2d::cells(12, 16), Some((4, 4)));
        assert_eq!(AvgPool2d::cells(24, 57), Some((3, 19)));
        assert_eq!(AvgPool2d::cells(12, 13), None);
        assert_eq!(AvgPool2d::nearest(12, 13), 12);
    }
}
