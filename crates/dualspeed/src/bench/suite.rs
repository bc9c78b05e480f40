//! Kinds of measurements.

use clap::ValueEnum;

/// A kind of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Whole training steps of the published recipes.
    Steps,
    /// Single operations, a decoder block, the vision tower.
    Ops,
    /// Pruners.
    Prune,
    /// How a step's time grows with visual tokens, batch and model.
    Growth,
}

impl Suite {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
    }
}
