//! Takes file locks that other processes hold for a short time, with a deadline.
//!
//! A process that is suspended while it holds such a lock keeps it, so no caller waits without a
//! limit. The error names the lock and, where the system shows it, the process that holds it.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

use nix::fcntl::OFlag;

use crate::sys::{self, LockHolder};

/// The longest pause between two attempts.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(8);

/// Another process held a lock for longer than the limit.
///
/// It is the inner error ([`io::Error::get_ref`]) of an [`io::Error`] of the kind `TimedOut`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockTimeout {
    /// The locked file or directory.
    pub path: PathBuf,
    /// How long the call waited.
    pub waited: Duration,
    /// The process that holds the lock; `None` where the system does not show it: on macOS, and for
    /// processes of another container.
    pub holder: Option<LockHolder>,
}

impl fmt::Display for LockTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, waited, holder } = self;
        write!(f, "cannot lock {} within {waited:?}: ", path.display())?;
        match holder {
            None => f.write_str("another process holds the lock: find it with `lsof`, and end it"),
            Some(LockHolder { pid, program, is_stopped: false }) => {
                write!(f, "process {pid} ({program}) holds the lock: wait for it, or end it")
            }
            Some(LockHolder { pid, program, is_stopped: true }) => write!(
                f,
                "process {pid} ({program}) holds the lock and is suspended: continue it with \
                 `kill -CONT {pid}`, or end it"
            ),
        }
    }
}

impl std::error::Error for LockTimeout {}

impl LockTimeout {
    /// The timeout that is the inner error of `error`, if it is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// The largest number of bytes of a file that are read: more than a program of Capsa writes.
const MAX_TEXT: u64 = 64 * 1024;

/// How to open a file that may be a foreign one.
pub(super) const FOREIGN: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOFOLLOW);

/// Opens a file of a run directory to look at it. The file may be a foreign one, so this does not
/// wait for the other end of a FIFO and follows no symbolic link.
pub(super) fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(FOREIGN.bits()).open(path)
}

/// The beginning of a file of a run directory.
pub(super) fn read(file: &File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_TEXT).read_to_string(&mut text)?;
    Ok(text)
}

/// Locks `file`, whose path is `path`, waiting at most `limit` for other holders.
///
/// # Errors
///
/// [`LockTimeout`] when the lock is not free by then.
pub(super) fn lock_within(file: &File, path: &Path, limit: Duration) -> io::Result<()> {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => {}
        }
        let left = limit.saturating_sub(begin.elapsed());
        if left.is_zero() {
            let holder = sys::lock_holder(file);
            let timeout = LockTimeout { path: path.to_owned(), waited: limit, holder };
            return Err(io::Error::new(io::ErrorKind::TimedOut, timeout));
        }
        thread::sleep(pause.min(left));
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_within_held_lock_names_the_holder() {
        let held = tempfile::NamedTempFile::new().unwrap();
        held.as_file().lock().unwrap();
        let asks = File::open(held.path()).unwrap();
        let begin = Instant::now();
        let error = lock_within(&asks, held.path(), Duration::from_millis(20)).unwrap_err();
        assert!(begin.elapsed() >= Duration::from_millis(20));
        let timeout = LockTimeout::of(&error).unwrap();
        assert_eq!(timeout.path, held.path());
        if cfg!(target_os = "linux") {
            let holder = timeout.holder.as_ref().unwrap();
            assert_eq!((holder.pid, holder.is_stopped), (std::process::id(), false));
            assert!(error.to_string().contains(&holder.program), "{error}");
        }
        held.as_file().unlock().unwrap();
        lock_within(&asks, held.path(), Duration::ZERO).unwrap();
    }

    #[test]
    fn lock_within_waits_for_a_holder_that_unlocks() {
        let held = tempfile::NamedTempFile::new().unwrap();
        held.as_file().lock().unwrap();
        let asks = File::open(held.path()).unwrap();
        thread::scope(|scope| {
            let waits = scope.spawn(|| lock_within(&asks, held.path(), Duration::from_secs(60)));
            thread::sleep(Duration::from_millis(5));
            held.as_file().unlock().unwrap();
            waits.join().unwrap().unwrap();
        });
    }

    #[test]
    fn lock_timeout_display_has_the_remedy() {
        let holder = LockHolder { pid: 7, program: "capsa".into(), is_stopped: true };
        let mut timeout = LockTimeout {
            path: "/run/capsa/lock".into(),
            waited: Duration::from_secs(5),
            holder: Some(holder),
        };
        assert_eq!(
            timeout.to_string(),
            "cannot lock /run/capsa/lock within 5s: process 7 (capsa) holds the lock and is \
             suspended: continue it with `kill -CONT 7`, or end it"
        );
        timeout.holder = None;
        assert!(timeout.to_string().contains("another process holds the lock"), "{timeout}");
    }
}
