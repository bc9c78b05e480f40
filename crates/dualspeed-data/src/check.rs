//! A whole data set checked before it is trained on: what cannot be used, what would be cut off, how long examples are,
//! which of them are there twice.
//!
//! | module | concept |
//! |---|---|
//! | [`report`] | [`DataReport`]: what was found, as plain data |
//! | [`histogram`] | counts of whole numbers in bins of equal width |
//! | [`lengths`] | lengths against `max_length`, token ids against the embedding |
//! | [`mod@dataset`] | [`check`]: all of it |

pub mod dataset;
pub mod histogram;
pub mod lengths;
pub mod report;

pub use dataset::{CheckOptions, check};
pub use histogram::Histogram;
pub use lengths::{LengthCheck, ViewCuts, check_lengths};
pub use report::{DataReport, Finding, Group, Severity, ViewReport};
