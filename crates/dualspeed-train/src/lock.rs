//! The lock of a run directory: two processes must not write one run.
//!
//! `run.lock` holds who writes: process id, host, when it began. The file is locked with the system's own lock as well,
//! which ends with the process, whatever ends it; what is in the file tells whom to ask, and is what counts on file systems
//! that share no locks between hosts. A lock that nobody holds any more is taken over, and said to be.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use dualspeed_core::date;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::run_files::LOCK_FILE;

/// The process that writes a run directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its process id.
    pub pid: u32,
    /// The host it runs on.
    pub host: String,
    /// When it took the lock, in seconds since 1970.
    pub started: u64,
    /// What the system says of the process's beginning, so that another process of the same id is not taken for it: the id
    /// of the boot and the clock ticks since. Empty where the system does not say.
    pub process: String,
}

impl Owner {
    fn this_process() -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH);
        let started = started.map_or(0, |since| since.as_secs());
        let pid = std::process::id();
        Self { pid, host: host(), started, process: process_start(pid).unwrap_or_default() }
    }

    /// Whether that process still runs; `None` where that cannot be seen from here.
    fn is_alive(&self) -> Option<bool> {
        if self.host != host() {
            return None;
        }
        match process_start(self.pid) {
            Some(start) => Some(start == self.process),
            // Either there is no such process, or the system does not say: then this process has no start either.
            None => process_start(std::process::id()).map(|_| false),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pid, host, started, .. } = self;
        write!(f, "process {pid} on {host} since {}", utc(*started))
    }
}

/// The lock while it is held; it is given up when this is dropped.
#[derive(Debug)]
pub(crate) struct RunLock {
    path: PathBuf,
    /// Whether the directory was made for the lock.
    made: bool,
    _file: File,
}

impl RunLock {
    /// Takes the lock of a run directory, which is made if it is not there.
    ///
    /// # Errors
    /// `RunLocked` names the process that holds it; `Io`.
    pub(crate) fn take(run_dir: &Path) -> Result<Self, TrainError> {
        let made = !run_dir.exists();
        fs::create_dir_all(run_dir).map_err(TrainError::io("create", run_dir))?;
        let path = run_dir.join(LOCK_FILE);
        loop {
            if let Some(file) = try_take(run_dir, &path)? {
                return Ok(Self { path, made, _file: file });
            }
        }
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Best effort: a lock that stays is found to be nobody's.
        let _ = fs::remove_file(&self.path);
        if self.made
            && let Some(dir) = self.path.parent()
        {
            // Nothing was written: the directory goes as it came. One that is not empty stays.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// One attempt; `None` when the file was removed by the process that held it until now.
fn try_take(run_dir: &Path, path: &Path) -> Result<Option<File>, TrainError> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path);
    let mut file = file.map_err(TrainError::io("open", path))?;
    let locked = file.try_lock();
    let mut text = String::new();
    // What cannot be read or parsed names nobody.
    let _ = file.read_to_string(&mut text);
    let owner: Option<Owner> = serde_json::from_str(&text).ok();
    let held = |advice: String| {
        let owner = owner.as_ref().map_or("another process".into(), Owner::to_string);
        TrainError::RunLocked { run: run_dir.to_owned(), owner, advice }
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(held(String::new())),
        // A file system without locks: what is in the file has to do.
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
        Err(TryLockError::Error(error)) => return Err(TrainError::io("lock", path)(error)),
    }
    if !is_at(&file, path) {
        return Ok(None);
    }
    if let Some(owner) = &owner {
        match owner.is_alive() {
            Some(false) => tracing::warn!(
                "{} was left by {owner}, which no longer runs; the lock is taken over",
                path.display()
            ),
            // Its lock is not held: it does not write here any more.
            Some(true) if owner.pid == std::process::id() => {}
            Some(true) => return Err(held(String::new())),
            None => {
                let path = path.display();
                let advice =
                    format!("; it is on another host: if it no longer runs there, delete {path}");
                return Err(held(advice));
            }
        }
    }
    let text = serde_json::to_string(&Owner::this_process()).map_err(std::io::Error::from);
    let written = text.and_then(|text| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(TrainError::io("write", path))?;
    Ok(Some(file))
}

/// Whether an open file is the one at `path`, and not one that was removed since.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Files that are open cannot be removed.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

fn host() -> String {
    let file = |path| fs::read_to_string(path).ok();
    let variable = |name| std::env::var(name).ok();
    let name = file("/proc/sys/kernel/hostname").or_else(|| file("/etc/hostname"));
    let name = name.or_else(|| variable("HOSTNAME")).or_else(|| variable("COMPUTERNAME"));
    name.map_or("an unknown host".into(), |name| name.trim().to_owned())
}

/// Which boot a process began in, and when in it; `None` if it does not run, or where the system does not say.
fn process_start(pid: u32) -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything; 20 fields after its end is the time of the start (proc_pid_stat(5)).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // A process that ended and was not waited for does not run.
    let state = fields.next()?;
    let ticks = fields.nth(18)?;
    (!matches!(state, "Z" | "X")).then(|| format!("{} {ticks}", boot.trim()))
}

/// A time in seconds since 1970 as date and time of day.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let day = date::iso(i64::try_from(days).unwrap_or_default());
    format!("{day} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc(951_868_800), "2000-03-01 00:00:00 UTC");
        assert_eq!(utc(1_798_761_599), "2026-12-31 23:59:59 UTC");
    }

    #[test]
    fn a_directory_is_locked_once_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("a/run");
        let lock = RunLock::take(&run).unwrap();
        let error = RunLock::take(&run).unwrap_err();
        assert!(matches!(error, TrainError::RunLocked { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        drop(lock);
        assert!(!run.exists());
        fs::create_dir_all(&run).unwrap();
        drop(RunLock::take(&run).unwrap());
        assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_lock_that_nobody_holds_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK_FILE);
        let this = Owner::this_process();
        assert_eq!(this.is_alive(), Some(true));
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        // Not waited for: it ended, and its id is still taken.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let stale = [
            Owner { pid: ended.id(), process: "a boot 1".into(), ..this.clone() },
            // A process that runs has that id now.
            Owner { pid: 1, process: "a boot 1".into(), ..this.clone() },
            Owner { pid: u32::MAX, ..this.clone() },
        ];
        let mut texts: Vec<String> =
            stale.iter().map(|owner| serde_json::to_string(owner).unwrap()).collect();
        texts.extend(["".into(), "{\"pid\":".into()]);
        for text in texts {
            fs::write(&path, &text).unwrap();
            let lock = RunLock::take(dir.path()).expect(&text);
            let written: Owner = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!((written.pid, written.process), (this.pid, this.process.clone()));
            drop(lock);
        }
        ended.wait().unwrap();
        // Of another host nothing is known here.
        let other = Owner { host: "elsewhere".into(), ..this };
        fs::write(&path, serde_json::to_string(&other).unwrap()).unwrap();
        let message = RunLock::take(dir.path()).unwrap_err().to_string();
        for words in ["elsewhere", "delete", LOCK_FILE] {
            assert!(message.contains(words), "{message}");
        }
    }
}
