//! The private directory of a machine, and what crashes left of others.
//!
//! It holds the machine's sockets, so it is short (a socket's path has 107 bytes on Linux, 103 on
//! macOS), belongs to this user alone (0700), and goes when the machine goes. A lock in it, held by
//! the owner's open file, says whether the owner lives: the kernel drops it however the owner dies,
//! so nobody has to trust a process number. What an owner that died left behind is swept.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use capsa_proto::plan::LONGEST_SOCKET_NAME;
use nix::unistd::Uid;

use crate::random;
use crate::sys::{self, ForkGuard};

/// The lock of one run directory, and of the directory that holds them all.
const LOCK: &str = "lock";
/// How the lock of a run directory begins. A directory without it is not ours to remove.
const LOCK_PREFIX: &str = "capsa ";
/// The children of a run directory's owner: `PID START-TIME` a line.
const CHILDREN: &str = "children";

/// Where run directories are: `$CAPSA_RUN_DIR`, else `$XDG_RUNTIME_DIR/capsa`, else
/// `/tmp/capsa-UID`.
pub fn base() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    named("CAPSA_RUN_DIR")
        .or_else(|| named("XDG_RUNTIME_DIR").map(|dir| dir.join("capsa")))
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/capsa-{}", Uid::effective())))
}

/// A path in [`base`] for a new run directory. Nothing is made yet.
pub fn fresh_path() -> PathBuf {
    base().join(random::name())
}

/// Makes `base` where it is missing, as the first start in it does.
///
/// # Errors
///
/// When it cannot be made or written, belongs to somebody else, or is open to others. The text names
/// it.
pub fn prepare(base: &Path) -> io::Result<()> {
    lock_base(base).map(drop)
}

/// Waits for a turn among those who give machines in `base` names, and holds it until the value is
/// dropped or this process ends. Who looks whether a name is free, and makes a machine of it, within
/// one turn shares it with nobody.
///
/// # Errors
///
/// As [`prepare`].
pub fn lock_names(base: &Path) -> io::Result<NameLock> {
    prepare(base)?;
    // The directory itself is what is locked, so that nothing is left of it.
    let turn = File::open(base)?;
    turn.lock()?;
    Ok(NameLock { _lock: turn })
}

/// A turn among those who give machines names, see [`lock_names`].
#[derive(Debug)]
pub struct NameLock {
    _lock: File,
}

/// Does in `base` what a start does: makes a run directory, and in it a socket with the longest name
/// that a machine's can have. Both are taken away again; `base` itself stays.
///
/// # Errors
///
/// When a start would fail for this.
pub fn check(base: &Path) -> io::Result<()> {
    let run_dir = RunDir::create(&std::path::absolute(base)?.join(random::name()))?;
    let socket = run_dir.path().join("s".repeat(LONGEST_SOCKET_NAME));
    let at = |error: io::Error| {
        let text = format!("cannot make a socket in {}: {error}", run_dir.path().display());
        io::Error::new(error.kind(), text)
    };
    UnixListener::bind(socket).map(drop).map_err(at)
}

/// A run directory that exists as long as this value.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    fork_guard: ForkGuard,
    _lock: File,
}

impl RunDir {
    /// Makes it, and the directory around it where that is missing.
    ///
    /// # Errors
    ///
    /// When it exists, cannot be made, or when the directory around it belongs to somebody else or
    /// is open to others.
    pub fn create(path: &Path) -> io::Result<Self> {
        let base = path.parent().ok_or_else(|| io::Error::other("a run directory has a parent"))?;
        let _base = lock_base(base)?;
        private(false).create(path)?;
        let made = (|| {
            let mut lock = OpenOptions::new().write(true).create_new(true).open(path.join(LOCK))?;
            lock.try_lock()?;
            let me = std::process::id();
            writeln!(lock, "{LOCK_PREFIX}{me} {}", sys::start_time(me).unwrap_or(0))?;
            Ok(lock)
        })();
        match made {
            Ok(lock) => {
                Ok(Self { path: path.to_owned(), fork_guard: ForkGuard::new(), _lock: lock })
            }
            Err(error) => {
                let _ = remove(path);
                Err(error)
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a child down, so that a sweep can end it should the watchdog not have.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn record_child(&self, pid: u32) -> io::Result<()> {
        let start = sys::start_time(pid).unwrap_or(0);
        let mut file =
            OpenOptions::new().append(true).create(true).open(self.path.join(CHILDREN))?;
        writeln!(file, "{pid} {start}")
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.fork_guard.is_same_process() {
            return;
        }
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), "cannot remove the run directory: {error}");
        }
    }
}

