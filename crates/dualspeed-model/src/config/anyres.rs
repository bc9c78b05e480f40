//! LLaVA-NeXT's images of any resolution: a base tile and a grid of tiles.

use serde::{Deserialize, Serialize};

use super::ModelConfigError;
use super::nonzero;

/// Which rows of patches end with the `image_newline` embedding when visual tokens are pruned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewlinePolicy {
    /// All rows, as FasterVLM, VisPruner and CDPruner do: up to 48 extra tokens.
    All,
    /// Rows of which at least one token survived, and rows that have none to begin with.
    #[default]
    Survivors,
    /// None.
    None,
}

/// Which rotary positions the tokens after pruning get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionPolicy {
    /// Counted anew without gaps: DualSpeed.
    #[default]
    Renumbered,
    /// Those they would have without pruning: FastV and others. The isolator counts before the image.
    Original,
}

/// LLaVA-NeXT's anyres, merged with `spatial_unpad`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnyresConfig {
    /// Resolutions the grid can have, `[height, width]` in pixels.
    pub image_grid_pinpoints: Vec<[usize; 2]>,
    /// Newlines after pruning.
    pub newline: NewlinePolicy,
}

impl Default for AnyresConfig {
    fn default() -> Self {
        Self {
            image_grid_pinpoints: [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
                .map(|grid| grid.map(|n| n * 336))
                .to_vec(),
            newline: NewlinePolicy::default(),
        }
    }
}

impl AnyresConfig {
    /// Checks that grids are made of whole tiles of `side` pixels.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the field that is wrong.
    pub fn validate(&self, side: usize) -> Result<(), ModelConfigError> {
        const FIELD: &str = "anyres.image_grid_pinpoints";
        nonzero(&[(FIELD, self.image_grid_pinpoints.len())])?;
        for pinpoint in &self.image_grid_pinpoints {
            if pinpoint.iter().any(|n| *n == 0 || !n.is_multiple_of(side)) {
                return Err(ModelConfigError::OutOfRange {
                    field: FIELD,
                    value: format!("{pinpoint:?}"),
                    expected: format!("multiples of the tower's image_size, {side}"),
                });
            }
        }
        Ok(())
    }
}
