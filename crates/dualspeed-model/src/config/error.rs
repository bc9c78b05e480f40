//! Configurations that make no model.

/// A model configuration that cannot be built.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ModelConfigError {
    /// A size that must be positive is zero.
    #[error("{field} is 0; set it to at least 1")]
    Zero {
        /// Path of the field, e.g. `text.hidden_size`.
        field: &'static str,
    },
    /// One size must divide another.
    #[error("{field} = {value} is not divisible by {by} = {divisor}; change one of the two")]
    NotDivisible {
        /// Path of the field that should be divisible.
        field: &'static str,
        /// Its value.
        value: usize,
        /// Path of the divisor.
        by: &'static str,
        /// The divisor's value.
        divisor: usize,
    },
    /// A vision tower or projector that no registry knows.
    #[error(transparent)]
    Unknown(#[from] dualspeed_core::RegistryError),
    /// A number outside its range.
    #[error("{field} = {value} is out of range: expected {expected}")]
    OutOfRange {
        /// Path of the field.
        field: &'static str,
        /// The value as written.
        value: String,
        /// The accepted range, in words.
        expected: String,
    },
}
