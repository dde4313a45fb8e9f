//! Removes the run directories of dead owners, in slices.
//!
//! A sweep needs the lock of the base directory, for which other builds wait. So it holds the lock
//! for at most [`SLICE`] at a time, plus the removal of one directory, and continues after a pause.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, TryLockError as PoisonedOrBusy};
use std::thread;
use std::time::{Duration, Instant};

use super::lock::{self, LONGEST_PAUSE};
use super::{
    FORWARD_PREFIX, LOCK, LOCK_PREFIX, LOCK_TIMEOUT, is_run_dir_name, kill_children, lock_base,
    missing_parent, open_base, remove,
};
use crate::network::is_abandoned;

/// The longest time for which a sweep holds the lock of the base directory without a pause. A build
/// sweeps for at most this time.
pub const SLICE: Duration = Duration::from_millis(20);

/// The largest number of entries of the base directory that the builds of one program look at.
const MAX_ENTRIES: usize = 16 * 1024;

/// The sweeps that the builds of this program share, by base directory.
static SWEEPS: Mutex<BTreeMap<PathBuf, Sweep>> = Mutex::new(BTreeMap::new());

/// A run directory that a sweep removed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemovedRunDir {
    /// The path of the directory.
    pub path: PathBuf,
    /// Its child processes that were still running and were killed.
    pub killed: Vec<u32>,
}

/// Removes the run directories of dead owners in `base`, and kills their running children.
///
/// `base` may contain other files: only directories with Capsa's lock file are touched. A directory
/// that cannot be removed is logged and skipped.
///
/// # Errors
///
/// When `base` cannot be read or belongs to another user, or when another process holds its lock
/// for more than [`LOCK_TIMEOUT`]. A missing `base` is not an error.
pub fn sweep(base: &Path) -> io::Result<Vec<RemovedRunDir>> {
    if !base.exists() {
        return missing_parent(base).map_or(Ok(Vec::new()), Err);
    }
    let mut removed = Vec::new();
    let mut sweep = None;
    loop {
        let base_lock = lock_base(base, LOCK_TIMEOUT)?;
        let sweep = match &mut sweep {
            Some(sweep) => sweep,
            none => none.insert(Sweep::new(base, usize::MAX)?),
        };
        sweep.advance(Instant::now() + SLICE, &mut removed);
        drop(base_lock);
        if sweep.is_done() {
            return Ok(removed);
        }
        // Longer than a waiting process pauses between two attempts.
        thread::sleep(LONGEST_PAUSE + Duration::from_millis(2));
    }
}

/// Sweeps `base` for at most [`SLICE`], if its lock is free. The calls of a program continue one
/// sweep, which ends when it has seen each entry once. A failure is logged: it concerns no new VM.
pub(super) fn sweep_slice(base: &Path) {
    let mut sweeps = match SWEEPS.try_lock() {
        Ok(sweeps) => sweeps,
        Err(PoisonedOrBusy::Poisoned(sweeps)) => sweeps.into_inner(),
        Err(PoisonedOrBusy::WouldBlock) => return,
    };
    if sweeps.get(base).is_some_and(Sweep::is_done) {
        return;
    }
    let mut advance = || {
        let base_lock = open_base(base)?;
        if base_lock.try_lock().is_err() {
            return Ok(());
        }
        let sweep = match sweeps.get_mut(base) {
            Some(sweep) => sweep,
            None => {
                let sweep = Sweep::new(base, MAX_ENTRIES)?;
                sweeps.entry(base.to_owned()).or_insert(sweep)
            }
        };
        sweep.advance(Instant::now() + SLICE, &mut Vec::new());
        Ok::<_, io::Error>(())
    };
    if let Err(error) = advance() {
        tracing::warn!("cannot sweep {}: {error}", base.display());
    }
}

/// Makes the next [`sweep_slice`] begin a new sweep if the last one has ended.
pub(super) fn restart(base: &Path) {
    let mut sweeps = SWEEPS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if sweeps.get(base).is_some_and(Sweep::is_done) {
        sweeps.remove(base);
    }
}

/// A sweep that continues where it stopped.
#[derive(Debug)]
struct Sweep {
    /// The entries that it has not looked at.
    left: Vec<PathBuf>,
}

