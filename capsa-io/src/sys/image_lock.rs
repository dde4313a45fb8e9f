//! The locks by which hypervisors tell each other that a disk image is theirs.
//!
//! QEMU (`block/file-posix.c`) holds a read lock on one byte for each thing it does, from 100 on, and
//! for each thing it lets nobody else do, from 200 on; the second of either is writing.
//! Cloud-hypervisor (50 and later) holds one lock from byte 0 on: a write lock if it writes. Only
//! asked here, never held: between the question and the start another may be faster, and then the
//! hypervisor itself refuses.

use std::fs::File;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// The byte that QEMU locks while it writes.
const WRITES: libc::off_t = 101;
/// The byte that QEMU locks while nobody else may.
const LETS_NOBODY_WRITE: libc::off_t = 201;

/// Whether another process has this image in a way that a hypervisor would not attach it beside: for
/// writing, or only for reading.
pub(crate) fn is_in_use(image: &File, writes: bool) -> bool {
    let begins = |at| conflict(image, libc::F_WRLCK, at, 1).map(|lock| lock.l_start);
    if writes {
        return [0, WRITES, LETS_NOBODY_WRITE].into_iter().any(|at| begins(at).is_some());
    }
    // A lock from 0 on is that of another reader, if it is not in the way of one.
    conflict(image, libc::F_RDLCK, 0, 0).is_some() || begins(WRITES).is_some_and(|begin| begin > 0)
}

/// A lock of another that is in the way of one of this kind. None where locks cannot be asked for.
fn conflict(
    image: &File,
    kind: libc::c_int,
    start: libc::off_t,
    len: libc::off_t,
) -> Option<libc::flock> {
    let short = |value: libc::c_int| libc::c_short::try_from(value).expect("a small constant");
    let mut lock = libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    fcntl(image, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    (lock.l_type != short(libc::F_UNLCK)).then_some(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_shared_by_readers_alone() {
        let qemu_reads = (libc::F_RDLCK, &[(100, 1), (201, 1)][..]);
        let qemu_writes = (libc::F_RDLCK, &[(100, 2), (201, 1)][..]);
        let chv_reads = (libc::F_RDLCK, &[(0, 4096)][..]);
        let chv_writes = (libc::F_WRLCK, &[(0, 4096)][..]);
        for ((kind, ranges), reader_may) in
            [(qemu_reads, true), (qemu_writes, false), (chv_reads, true), (chv_writes, false)]
        {
            let held = tempfile::NamedTempFile::new().unwrap();
            let asks = File::open(held.path()).unwrap();
            assert!(!is_in_use(&asks, true) && !is_in_use(&asks, false), "nobody has it");
            for (start, len) in ranges {
                let lock = libc::flock {
                    l_type: kind as libc::c_short,
                    l_whence: libc::SEEK_SET as libc::c_short,
                    l_start: *start,
                    l_len: *len,
                    l_pid: 0,
                };
                fcntl(held.as_file(), FcntlArg::F_OFD_SETLK(&lock)).unwrap();
            }
            assert!(is_in_use(&asks, true), "{ranges:?}");
            assert_eq!(is_in_use(&asks, false), !reader_may, "{ranges:?}");
        }
    }
}
