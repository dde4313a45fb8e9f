//! The locks that hypervisors hold on disk images.
//!
//! QEMU (`block/file-posix.c`) holds shared locks on single bytes: from byte 100 one for each operation
//! that it uses, and from byte 200 one for each operation that it denies to others. The second byte of
//! each range is writing. Cloud-hypervisor (50 and later) holds one lock that starts at byte 0; it is
//! exclusive if the disk is writable.
//!
//! Capsa only checks whether other processes hold locks on [`PROBED_BYTES`]. It holds none itself. If
//! another VM starts between the check and the launch, the hypervisor reports the conflict.

/// The bytes to check: byte 0, the byte that QEMU locks while it writes, and the byte that it locks
/// while it denies writing to others.
pub const PROBED_BYTES: [u64; 3] = [0, 101, 201];

/// A lock that another process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLock {
    /// The first byte of the lock.
    pub begin: u64,
    /// No other process may lock the same bytes.
    pub is_exclusive: bool,
}

/// Whether these locks of other processes on [`PROBED_BYTES`] prevent a hypervisor from attaching the
/// image: for writing, or only for reading.
pub(crate) fn conflicts(locks: &[Option<ImageLock>; 3], writes: bool) -> bool {
    if writes {
        return locks.iter().any(Option::is_some);
    }
    let [first, qemu_write, _] = locks;
    // A shared lock from byte 0 that includes QEMU's write byte belongs to a cloud-hypervisor that only
    // reads.
    let is_writer = |lock: &ImageLock| lock.is_exclusive || lock.begin > 0;
    first.is_some_and(|lock| lock.is_exclusive) || qemu_write.as_ref().is_some_and(is_writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_allows_several_readers_only() {
        let shared = |begin| Some(ImageLock { begin, is_exclusive: false });
        let exclusive = Some(ImageLock { begin: 0, is_exclusive: true });
        for (case, locks, can_read) in [
            ("QEMU reads", [None, None, shared(201)], true),
            ("QEMU writes", [None, shared(100), shared(201)], false),
            ("cloud-hypervisor reads", [shared(0); 3], true),
            ("cloud-hypervisor writes", [exclusive; 3], false),
            ("it writes an image of 50 bytes", [exclusive, None, None], false),
        ] {
            assert!(conflicts(&locks, true), "{case}");
            assert_eq!(conflicts(&locks, false), !can_read, "{case}");
        }
        assert!(!conflicts(&[None; 3], true) && !conflicts(&[None; 3], false));
    }
}
