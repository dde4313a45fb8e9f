//! The locks by which hypervisors tell each other that a disk image is theirs.
//!
//! QEMU (`block/file-posix.c`) holds a shared lock on one byte for each thing it does, from 100 on, and
//! on one for each thing that it lets nobody else do, from 200 on; the second of either is writing.
//! Cloud-hypervisor (50 and later) holds one lock from byte 0 on, an exclusive one if it writes. Whoever
//! looks asks which locks of others lie on [`PROBED_BYTES`]; they are never held here: between the look and
//! the start another may be faster, and then the hypervisor itself refuses.

/// The bytes to look at: the first, the one that QEMU locks while it writes, and the one that it locks
/// while nobody else may.
pub const PROBED_BYTES: [u64; 3] = [0, 101, 201];

/// A lock that somebody else holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLock {
    /// Its first byte.
    pub begin: u64,
    /// Nobody else may hold another there.
    pub is_exclusive: bool,
}

/// Whether a hypervisor would not attach an image beside whoever has these locks on [`PROBED_BYTES`]: for
/// writing, or only for reading.
pub fn conflicts(locks: &[Option<ImageLock>; 3], writes: bool) -> bool {
    if writes {
        return locks.iter().any(Option::is_some);
    }
    let [first, somebody_writes, _] = locks;
    // A shared lock that reaches from the first byte to here is that of another reader.
    let is_writers = |lock: &ImageLock| lock.is_exclusive || lock.begin > 0;
    first.is_some_and(|lock| lock.is_exclusive) || somebody_writes.as_ref().is_some_and(is_writers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_shared_by_readers_alone() {
        let shared = |begin| Some(ImageLock { begin, is_exclusive: false });
        let exclusive = Some(ImageLock { begin: 0, is_exclusive: true });
        for (who, locks, reader_may) in [
            ("QEMU reads", [None, None, shared(201)], true),
            ("QEMU writes", [None, shared(100), shared(201)], false),
            ("cloud-hypervisor reads", [shared(0); 3], true),
            ("cloud-hypervisor writes", [exclusive; 3], false),
            ("it writes an image of 50 bytes", [exclusive, None, None], false),
        ] {
            assert!(conflicts(&locks, true), "{who}");
            assert_eq!(conflicts(&locks, false), !reader_may, "{who}");
        }
        assert!(!conflicts(&[None; 3], true) && !conflicts(&[None; 3], false));
    }
}
