//! Whole runs of tiny models: what a trainer promises.

mod errors;
mod failures;
mod features;
mod groups;
mod named;
mod rerun;
mod resume;
mod runs;
mod skip;
mod support;
mod updates;
