//! Measurements, one type per suite.

mod growth;
mod op;
mod prune;
mod step;

use serde::{Deserialize, Serialize};

pub use growth::{GrowthAxis, GrowthRow};
pub use op::OpRow;
pub use prune::PruneRow;
pub use step::StepRow;

/// Takes measurements as they come: prints them, writes them.
pub type Sink<'a> = &'a mut dyn FnMut(Row) -> anyhow::Result<()>;

/// One measurement of any suite. In JSON, `suite` tells the suite; all have `name`, `ms` (median) and `spread_ms`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "suite", rename_all = "snake_case")]
pub enum Row {
    /// Suite `steps`: a training step.
    Step(StepRow),
    /// Suite `ops`: an operation.
    Op(OpRow),
    /// Suite `prune`: a pruner.
    Prune(PruneRow),
    /// Suite `growth`: a point of a growth curve.
    Growth(GrowthRow),
}

impl Row {
    /// The name of what was measured.
    pub fn name(&self) -> &str {
        match self {
            Self::Step(row) => &row.name,
            Self::Op(row) => &row.name,
            Self::Prune(row) => &row.name,
            Self::Growth(row) => &row.name,
        }
    }
}
