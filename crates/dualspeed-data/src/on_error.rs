//! What becomes of a run when a sample cannot be used.

use serde::{Deserialize, Serialize};

/// What becomes of a run when a sample cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It ends, if it can before the first step.
    #[default]
    Stop,
    /// It goes on without the sample, which is counted and named.
    Skip,
}