/// A run directory, and who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDirEntry {
    /// The directory.
    pub path: PathBuf,
    /// The process that made it.
    pub owner: u32,
    /// The owner lives: it holds its lock. A process that only has its number by now holds none.
    pub is_owned: bool,
    /// Its children that still run, by number and start time.
    pub children: Vec<u32>,
}

/// Every run directory in `base`, owned or left behind, by path. Changes nothing.
///
/// # Errors
///
/// When `base` cannot be read or is not this user's. A `base` that is missing is an empty one.
pub fn list(base: &Path) -> io::Result<Vec<RunDirEntry>> {
    if !base.exists() {
        return Ok(Vec::new());
    }
    // No owner is between making its directory and locking it.
    let _base = lock_base(base)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(base)? {
        let path = entry?.path();
        let Ok(mut lock) = File::open(path.join(LOCK)) else { continue };
        let is_owned = matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock));
        let mut text = String::new();
        if lock.read_to_string(&mut text).is_err() {
            continue;
        }
        let words =
            text.strip_prefix(LOCK_PREFIX).and_then(|words| words.split_whitespace().next());
        let Some(owner) = words.and_then(|owner| owner.parse().ok()) else { continue };
        let children = running_children(&path);
        found.push(RunDirEntry { path, owner, is_owned, children });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// What a sweep found and removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedRunDir {
    /// The run directory of an owner that is gone.
    pub path: PathBuf,
    /// Its children that still ran and were killed.
    pub killed: Vec<u32>,
}

/// Removes what owners that died left in `base`, and kills what they left running.
///
/// `base` may hold other things, whoever named it: only what bears our mark is touched. What cannot
/// be removed is logged and left.
///
/// # Errors
///
/// When `base` cannot be read or is not this user's. A `base` that is missing is an empty one.
pub fn sweep(base: &Path) -> io::Result<Vec<RemovedRunDir>> {
    if !base.exists() {
        return Ok(Vec::new());
    }
    let _base = lock_base(base)?;
    let mut swept = Vec::new();
    for entry in fs::read_dir(base)? {
        let path = entry?.path();
        // Anything here may vanish at any time: owners that end take their directory away.
        if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            continue;
        }
        let Ok(mut lock) = File::open(path.join(LOCK)) else {
            // One that was made a moment before its owner died is empty. Others are not ours.
            if is_run_dir_name(&path) {
                let _ = fs::remove_dir(&path);
            }
            continue;
        };
        // Making a directory and locking it happens under the base's lock, so a directory without
        // a held lock has no owner.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            continue;
        }
        let mut text = String::new();
        let read = lock.read_to_string(&mut text);
        if read.is_err()
            || !(text.starts_with(LOCK_PREFIX) || text.is_empty() && is_run_dir_name(&path))
        {
            continue;
        }
        let killed = kill_children(&path);
        if let Err(error) = remove(&path) {
            tracing::warn!(path = %path.display(), "cannot sweep: {error}");
            continue;
        }
        tracing::info!(path = %path.display(), ?killed, "swept what an owner left behind");
        swept.push(RemovedRunDir { path, killed });
    }
    Ok(swept)
}

/// Removes a run directory, its lock last: until then a sweep knows whose it is.
fn remove(path: &Path) -> io::Result<()> {
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        let removed = match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        removed.or_else(|error| if is_missing(&error) { Ok(()) } else { Err(error) })?;
    }
    fs::remove_dir_all(path)
}

/// Whether [`fresh_path`] could have made it up.
fn is_run_dir_name(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(random::is_name)
}

fn kill_children(run_dir: &Path) -> Vec<u32> {
    let mut killed = running_children(run_dir);
    killed.retain(|pid| sys::signal_group(*pid, nix::sys::signal::Signal::SIGKILL).is_ok());
    killed
}

/// The children that were written down and still run. A number alone may be another process by now;
/// with its start time it is that child.
fn running_children(run_dir: &Path) -> Vec<u32> {
    let children = fs::read_to_string(run_dir.join(CHILDREN)).unwrap_or_default();
    let child = |line: &str| {
        let (pid, start) = line.split_once(' ')?;
        let (pid, start) = (pid.parse().ok()?, start.parse::<u64>().ok()?);
        (start != 0 && sys::start_time(pid) == Some(start)).then_some(pid)
    };
    children.lines().filter_map(child).collect()
}

