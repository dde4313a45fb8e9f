//! The private directory of a VM, and the sweep of directories that crashes left behind.
//!
//! A run directory holds the VM's sockets, so its path is short (a socket path has 107 bytes on
//! Linux, 103 on macOS). It is private to the user (0700), is created when the VM is built, and is
//! removed at the end of the VM. The owner holds a lock in it: the kernel releases the lock when the
//! owner dies, so no process id has to be trusted. A sweep removes the directories of dead owners.
//!
//! Functions that take the lock of the base directory block, at most [`LOCK_TIMEOUT`]. Do not call
//! them from an event loop. The methods of an existing [`RunDir`] take no such lock.

mod lock;
mod sweep;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use capsa_proto::plan::LONGEST_SOCKET_NAME;
use nix::unistd::Uid;

use crate::context;
use crate::random;
use crate::sys::{self, ForkGuard};

pub use crate::sys::LockHolder;
pub use lock::LockTimeout;
pub use sweep::{RemovedRunDir, SLICE, sweep};

/// How long a function of this module waits for the lock of the base directory. Processes of Capsa
/// hold it for [`SLICE`] or less; a process that is suspended keeps it.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long [`lock_names`] waits. Each `capsa run --name` holds the lock while it starts its VM.
const NAMES_TIMEOUT: Duration = Duration::from_secs(30);

/// The name of the lock file in each run directory, and in the base directory.
const LOCK: &str = "lock";
/// How the lock file of a run directory begins. A directory without it is never removed.
const LOCK_PREFIX: &str = "capsa ";
/// The file with the owner's child processes: one `PID START-TIME` per line. It exists from the first
/// process of the VM on.
const CHILDREN: &str = "children";
/// How the symbolic links begin that name the sockets of forwards, which are outside of the directory.
const FORWARD_PREFIX: &str = "forward_";

/// The base directory of run directories: `$CAPSA_RUN_DIR`, otherwise `$XDG_RUNTIME_DIR/capsa`,
/// otherwise `/tmp/capsa-UID`.
pub fn base() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    named("CAPSA_RUN_DIR")
        .or_else(|| named("XDG_RUNTIME_DIR").map(|dir| dir.join("capsa")))
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/capsa-{}", Uid::effective())))
}

/// The environment variable that names this base directory; `None` for another directory.
fn variable_of(base: &Path) -> Option<&'static str> {
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let named = ["CAPSA_RUN_DIR", "XDG_RUNTIME_DIR"].into_iter().find(is_set);
    named.filter(|_| std::path::absolute(self::base()).is_ok_and(|named| named == base))
}

/// A path in [`base`] for a new run directory. Creates nothing.
pub fn fresh_path() -> PathBuf {
    base().join(random::name())
}

/// Creates `base` if it is missing, as the first build does, but not its parent. Takes no lock.
///
/// # Errors
///
/// When its parent is missing, or it cannot be created or written, belongs to another user, or is writable by others. The
/// text names it.
pub fn prepare(base: &Path) -> io::Result<()> {
    open_base(base).map(drop)
}

/// Locks the names of VMs in `base`, waiting for other holders, until the value is dropped or this
/// process exits. Check that a name is free and start its VM under one lock, so that the name is
/// unique.
///
/// # Errors
///
/// The same as [`prepare`]; [`LockTimeout`] when other processes hold the lock for 30 seconds.
pub fn lock_names(base: &Path) -> io::Result<NameLock> {
    prepare(base)?;
    // The lock is on the directory itself, so it leaves no file behind.
    let names = File::open(base)?;
    lock::lock_within(&names, base, NAMES_TIMEOUT)?;
    Ok(NameLock { _lock: names })
}

/// A lock on the names of VMs; see [`lock_names`].
#[derive(Debug)]
pub struct NameLock {
    _lock: File,
}

/// Does what a build and a start do in `base`: creates a run directory and a socket with the longest name
/// that a VM uses. Removes both; `base` itself stays.
///
/// # Errors
///
/// When a build or a start would fail for the same reason.
pub fn check(base: &Path) -> io::Result<()> {
    let run_dir = RunDir::create(&std::path::absolute(base)?.join(random::name()))?;
    let socket = run_dir.path().join("s".repeat(LONGEST_SOCKET_NAME));
    let at = |error| {
        context::failed(format!("cannot make a socket in {}", run_dir.path().display()), error)
    };
    UnixListener::bind(socket).map(drop).map_err(at)
}

