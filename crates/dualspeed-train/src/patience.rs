//! Waiting for threads that read: a read may hang, on a share that is gone or a pipe that nobody writes to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long a run that was told to end still waits for what is nearly there.
const GRACE: Duration = Duration::from_secs(2);

/// After how long a wait is worth a warning, and again after as long again.
const LONG: Duration = Duration::from_secs(60);

/// How often the flag is looked at.
const TICK: Duration = Duration::from_millis(50);

/// What came of waiting.
pub(crate) enum Awaited<T> {
    /// The next item.
    Item(T),
    /// The sender is gone.
    Closed,
    /// Nothing came in time, and the run was told to end.
    Stopped,
}

/// Waits for an item, but not for long once `stop` is set; `what` is for the warning about a wait that takes long.
pub(crate) fn receive<T>(
    receiver: &Receiver<T>,
    stop: Option<&AtomicBool>,
    what: &str,
) -> Awaited<T> {
    let begin = Instant::now();
    let (mut stopped, mut warned) = (None, Duration::ZERO);
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(item) => return Awaited::Item(item),
            Err(RecvTimeoutError::Disconnected) => return Awaited::Closed,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            let since = stopped.get_or_insert_with(Instant::now);
            if since.elapsed() >= GRACE {
                return Awaited::Stopped;
            }
        }
        let waited = begin.elapsed();
        if waited >= warned * 2 && waited >= LONG {
            warned = waited;
            let seconds = waited.as_secs();
            tracing::warn!(
                "waiting for {what} for {seconds} s: is the disk or share that the data is on still there?"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_hangs_is_given_up_once_the_run_is_to_end() {
        let (sender, receiver) = channel();
        sender.send(1).unwrap();
        let stop = AtomicBool::new(true);
        let receive = || receive(&receiver, Some(&stop), "nothing");
        // What is there is taken all the same.
        assert!(matches!(receive(), Awaited::Item(1)));
        let begin = Instant::now();
        assert!(matches!(receive(), Awaited::Stopped));
        assert!(begin.elapsed() >= GRACE && begin.elapsed() < 3 * GRACE);
        drop(sender);
        assert!(matches!(receive(), Awaited::Closed));
    }
}
