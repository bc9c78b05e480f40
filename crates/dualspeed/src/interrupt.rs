//! Ctrl-C: what it asks of a training, and the error that says a training was ended by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// The exit code after Ctrl-C, once the step is finished and a checkpoint written.
pub const EXIT_INTERRUPTED: u8 = 130;

/// A training was interrupted after `step` optimiser steps; the checkpoint in the run directory `run` is written.
#[derive(Debug, thiserror::Error)]
#[error("interrupted after step {step}; continue with `dualspeed train --resume {run}`")]
#[allow(missing_docs)]
pub struct Interrupted {
    pub step: u64,
    pub run: String,
}

/// Makes Ctrl-C set the returned flag; a second Ctrl-C ends the program at once.
///
/// # Errors
/// If the process has a handler already, or the system allows none.
pub(crate) fn ctrl_c_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
        eprintln!(
            "\nfinishing the step and writing a checkpoint; press Ctrl-C again to stop at once"
        );
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(flag)
}
