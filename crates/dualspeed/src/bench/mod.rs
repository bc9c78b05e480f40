//! Benchmarks: whole training steps, single operations, pruners, and how a step's cost grows.
//!
//! | module | content |
//! |---|---|
//! | [`steps`] | steps of the published recipes, through the trainer that runs use: the same loop, data path and optimiser |
//! | [`ops`] | the operations of `dualspeed-ops`, a decoder block, the vision tower |
//! | [`prune`] | pruners beside the tower that makes their input |
//! | [`growth`] | a step's time against visual tokens, batch and model |
//! | [`rows`] | measurements |
//! | [`report`] | the file of measurements, the same for all suites |
//! | [`timing`] | medians |
//!
//! Weights are random, drawn on the device; so are pictures and text. Nothing is zero.

mod filter;
pub mod growth;
mod model_size;
pub mod ops;
pub mod prune;
mod random_model;
pub mod report;
pub mod rows;
pub mod steps;
mod suite;
mod synthetic_source;
pub mod timing;

pub use filter::Filter;
pub use model_size::ModelSize;
pub use report::BenchReport;
pub use rows::{GrowthRow, OpRow, PruneRow, Row, Sink, StepRow};
pub use suite::Suite;
