//! The regions of the guest's memory, and access to it by the addresses of the guest.

use alloc::vec::Vec;

use super::message::{MAX_DESCRIPTORS, ProtocolError};

/// A region of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Its address in the guest.
    pub guest: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its address in the front end.
    pub user: u64,
    /// Where it starts in its file.
    pub offset: u64,
}

/// An access to memory failed: the address is in no region, or the file is shorter than its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFault;

/// The files of the guest's memory, one for each region.
///
/// The guest reads and writes the memory at the same time. An access to 8 bytes at an address that is
/// divisible by 8 must not be seen in parts.
pub trait MemoryFiles {
    /// Reads from the file of a region.
    ///
    /// # Errors
    ///
    /// When the file is shorter.
    fn read(&self, region: usize, offset: u64, into: &mut [u8]) -> Result<(), MemoryFault>;

    /// Writes `parts`, one after another, to the file of a region.
    ///
    /// # Errors
    ///
    /// When the file cannot be written there.
    fn write(&self, region: usize, offset: u64, parts: &[&[u8]]) -> Result<(), MemoryFault>;
}

/// The regions of a guest's memory. They do not overlap.
#[derive(Debug, Clone, Default)]
pub(super) struct RegionTable(Vec<MemoryRegion>);

impl RegionTable {
    pub(super) fn new(regions: Vec<MemoryRegion>) -> Result<Self, ProtocolError> {
        let is_valid = |region: &MemoryRegion| {
            let end = |at: u64| at.checked_add(region.len).is_some();
            let is_file =
                region.offset.checked_add(region.len).is_some_and(|end| end <= i64::MAX as u64);
            region.len > 0 && end(region.guest) && end(region.user) && is_file
        };
        let overlap = |a: &MemoryRegion, b: &MemoryRegion| {
            let overlap = |a: u64, a_len: u64, b: u64, b_len: u64| a < b + b_len && b < a + a_len;
            overlap(a.guest, a.len, b.guest, b.len) || overlap(a.user, a.len, b.user, b.len)
        };
        let valid = regions.len() <= MAX_DESCRIPTORS && regions.iter().all(is_valid);
        let disjoint = |n: usize, a| regions[..n].iter().all(|b| !overlap(a, b));
        if valid && regions.iter().enumerate().all(|(n, a)| disjoint(n, a)) {
            Ok(Self(regions))
        } else {
            Err(ProtocolError::Memory)
        }
    }

    /// The address in the guest of `len` bytes at an address of the front end.
    pub(super) fn guest_address(&self, user: u64, len: u64) -> Option<u64> {
        self.0.iter().find_map(|region| {
            let at = user.checked_sub(region.user)?;
            (at.checked_add(len)? <= region.len).then(|| region.guest + at)
        })
    }

    /// The region of an address in the guest, and the position in it.
    fn locate(&self, guest: u64) -> Result<(usize, u64), MemoryFault> {
        let found = self.0.iter().enumerate().find_map(|(n, region)| {
            let at = guest.checked_sub(region.guest)?;
            (at < region.len).then_some((n, at))
        });
        found.ok_or(MemoryFault)
    }
}

/// The guest's memory, by its own addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuestMemory<'a, F> {
    pub(super) regions: &'a RegionTable,
    pub(super) files: &'a F,
}

impl<F: MemoryFiles> GuestMemory<'_, F> {
    pub(super) fn read(&self, mut at: u64, mut into: &mut [u8]) -> Result<(), MemoryFault> {
        while !into.is_empty() {
            let (n, position) = self.regions.locate(at)?;
            let region = self.regions.0[n];
            let len = (region.len - position).min(into.len() as u64);
            let part = into.split_off_mut(..len as usize).ok_or(MemoryFault)?;
            self.files.read(n, region.offset + position, part)?;
            at = at.checked_add(len).ok_or(MemoryFault)?;
        }
        Ok(())
    }

    pub(super) fn read_array<const N: usize>(&self, at: u64) -> Result<[u8; N], MemoryFault> {
        let mut bytes = [0; N];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn read_u16(&self, at: u64) -> Result<u16, MemoryFault> {
        self.read_array(at).map(u16::from_le_bytes)
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), MemoryFault> {
        self.write_parts(at, &[bytes])
    }

    /// Writes `parts`, one after another.
    pub(super) fn write_parts(&self, mut at: u64, parts: &[&[u8]]) -> Result<(), MemoryFault> {
        let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let (n, position) = self.regions.locate(at)?;
        let region = self.regions.0[n];
        if total <= region.len - position {
            return self.files.write(n, region.offset + position, parts);
        }
        // The bytes are in several regions.
        for mut part in parts.iter().copied() {
            while !part.is_empty() {
                let (n, position) = self.regions.locate(at)?;
                let region = self.regions.0[n];
                let len = (region.len - position).min(part.len() as u64);
                let now = part.split_off(..len as usize).ok_or(MemoryFault)?;
                self.files.write(n, region.offset + position, &[now])?;
                at = at.checked_add(len).ok_or(MemoryFault)?;
            }
        }
        Ok(())
    }
}