/// Listens on a socket in a run directory. On Linux the path may have any length.
///
/// # Errors
///
/// When the path is in use or too long, and when the directory does not exist. The text names the path.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    sys::listen(socket).map(UnixListener::from)
}

/// Connects to a socket in a run directory. On Linux the path may have any length.
///
/// # Errors
///
/// When nothing listens there, and when the path is too long.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    sys::connect_blocking(socket)
}

/// A run directory that exists while this value lives.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    fork_guard: ForkGuard,
    lock: File,
}

impl RunDir {
    /// Creates the directory, and its base directory if that is missing, but not the parent of that. Blocks while other processes
    /// hold the lock of the base directory, at most [`LOCK_TIMEOUT`].
    ///
    /// # Errors
    ///
    /// When the directory exists or cannot be created, or when its base directory belongs to
    /// another user or is writable by others. [`LockTimeout`] when the lock is not free in time.
    pub fn create(path: &Path) -> io::Result<Self> {
        let base = base_of(path)?;
        let _base = lock_base(base, LOCK_TIMEOUT)?;
        let cannot = |error| {
            context::failed(format!("cannot create the run directory {}", path.display()), error)
        };
        private().create(path).map_err(cannot)?;
        let made = (|| {
            let mut lock = OpenOptions::new().write(true).create_new(true).open(path.join(LOCK))?;
            lock.try_lock()?;
            let me = std::process::id();
            writeln!(lock, "{LOCK_PREFIX}{me} {}", sys::start_time(me).unwrap_or(0))?;
            Ok(lock)
        })();
        match made {
            Ok(lock) => Ok(Self { path: path.to_owned(), fork_guard: ForkGuard::new(), lock }),
            Err(error) => {
                let _ = remove(path);
                Err(cannot(error))
            }
        }
    }

    /// Creates the directory of a VM that is being built, as [`RunDir::create`], and spends at most
    /// [`SLICE`] on the removal of directories that crashes left behind. The builds of a program
    /// continue one sweep, which ends when it has looked at every directory once. A sweep waits for
    /// no lock and fails no build. If the file system is full, the sweep comes first, from its beginning.
    ///
    /// # Errors
    ///
    /// The same as [`RunDir::create`].
    pub fn create_and_sweep(path: &Path) -> io::Result<Self> {
        let base = base_of(path)?;
        match Self::create(path) {
            Err(error) if is_full(&error) => {
                sweep::restart(base);
                sweep::sweep_slice(base);
                Self::create(path)
            }
            created => {
                let created = created?;
                sweep::sweep_slice(base);
                Ok(created)
            }
        }
    }

    /// Checks that the directory was not removed since it was created. Does not block.
    ///
    /// # Errors
    ///
    /// When it was removed, or replaced by another one.
    pub(crate) fn check_exists(&self) -> io::Result<()> {
        let ours = self.lock.metadata()?;
        let found = fs::symlink_metadata(self.path.join(LOCK));
        if found.is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino())) {
            return Ok(());
        }
        let text = format!(
            "the run directory {} was removed after the VM was built: build the VM again",
            self.path.display()
        );
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records the socket of a forward, so that a sweep can remove it after this process was killed.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written.
    pub fn record_forward(&self, index: usize, socket: &Path) -> io::Result<()> {
        let link = self.path.join(format!("{FORWARD_PREFIX}{index}"));
        std::os::unix::fs::symlink(socket, link)
    }

    /// Records a child process, so that a sweep can kill it if the watchdog did not.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn record_child(&self, pid: u32) -> io::Result<()> {
        let start = sys::start_time(pid).unwrap_or(0);
        let mut options = OpenOptions::new();
        options.append(true).create(true).custom_flags(lock::FOREIGN.bits());
        let mut file = options.open(self.path.join(CHILDREN))?;
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

/// A run directory and its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDirEntry {
    /// The path of the directory.
    pub path: PathBuf,
    /// The process id of its owner.
    pub owner: u32,
    /// The owner is alive: it holds the lock. A process that reuses the process id holds no lock.
    pub is_owned: bool,
    /// A process of the VM was started. If not, the VM was built and waits for its start.
    pub is_started: bool,
    /// The running child processes, identified by process id and start time.
    pub children: Vec<u32>,
}

