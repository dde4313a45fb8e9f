//! Opens, reads and writes files of a directory that a guest can write, without leaving the directory.
//!
//! A guest can replace any name in a share by a symbolic link to a file of the host, by a pipe, which
//! blocks an ordinary open, or by a device. The functions here open regular files below the directory and
//! nothing else, also while the guest changes names. On Linux, symbolic links are followed as long as they
//! stay below the directory (openat2, Linux 5.6); on macOS and older kernels they are an error.
//!
//! The rule: the directory itself and the path to it must not be writable by the guest.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

use crate::context::failed;
use crate::{random, sys};

/// Opens the regular file `path` below `dir` for reading. Never waits for a writer of a pipe.
///
/// # Errors
///
/// When `path` is absolute or contains `..`, does not exist, leads out of `dir`, or is not a regular file.
pub fn open(dir: &Path, path: &Path) -> io::Result<File> {
    let opened = relative(path).and_then(|path| sys::open_beneath(root(dir)?.as_fd(), &path));
    opened.map_err(|error| in_share("open", path, dir, error))
}

/// Reads the regular file `path` below `dir`, of at most `limit` bytes.
///
/// # Errors
///
/// As [`open`]; also of kind `FileTooLarge` when the file is longer than `limit`.
pub fn read(dir: &Path, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let file = open(dir, path)?;
    let mut content = Vec::new();
    // The guest can make it longer while it is read.
    let read = file.take(limit as u64 + 1).read_to_end(&mut content);
    let read = read.and_then(|read| match read > limit {
        true => {
            let text = format!("the file is larger than {limit} bytes");
            Err(io::Error::new(io::ErrorKind::FileTooLarge, text))
        }
        false => Ok(content),
    });
    read.map_err(|error| in_share("read", path, dir, error))
}

/// Writes a file `path` below `dir`, which replaces what has this name. Its directory must exist.
///
/// # Errors
///
/// When `path` is absolute or contains `..`, its directory leads out of `dir`, or it names a directory.
pub fn write(dir: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let written = relative(path).and_then(|path| {
        let name = path.file_name().unwrap_or_default();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let root = root(dir)?;
        let parent = match parent {
            Some(parent) => sys::open_directory_beneath(root.as_fd(), parent)?,
            None => root,
        };
        // A new file: the guest may have made the existing one a link or a pipe.
        let new = format!(".{}.new", random::name());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file = File::from(openat(&parent, &new, flags, Mode::from_raw_mode(0o666))?);
        let written = file.write_all(content);
        let written = written.and_then(|()| Ok(renameat(&parent, &new, &parent, name)?));
        if written.is_err() {
            let _ = unlinkat(&parent, &new, AtFlags::empty());
        }
        written
    });
    written.map_err(|error| in_share("write", path, dir, error))
}

