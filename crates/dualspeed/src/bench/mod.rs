//! Benchmarks: whole training steps, single operations, pruners, and how a step's cost grows.
//!
//! | module | content |
//! |---|---|
//! | [`steps`] | steps of the published recipes, through the trainer that runs use: the same loop, data path and optimiser |
//! | [`ops`] | the operations of `dualspeed-ops`, a decoder block, the vision tower |
//! | [`prune`] | pruners beside the tower that makes their input |
//! | [`growth`] | a step's time against visual tokens, batch and model |
//! | [`report`] | what is written, the same for all |
//! | [`clock`] | medians |
//!
//! Weights are random, drawn on the device; so are pictures and text. Nothing is zero.

pub mod clock;
pub mod growth;
mod model;
pub mod ops;
pub mod prune;
pub mod report;
mod source;
pub mod steps;

pub use growth::GrowthRow;
pub use model::Size;
pub use ops::OpRow;
pub use prune::PruneRow;
pub use report::{BenchReport, Filter, Row, Suite, today};
pub use steps::{Case, StepOptions, StepRow};

/// Takes the rows as they come: prints them, writes them.
pub type Sink<'a> = &'a mut dyn FnMut(Row) -> anyhow::Result<()>;