impl Sweep {
    /// A sweep of at most `limit` entries of `base`.
    fn new(base: &Path, limit: usize) -> io::Result<Self> {
        let left: io::Result<_> =
            fs::read_dir(base)?.take(limit).map(|entry| Ok(entry?.path())).collect();
        Ok(Self { left: left? })
    }

    fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// Removes directories until `deadline`. The caller holds the lock of the base directory.
    fn advance(&mut self, deadline: Instant, removed: &mut Vec<RemovedRunDir>) {
        while Instant::now() < deadline
            && let Some(path) = self.left.pop()
        {
            removed.extend(remove_unowned(path));
        }
    }
}

/// Removes the directory if it is a run directory whose owner is dead. The caller holds the lock of
/// the base directory.
fn remove_unowned(path: PathBuf) -> Option<RemovedRunDir> {
    // Entries may vanish at any time: owners remove their directories.
    if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return None;
    }
    let Ok(lock) = lock::open(&path.join(LOCK)) else {
        // An owner that died right after creating its directory leaves it empty. Other directories
        // are not Capsa's.
        if is_run_dir_name(&path) {
            let _ = fs::remove_dir(&path);
        }
        return None;
    };
    // A directory is created and locked under the base lock, so a directory whose lock is free has
    // no owner. If the lock cannot be tried, there may be one.
    lock.try_lock().ok()?;
    let text = lock::read(&lock).ok()?;
    if !(text.starts_with(LOCK_PREFIX) || text.is_empty() && is_run_dir_name(&path)) {
        return None;
    }
    let killed = kill_children(&path);
    remove_forwards(&path);
    if let Err(error) = remove(&path) {
        tracing::warn!(path = %path.display(), "cannot remove a leftover run directory: {error}");
        return None;
    }
    tracing::info!(path = %path.display(), ?killed, "swept the run directory of a dead owner");
    Some(RemovedRunDir { path, killed })
}

