//! Standard output and standard error, which may be closed, full, or a terminal that is gone.
//!
//! `println!` and its like panic then. What a command was asked to print goes through [`print()`], which says whether it
//! arrived; what is said about work goes through [`say`] and [`note`], and is lost without a consequence where nobody can
//! have it. A panic over it would cost a finished training its exit code.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use anyhow::Context;

/// Nobody reads standard output any more: `| head` has what it wanted, or the terminal was closed. The program ends as if
/// all had been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the standard output any more")]
pub struct NoReader;

/// Prints what a command was asked for: `text` as it is, at once.
///
/// # Errors
/// [`NoReader`]; or that standard output cannot be written, to a disk that is full for one.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if has_no_reader(&error) => Err(NoReader.into()),
        written => written.context("cannot write to standard output"),
    }
}

/// [`print()`] with the end of the line.
///
/// # Errors
/// As [`print()`].
pub fn print_line(text: impl fmt::Display) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}

/// Says on standard output what was done. The work is on disk: that nobody hears it is no failure.
pub fn say(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Says something on standard error, if it is there.
pub fn note(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Standard error for writers that take an error badly: what cannot be written counts as written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn has_no_reader(error: &io::Error) -> bool {
    // What writes to a terminal that is gone give.
    const EIO: i32 = 5;
    error.kind() == ErrorKind::BrokenPipe || (cfg!(unix) && error.raw_os_error() == Some(EIO))
}