fn root(dir: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The path without `.`; an error if it is absolute, empty or contains `..`.
fn relative(path: &Path) -> io::Result<PathBuf> {
    let is_below = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let relative = parts.collect::<PathBuf>();
    if relative.as_os_str().is_empty() || !path.components().all(is_below) {
        let text = "invalid path: expected a path relative to the share, without `..`";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(relative)
}

fn in_share(what: &str, path: &Path, dir: &Path, error: io::Error) -> io::Error {
    failed(format!("cannot {what} {} in the share {}", path.display(), dir.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::sys::stat;
    use nix::unistd::mkfifo;

    /// A directory with the share `share`, beside which there is a file `secret`.
    fn share() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let share = dir.path().join("share");
        fs::create_dir_all(share.join("d/e")).unwrap();
        fs::write(share.join("d/file"), "content").unwrap();
        (dir, share)
    }

    #[test]
    fn read_in_share_works_up_to_limit() {
        let (_dir, share) = share();
        for path in ["d/file", "./d/./file", "d//file"] {
            assert_eq!(read(&share, Path::new(path), 7).unwrap(), b"content", "{path}");
        }
        let error = read(&share, Path::new("d/file"), 6).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{error}");
        assert!(error.to_string().contains("larger than 6 bytes"), "{error}");
    }

    #[test]
    fn hostile_names_are_errors_and_do_not_block() {
        let (dir, share) = share();
        let secret = dir.path().join("secret");
        for (name, target) in [
            ("passwd", Path::new("/etc/passwd")),
            ("absolute", &secret),
            ("up", Path::new("../secret")),
            ("d/up", Path::new("../../secret")),
            ("loop", Path::new("loop")),
            ("root", Path::new("/")),
            ("parent", Path::new("..")),
            ("proc", Path::new("/proc/self/fd/0")),
            ("null", Path::new("/dev/null")),
        ] {
            symlink(target, share.join(name)).unwrap();
        }
        mkfifo(&share.join("pipe"), stat::Mode::S_IRWXU).unwrap();
        symlink("pipe", share.join("to-pipe")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(share.join("socket")).unwrap();
        // Only root can make devices.
        let zero = rustix::fs::makedev(1, 5);
        let _ = stat::mknod(&share.join("zero"), stat::SFlag::S_IFCHR, stat::Mode::S_IRWXU, zero);
        let absolute = secret.to_str().unwrap();
        for path in [
            "passwd",
            "absolute",
            "up",
            "d/up",
            "loop",
            "root/etc/passwd",
            "parent/secret",
            "proc",
            "null",
            "pipe",
            "to-pipe",
            "socket",
            "zero",
            "d",
            "../secret",
            "d/../../secret",
            "..",
            "d/../d/file",
            absolute,
            "/etc/passwd",
            "",
            ".",
            "none",
            "d/file/x",
            "d\0",
        ] {
            let error = read(&share, Path::new(path), 1 << 20).unwrap_err();
            assert!(error.to_string().contains("cannot "), "{path}: {error}");
        }
        drop(socket);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn link_that_stays_in_share_is_followed() {
        let (_dir, share) = share();
        symlink("d/file", share.join("latest")).unwrap();
        symlink("..", share.join("d/e/back")).unwrap();
        for path in ["latest", "d/e/back/file"] {
            assert_eq!(read(&share, Path::new(path), 7).unwrap(), b"content", "{path}");
        }
    }

    #[test]
    fn name_swapped_during_reads_never_leaks() {
        let (dir, share) = share();
        symlink(dir.path().join("secret"), share.join("link")).unwrap();
        symlink(dir.path(), share.join("dir-link")).unwrap();
        fs::write(share.join("d/secret"), "content").unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let swap = |a: &str, b: &str| {
                    let at = |name: &str| share.join(name);
                    fs::rename(at(a), at("spare")).unwrap();
                    fs::rename(at(b), at(a)).unwrap();
                    fs::rename(at("spare"), at(b)).unwrap();
                };
                while !is_done.load(Ordering::Relaxed) {
                    swap("d/file", "link");
                    swap("d", "dir-link");
                    swap("d", "dir-link");
                }
            });
            let paths = ["d/file", "link", "d/secret", "dir-link/secret"];
            let read = |n: usize| read(&share, Path::new(paths[n % 4]), 1 << 20).ok();
            let contents: Vec<_> = (0..80_000).filter_map(read).collect();
            is_done.store(true, Ordering::Relaxed);
            assert!(!contents.is_empty());
            assert!(contents.iter().all(|content| content == b"content"));
        });
    }

    #[test]
    fn write_replaces_link_and_stays_in_share() {
        let (dir, share) = share();
        let secret = dir.path().join("secret");
        symlink(&secret, share.join("link")).unwrap();
        symlink(dir.path(), share.join("d/out")).unwrap();
        mkfifo(&share.join("pipe"), stat::Mode::S_IRWXU).unwrap();
        for path in ["link", "pipe", "d/new", "d/file"] {
            write(&share, Path::new(path), b"new").unwrap();
            assert_eq!(fs::read(share.join(path)).unwrap(), b"new", "{path}");
        }
        for path in ["d/out/secret", "../secret", secret.to_str().unwrap(), "d", "none/x"] {
            write(&share, Path::new(path), b"new").unwrap_err();
        }
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        assert_eq!(fs::read_dir(&share).unwrap().count(), 3, "temporary files remain");
    }
}
