//! Which projector stands between vision tower and language model.

use dualspeed_core::Options;
use serde::{Deserialize, Serialize};

use super::{ModelConfigError, divisible, nonzero};

/// The projector between vision tower and language model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum ProjectorType {
    /// Two linear layers with a GELU between them (LLaVA-1.5).
    #[default]
    #[serde(rename = "mlp2x_gelu")]
    Mlp2xGelu,
    /// One linear layer (LLaVA-1).
    #[serde(rename = "linear")]
    Linear,
    /// A projector of another crate, `{ kind = "name", .. }`.
    #[serde(untagged)]
    Custom(CustomProjectorConfig),
}

/// A projector that another crate registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomProjectorConfig {
    /// The name it is registered by.
    pub kind: String,
    /// Features along a side of the square that becomes one token: 1 keeps the count, 2 divides it by four.
    #[serde(default = "one")]
    pub merge: usize,
    /// Whatever else the projector reads.
    #[serde(default)]
    pub options: Options,
}

fn one() -> usize {
    1
}

impl ProjectorType {
    /// Features along a side of the square that becomes one token.
    pub fn merge(&self) -> usize {
        match self {
            Self::Custom(config) => config.merge.max(1),
            _ => 1,
        }
    }

    /// Checks that the tower's grid of `grid` features a side can be projected.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the field that is wrong.
    pub fn validate(&self, grid: usize) -> Result<(), ModelConfigError> {
        let Self::Custom(config) = self else { return Ok(()) };
        nonzero(&[("mm_projector_type.merge", config.merge)])?;
        divisible(("the tower's grid", grid), ("mm_projector_type.merge", config.merge))
    }
}