/// Lists all run directories in `base`, owned or left behind, sorted by path. Changes nothing.
///
/// # Errors
///
/// When `base` cannot be read or belongs to another user, or when another process holds its lock for
/// more than [`LOCK_TIMEOUT`]. A missing `base` has no entries; its parent must exist.
pub fn list(base: &Path) -> io::Result<Vec<RunDirEntry>> {
    if !base.exists() {
        return missing_parent(base).map_or(Ok(Vec::new()), Err);
    }
    check_base(base)?;
    // Under this lock, no owner is between creating its directory and locking it. A directory that cannot
    // be written may have no lock file, and no owner creates a directory in it.
    let lock = match open_lock(base) {
        Err(error) if is_read_only(&error) => lock::open(&base.join(LOCK)).ok(),
        lock => Some(lock?),
    };
    if let Some(lock) = &lock {
        lock::lock_within(lock, &base.join(LOCK), LOCK_TIMEOUT)?;
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(base)? {
        let path = entry?.path();
        let Ok(lock) = lock::open(&path.join(LOCK)) else { continue };
        let is_owned = matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock));
        let Ok(text) = lock::read(&lock) else { continue };
        let words =
            text.strip_prefix(LOCK_PREFIX).and_then(|words| words.split_whitespace().next());
        let Some(owner) = words.and_then(|owner| owner.parse().ok()) else { continue };
        let (is_started, children) = (path.join(CHILDREN).exists(), running_children(&path));
        found.push(RunDirEntry { path, owner, is_owned, is_started, children });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Removes a run directory, the lock file last: until then a sweep can identify it.
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

/// Whether [`fresh_path`] could have returned this path.
fn is_run_dir_name(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(random::is_name)
}

fn kill_children(run_dir: &Path) -> Vec<u32> {
    let mut killed = running_children(run_dir);
    killed.retain(|pid| sys::signal_group(*pid, nix::sys::signal::Signal::SIGKILL).is_ok());
    killed
}

/// The recorded children that still run. A process id alone may have been reused; the start time
/// identifies the child.
fn running_children(run_dir: &Path) -> Vec<u32> {
    let children = lock::open(&run_dir.join(CHILDREN)).and_then(|file| lock::read(&file));
    let children = children.unwrap_or_default();
    let child = |line: &str| {
        let (pid, start) = line.split_once(' ')?;
        let (pid, start) = (pid.parse().ok()?, start.parse::<u64>().ok()?);
        (start != 0 && sys::start_time(pid) == Some(start)).then_some(pid)
    };
    children.lines().filter_map(child).collect()
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn base_of(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other("invalid run directory: the path has no parent"))
}

/// Opens the lock file of `base`, as [`open_base`], and locks it within `limit`.
fn lock_base(base: &Path, limit: Duration) -> io::Result<File> {
    let lock = open_base(base)?;
    lock::lock_within(&lock, &base.join(LOCK), limit)?;
    Ok(lock)
}

/// Prepares `base`, as [`check_base`], and opens its lock file.
fn open_base(base: &Path) -> io::Result<File> {
    check_base(base)?;
    open_lock(base)
}

fn open_lock(base: &Path) -> io::Result<File> {
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(base.join(LOCK));
    lock.map_err(|error| cannot("write in", base, error))
}

/// Whether nothing can be created in the directory for which a call returned this error.
fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

/// Says what failed, and the variable that `base` comes from.
fn cannot(what: &str, base: &Path, error: io::Error) -> io::Error {
    let variable = variable_of(base).map(|name| format!(" ({name})")).unwrap_or_default();
    context::failed(format!("cannot {what} {}{variable}", base.display()), error)
}

/// The error for a base directory whose parent does not exist.
fn missing_parent(base: &Path) -> Option<io::Error> {
    let parent = base.parent().filter(|parent| !parent.exists())?;
    let text = format!("{} does not exist", parent.display());
    Some(cannot("make the directory", base, io::Error::new(io::ErrorKind::NotFound, text)))
}

/// Creates `base` if needed, without its parents: a misspelt variable must not create directories at
/// unexpected places. Rejects it unless it is private to this user.
fn check_base(base: &Path) -> io::Result<()> {
    let made = private().create(base);
    let found = match base.symlink_metadata() {
        Ok(found) => found,
        Err(error) => {
            let error = cannot("make the directory", base, made.err().unwrap_or(error));
            return Err(missing_parent(base).unwrap_or(error));
        }
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
    Ok(())
}

fn private() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_dir_is_private_and_removed_on_drop() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("b").join("one");
        let run_dir = RunDir::create(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        drop(run_dir);
        assert!(!path.exists());
    }

    #[test]
    fn record_child_foreign_file_is_an_error() {
        let base = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(&base.path().join("x")).unwrap();
        let other = base.path().join("other");
        std::os::unix::fs::symlink(&other, run_dir.path().join(CHILDREN)).unwrap();
        assert!(run_dir.record_child(std::process::id()).is_err());
        assert!(!other.exists(), "it followed a link");
    }

    #[test]
    fn list_distinguishes_owned_and_leftover() {
        let base = tempfile::tempdir().unwrap();
        let owned = RunDir::create(&base.path().join("owned")).unwrap();
        let me = std::process::id();
        owned.record_child(me).unwrap();
        let left = base.path().join("left");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), format!("capsa {me} 1\n")).unwrap();
        // The process id of a running process, with another start time.
        fs::write(left.join(CHILDREN), format!("{me} 1\nnonsense\n")).unwrap();
        fs::create_dir(base.path().join("photos")).unwrap();
        let want = |path: &Path, is_owned, is_started, children| RunDirEntry {
            path: path.to_owned(),
            owner: me,
            is_owned,
            is_started,
            children,
        };
        let built = RunDir::create(&base.path().join("waits")).unwrap();
        let all = [
            want(&left, false, true, vec![]),
            want(owned.path(), true, true, vec![me]),
            want(built.path(), true, false, vec![]),
        ];
        assert_eq!(list(base.path()).unwrap(), all);
        assert_eq!(list(&base.path().join("none")).unwrap(), []);
    }

    #[test]
    fn create_in_writable_base_is_rejected() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = RunDir::create(&base.path().join("x")).unwrap_err();
        assert!(error.to_string().contains("written by other users"), "{error}");
    }

    #[test]
    fn check_finds_what_would_fail_a_start() {
        let base = tempfile::tempdir().unwrap();
        let good = base.path().join("a");
        check(&good).unwrap();
        assert_eq!(fs::read_dir(&good).unwrap().count(), 1, "nothing is left but the lock");
        let file = base.path().join("file");
        fs::write(&file, "").unwrap();
        let deep = base.path().join("d".repeat(100));
        for (at, why) in [
            (file.as_path(), "is not a directory"),
            (&file.join("below"), "cannot make the directory"),
            (Path::new("/proc/nope"), "cannot make the directory /proc/nope: "),
            (&base.path().join("none/b"), "none does not exist"),
            (&deep, "cannot make a socket in "),
        ] {
            let error = check(at).unwrap_err().to_string();
            assert!(error.contains(why), "{at:?}: {error}");
        }
        assert!(prepare(&file).is_err() && prepare(&good).is_ok());
        assert!(!base.path().join("none").exists());
    }

    #[test]
    fn check_exists_directory_removed_is_an_error() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("x");
        let run_dir = RunDir::create(&path).unwrap();
        run_dir.check_exists().unwrap();
        fs::remove_dir_all(&path).unwrap();
        let error = run_dir.check_exists().unwrap_err();
        assert!(error.to_string().contains("was removed after the VM was built"), "{error}");
        // Another directory of the same name is not ours.
        fs::create_dir(&path).unwrap();
        fs::write(path.join(LOCK), "").unwrap();
        assert_eq!(run_dir.check_exists().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn lock_base_held_lock_is_a_timeout() {
        let base = tempfile::tempdir().unwrap();
        let held = lock_base(base.path(), Duration::ZERO).unwrap();
        let error = lock_base(base.path(), Duration::from_millis(1)).unwrap_err();
        assert_eq!(LockTimeout::of(&error).unwrap().path, base.path().join(LOCK));
        // What a build checks before it creates the run directory does not wait.
        prepare(base.path()).unwrap();
        drop(held);
    }

    #[test]
    fn create_existing_directory_is_an_error() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("x");
        let _first = RunDir::create(&path).unwrap();
        assert_eq!(RunDir::create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(path.exists());
    }
}
