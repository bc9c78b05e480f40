//! Where an error is left by code that cannot return one.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::TrainError;

/// The first error of a run. `TrainStep::step`, `fit` and the loaders cannot return one, so it is
/// left here.
#[derive(Clone, Debug, Default)]
pub struct ErrorSlot(Arc<Mutex<Option<TrainError>>>);

impl ErrorSlot {
    /// Keeps `error` unless there is an earlier one.
    pub fn set(&self, error: TrainError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Takes the error out.
    pub fn take(&self) -> Option<TrainError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns the error, if one was left.
    pub(crate) fn check(&self) -> Result<(), TrainError> {
        self.take().map_or(Ok(()), Err)
    }
}
