//! The published code where it departs from good sense.

use serde::{Deserialize, Serialize};

/// Whether something is done as the published code does it where that departs from good sense. What is switched, each method, and
/// the training configuration, says in its documentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compat {
    /// The sane variant.
    #[default]
    Sane,
    /// The published code's behaviour.
    Official,
}