/// Removes the sockets of forwards that no process listens on.
fn remove_forwards(run_dir: &Path) {
    let Ok(entries) = fs::read_dir(run_dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(FORWARD_PREFIX.as_bytes())
            && let Ok(socket) = fs::read_link(entry.path())
            && is_abandoned(&socket)
            && let Err(error) = fs::remove_file(&socket)
        {
            tracing::warn!(path = %socket.display(), "cannot remove a leftover socket: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CHILDREN, RunDir};
    use super::*;
    use crate::random;

    fn leftover(path: &Path) {
        fs::create_dir(path).unwrap();
        fs::write(path.join(LOCK), "capsa 1 1\n").unwrap();
        fs::write(path.join(CHILDREN), "").unwrap();
    }

    #[test]
    fn sweep_removes_only_unowned_directories() {
        let base = tempfile::tempdir().unwrap();
        let owned = RunDir::create(&base.path().join("owned")).unwrap();
        let left = base.path().join("left");
        leftover(&left);
        let swept = sweep(base.path()).unwrap();
        assert_eq!(swept, [RemovedRunDir { path: left, killed: vec![] }]);
        assert!(owned.path().exists());
    }

    #[test]
    fn attack_47_sweep_removes_sockets_of_dead_owners() {
        use std::os::unix::net::UnixListener;
        let (base, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let left = base.path().join("left");
        leftover(&left);
        let at = ["dead", "live", "file"].map(|name| outside.path().join(name));
        drop(UnixListener::bind(&at[0]).unwrap());
        let _live = UnixListener::bind(&at[1]).unwrap();
        fs::write(&at[2], "of the user").unwrap();
        for (n, path) in at.iter().enumerate() {
            std::os::unix::fs::symlink(path, left.join(format!("{FORWARD_PREFIX}{n}"))).unwrap();
        }
        sweep(base.path()).unwrap();
        assert_eq!(at.map(|path| path.exists()), [false, true, true]);
        assert!(!left.exists());
    }

    #[test]
    fn sweep_leaves_foreign_files() {
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
        // Plus the lock file of the base directory.
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), before + 1);
        assert!(base.path().join("photos/one").exists());
    }

    #[test]
    fn sweep_and_list_never_wait_for_a_foreign_lock_file() {
        let base = tempfile::tempdir().unwrap();
        let foreign = |name: &str| {
            fs::create_dir(base.path().join(name)).unwrap();
            base.path().join(name).join(LOCK)
        };
        nix::unistd::mkfifo(&foreign("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", foreign("link")).unwrap();
        let path = base.path().to_owned();
        let (done, is_done) = std::sync::mpsc::channel();
        thread::spawn(move || done.send((sweep(&path), super::super::list(&path))));
        let found = is_done.recv_timeout(Duration::from_secs(10)).expect("the sweep waits");
        assert_eq!((found.0.unwrap(), found.1.unwrap()), (vec![], vec![]));
        assert!(base.path().join("pipe").exists() && base.path().join("link").exists());
    }

    #[test]
    fn sweep_never_waits_for_a_foreign_children_file() {
        let base = tempfile::tempdir().unwrap();
        for name in ["pipe", "link"] {
            leftover(&base.path().join(name));
            fs::remove_file(base.path().join(name).join(CHILDREN)).unwrap();
        }
        let pipe = base.path().join("pipe").join(CHILDREN);
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", base.path().join("link").join(CHILDREN)).unwrap();
        let path = base.path().to_owned();
        let (done, is_done) = std::sync::mpsc::channel();
        thread::spawn(move || done.send((super::super::list(&path), sweep(&path))));
        let found = is_done.recv_timeout(Duration::from_secs(10)).expect("the sweep waits");
        assert_eq!((found.0.unwrap().len(), found.1.unwrap().len()), (2, 2));
    }

    #[test]
    fn sweep_removes_half_created_directories() {
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
    fn advance_stops_at_deadline_and_continues() {
        let base = tempfile::tempdir().unwrap();
        for n in 0..3 {
            leftover(&base.path().join(n.to_string()));
        }
        let (mut sweep, mut removed) = (Sweep::new(base.path(), 2).unwrap(), Vec::new());
        sweep.advance(Instant::now(), &mut removed);
        assert!(removed.is_empty() && !sweep.is_done());
        sweep.advance(Instant::now() + Duration::from_secs(60), &mut removed);
        assert_eq!((removed.len(), sweep.is_done()), (2, true), "the limit of entries is 2");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn build_on_a_full_file_system_sweeps_first() {
        use std::io::Write;
        use std::process::Command;
        const ALONE: &str = "CAPSA_TEST_ALONE";
        let name = "run_dir::sweep::tests::build_on_a_full_file_system_sweeps_first";
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--mount"]);
            command
        };
        if std::env::var_os(ALONE).is_none() {
            if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
                let why = "this user may not make a mount namespace";
                writeln!(io::stderr(), "SKIPPED {name}: {why}").unwrap();
                return;
            }
            let this = std::env::current_exe().unwrap();
            let output = unshare().arg(this).args([name, "--exact"]).env(ALONE, "1").output();
            let output = String::from_utf8(output.unwrap().stdout).unwrap();
            assert!(output.contains("1 passed; 0 failed"), "{output}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "nr_inodes=16", "none"]).arg(dir.path());
        assert!(mount.status().unwrap().success());
        let base = dir.path().join("base");
        // A sweep that has ended.
        drop(RunDir::create_and_sweep(&base.join("first")).unwrap());
        leftover(&base.join("left"));
        let fill = |n: &u32| fs::write(dir.path().join(n.to_string()), "").is_ok();
        assert!((0..).take_while(fill).count() > 0);
        let path = base.join("second");
        let error = RunDir::create(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        assert_eq!(RunDir::create_and_sweep(&path).unwrap().path(), path);
        assert!(!base.join("left").exists());
        let unmount = Command::new("umount").arg(dir.path()).status();
        assert!(unmount.unwrap().success());
    }

    #[test]
    fn sweep_slice_skips_a_locked_base_and_sweeps_once() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        let lock = lock_base(&base, Duration::ZERO).unwrap();
        let left = base.join("left");
        leftover(&left);
        // Other tests of this process may be sweeping.
        let sweep_until = |done: &dyn Fn() -> bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !done() {
                assert!(Instant::now() < deadline);
                sweep_slice(&base);
            }
        };
        sweep_slice(&base);
        assert!(left.exists());
        drop(lock);
        let is_done = || SWEEPS.lock().unwrap().get(&base).is_some_and(Sweep::is_done);
        sweep_until(&is_done);
        assert!(!left.exists());
        leftover(&left);
        sweep_slice(&base);
        assert!(left.exists(), "one sweep per program");
    }
}
