//! Reads the locks that other processes hold on bytes of a file.

use std::fs::File;

use capsa_proto::image_lock::ImageLock;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// The lock of another process on this byte. `None` if there is none, or if the system cannot tell.
pub(crate) fn lock_on(file: &File, byte: u64) -> Option<ImageLock> {
    let mut lock = flock(libc::F_WRLCK, libc::off_t::try_from(byte).ok()?, 1);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    let is = |kind| lock.l_type == short(kind);
    (!is(libc::F_UNLCK)).then(|| ImageLock {
        begin: u64::try_from(lock.l_start).unwrap_or(0),
        is_exclusive: is(libc::F_WRLCK),
    })
}

fn flock(kind: libc::c_int, start: libc::off_t, len: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn short(value: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(value).expect("a small constant")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_on_sees_locks_of_other_files() {
        let held = tempfile::NamedTempFile::new().unwrap();
        let asks = File::open(held.path()).unwrap();
        assert_eq!(lock_on(&asks, 0), None);
        for (kind, start, len) in [(libc::F_RDLCK, 100, 2), (libc::F_WRLCK, 200, 1)] {
            let lock = flock(kind, start, len);
            fcntl(held.as_file(), FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        }
        for (byte, want) in [
            (99, None),
            (101, Some(ImageLock { begin: 100, is_exclusive: false })),
            (102, None),
            (200, Some(ImageLock { begin: 200, is_exclusive: true })),
        ] {
            assert_eq!(lock_on(&asks, byte), want, "{byte}");
        }
        assert_eq!(lock_on(held.as_file(), 101), None, "own locks are not reported");
    }
}
