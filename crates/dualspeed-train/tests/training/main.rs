//! Whole runs of tiny models: what a trainer promises.

mod errors;
mod runs;
mod support;
mod updates;
