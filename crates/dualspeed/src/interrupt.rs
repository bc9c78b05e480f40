//! Signals that ask a training to end, and the error that says it did.
//!
//! SIGINT (Ctrl-C), SIGTERM (Slurm, spot machines, `kill`) and SIGHUP (a terminal that was closed) are one request: the first
//! one ends the training after its step, with a checkpoint; a second one ends the program at once. SIGHUP is left alone
//! where it was ignored when the program began, which is what `nohup` does. The exit code is 128 and the number of the
//! signal, as shells have it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::output::note;

/// The exit code of Ctrl-C.
pub const EXIT_INTERRUPTED: u8 = 128 + 2;

/// One request may come twice: `timeout` and wrapper scripts send it to the program and to its process group.
const BURST: Duration = Duration::from_millis(250);

/// The exit code of the signal that asked first.
static EXIT: AtomicU8 = AtomicU8::new(EXIT_INTERRUPTED);

/// How long a training that has nothing to save yet may take to end: it may hang in a read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the training that goes on has done a step; `None` where there is none.
static TRAINING: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);

/// A training was interrupted after `step` optimiser steps; they are in a checkpoint in the run directory `run`.
#[derive(Debug, thiserror::Error)]
#[error("interrupted {}", advice(*step, run))]
#[allow(missing_docs)]
pub struct Interrupted {
    pub step: u64,
    pub run: String,
}

fn advice(step: u64, run: &str) -> String {
    match step {
        0 => "before the first step; nothing was written, start it again".to_owned(),
        _ => format!("after step {step}; continue with `dualspeed train --resume {run}`"),
    }
}

/// The exit code after an interruption.
pub(crate) fn exit_code() -> u8 {
    EXIT.load(Ordering::SeqCst)
}

/// While it lives, a first signal is left to the training that looks at the flag. Else it ends the program at once: there is
/// nothing to save.
#[derive(Debug)]
pub(crate) struct Training {
    /// For the training, which sets it once a step is done.
    pub(crate) begun: Arc<AtomicBool>,
}

impl Training {
    pub(crate) fn begin() -> Self {
        let begun = Arc::new(AtomicBool::new(false));
        *training() = Some(begun.clone());
        Self { begun }
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        *training() = None;
    }
}

fn training() -> MutexGuard<'static, Option<Arc<AtomicBool>>> {
    TRAINING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What signals have come.
struct Requests {
    flag: Arc<AtomicBool>,
    first: Option<Instant>,
}

impl Requests {
    /// Takes in the signal of that number and name; an exit code, if the program is to end at once.
    fn take(&mut self, number: u8, name: &str) -> Option<u8> {
        let code = 128 + number;
        match self.first {
            Some(at) if at.elapsed() < BURST => None,
            Some(_) => Some(code),
            None => {
                self.first = Some(Instant::now());
                EXIT.store(code, Ordering::SeqCst);
                self.flag.store(true, Ordering::SeqCst);
                let Some(begun) = training().clone() else {
                    note(format_args!("{name}: nothing to save"));
                    return Some(code);
                };
                if !begun.load(Ordering::SeqCst) {
                    std::thread::spawn(move || end_what_hangs(&begun, code));
                }
                note(format_args!(
                    "\n{name}: finishing the step and writing a checkpoint; once more (or Ctrl-C) stops at once"
                ));
                None
            }
        }
    }
}

/// Ends a training that was told to end and neither has nor does a step.
fn end_what_hangs(begun: &Arc<AtomicBool>, code: u8) {
    std::thread::sleep(PATIENCE);
    let same = training().as_ref().is_some_and(|training| Arc::ptr_eq(training, begun));
    if same && !begun.load(Ordering::SeqCst) {
        note(format_args!("no step was done, and nothing happens: a read may hang; ended"));
        exit_at_once(code);
    }
}

/// Whatever other threads are about.
fn exit_at_once(code: u8) -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(i32::from(code));
    #[cfg(not(unix))]
    std::process::exit(i32::from(code));
}

/// Makes the first signal set the returned flag; a second one ends the program at once.
///
/// # Errors
/// If the process has a handler already, or the system allows none.
#[cfg(unix)]
pub(crate) fn interrupt_flag() -> anyhow::Result<Arc<AtomicBool>> {
    use anyhow::Context;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level;

    let mut heeded = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        heeded.push(SIGHUP);
    }
    let flag = Arc::new(AtomicBool::new(false));
    let mut requests = Requests { flag: flag.clone(), first: None };
    let mut signals = Signals::new(heeded).context("cannot listen for signals")?;
    let listen = move || {
        for signal in signals.forever() {
            let name = low_level::signal_name(signal).unwrap_or("signal");
            if let Some(code) = requests.take(u8::try_from(signal).unwrap_or_default(), name) {
                exit_at_once(code);
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(listen).context("cannot listen for signals")?;
    Ok(flag)
}

/// Whether the process was started with a signal ignored; where the system does not tell, it was not.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Makes Ctrl-C set the returned flag; a second one ends the program at once.
///
/// # Errors
/// If the process has a handler already, or the system allows none.
#[cfg(not(unix))]
pub(crate) fn interrupt_flag() -> anyhow::Result<Arc<AtomicBool>> {
    use anyhow::Context;

    let flag = Arc::new(AtomicBool::new(false));
    let mut requests = Requests { flag: flag.clone(), first: None };
    let handler = move || {
        if let Some(code) = requests.take(2, "Ctrl-C") {
            exit_at_once(code);
        }
    };
    ctrlc::set_handler(handler).context("cannot listen for Ctrl-C")?;
    Ok(flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sent_twice_is_one_and_a_second_one_ends_the_program() {
        let flag = Arc::new(AtomicBool::new(false));
        let requests = || Requests { flag: flag.clone(), first: None };
        {
            let _training = Training::begin();
            let mut requests = requests();
            assert_eq!(requests.take(15, "SIGTERM"), None);
            assert!(flag.load(Ordering::SeqCst) && exit_code() == 143);
            assert_eq!(requests.take(15, "SIGTERM"), None);
            std::thread::sleep(BURST);
            assert_eq!(requests.take(2, "SIGINT"), Some(130));
        }
        // Where nothing is trained, nothing is waited for.
        assert_eq!(requests().take(1, "SIGHUP"), Some(129));
    }
}
