//! Whole runs of tiny models: what a trainer promises.

mod errors;
mod features;
mod runs;
mod support;
mod updates;