/// Makes `base` if need be, refuses it when it is not ours alone, and holds its lock.
fn lock_base(base: &Path) -> io::Result<File> {
    let cannot = |what: &str, error: io::Error| {
        io::Error::new(error.kind(), format!("cannot {what} {}: {error}", base.display()))
    };
    let made = private(true).create(base);
    let found = match base.symlink_metadata() {
        Ok(found) => found,
        Err(error) => return Err(cannot("make the directory", made.err().unwrap_or(error))),
    };
    let not_ours = |why: &str| {
        let text = format!("{} {why}", base.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    };
    if !found.is_dir() {
        return not_ours("is not a directory");
    }
    if found.uid() != Uid::effective().as_raw() {
        return not_ours("belongs to another user");
    }
    if found.mode() & 0o022 != 0 {
        return not_ours("can be written by other users");
    }
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(base.join(LOCK));
    let lock = lock.map_err(|error| cannot("write in", error))?;
    lock.lock()?;
    Ok(lock)
}

fn private(parents: bool) -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700).recursive(parents);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_dir_is_private_and_goes_with_its_value() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("b").join("one");
        let run_dir = RunDir::create(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        drop(run_dir);
        assert!(!path.exists());
    }

    #[test]
    fn a_sweep_takes_only_what_nobody_owns() {
        let base = tempfile::tempdir().unwrap();
        let owned = RunDir::create(&base.path().join("owned")).unwrap();
        let left = base.path().join("left");
        std::mem::forget(RunDir::create(&left).unwrap()._lock.try_clone().unwrap());
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "capsa 1 1\n").unwrap();
        let swept = sweep(base.path()).unwrap();
        assert_eq!(swept, [RemovedRunDir { path: left, killed: vec![] }]);
        assert!(owned.path().exists());
    }

    #[test]
    fn a_list_tells_owners_from_what_they_left() {
        let base = tempfile::tempdir().unwrap();
        let owned = RunDir::create(&base.path().join("owned")).unwrap();
        let me = std::process::id();
        owned.record_child(me).unwrap();
        let left = base.path().join("left");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), format!("capsa {me} 1\n")).unwrap();
        // The number of a process that lives, and another start time.
        fs::write(left.join(CHILDREN), format!("{me} 1\nnonsense\n")).unwrap();
        fs::create_dir(base.path().join("photos")).unwrap();
        let found = list(base.path()).unwrap();
        let want = |path: &Path, is_owned, children| RunDirEntry {
            path: path.to_owned(),
            owner: me,
            is_owned,
            children,
        };
        assert_eq!(found, [want(&left, false, vec![]), want(owned.path(), true, vec![me])]);
        assert_eq!(list(&base.path().join("none")).unwrap(), []);
    }

    #[test]
    fn a_sweep_takes_nothing_that_is_not_ours() {
        let base = tempfile::tempdir().unwrap();
        for (dir, file, text) in [
            ("photos", "one", "dear"),
            ("other", LOCK, "1234\n"),
            ("empty lock", LOCK, ""),
            ("abcd0123", "one", "by chance a name of ours"),
        ] {
            fs::create_dir(base.path().join(dir)).unwrap();
            fs::write(base.path().join(dir).join(file), text).unwrap();
        }
        fs::create_dir(base.path().join("empty")).unwrap();
        let before = fs::read_dir(base.path()).unwrap().count();
        assert_eq!(sweep(base.path()).unwrap(), []);
        // And the lock of the base itself.
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), before + 1);
        assert!(base.path().join("photos/one").exists());
    }

    #[test]
    fn a_sweep_takes_what_was_only_just_begun() {
        let base = tempfile::tempdir().unwrap();
        let (empty, unwritten) =
            (base.path().join(random::name()), base.path().join(random::name()));
        fs::create_dir(&empty).unwrap();
        fs::create_dir(&unwritten).unwrap();
        fs::write(unwritten.join(LOCK), "").unwrap();
        sweep(base.path()).unwrap();
        assert!(!empty.exists() && !unwritten.exists());
    }

    #[test]
    fn a_base_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = RunDir::create(&base.path().join("x")).unwrap_err();
        assert!(error.to_string().contains("written by other users"), "{error}");
    }

    #[test]
    fn what_keeps_a_start_from_its_directory_is_found_before_one() {
        let base = tempfile::tempdir().unwrap();
        let good = base.path().join("a/b");
        check(&good).unwrap();
        assert_eq!(fs::read_dir(&good).unwrap().count(), 1, "nothing is left but the lock");
        let file = base.path().join("file");
        fs::write(&file, "").unwrap();
        let deep = base.path().join("d".repeat(100));
        for (at, why) in [
            (file.as_path(), "is not a directory"),
            (&file.join("below"), "cannot make the directory"),
            (Path::new("/proc/nope"), "cannot make the directory /proc/nope: "),
            (&deep, "cannot make a socket in "),
        ] {
            let error = check(at).unwrap_err().to_string();
            assert!(error.contains(why), "{at:?}: {error}");
        }
        assert!(prepare(&file).is_err() && prepare(&good).is_ok());
    }

    #[test]
    fn an_existing_directory_is_not_taken_over() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("x");
        let _first = RunDir::create(&path).unwrap();
        assert_eq!(RunDir::create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(path.exists());
    }
}
