//! A model of a front end and of a guest's driver, for tests and fuzzing.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use super::{FeatureBits, MemoryFault, MemoryFiles};

/// The size of a model's rings.
pub const RING_SIZE: u16 = 256;
/// Where the buffers of a guest start.
pub const BUFFERS: u64 = 0x4_0000;
/// The difference of the front end's addresses from those of the guest.
pub const USER: u64 = 0x7000_0000_0000;

/// Memory of a model guest, in one region that starts at 0.
#[derive(Debug, Default)]
pub struct ModelMemory {
    /// Its bytes. Shorter than the region if the file was shrunk.
    pub bytes: RefCell<Vec<u8>>,
    /// The number of accesses.
    pub accesses: Cell<usize>,
}

impl ModelMemory {
    /// Memory of `len` zeros.
    pub fn new(len: usize) -> Self {
        Self { bytes: RefCell::new(vec![0; len]), accesses: Cell::new(0) }
    }
}

impl MemoryFiles for ModelMemory {
    fn read(&self, _: usize, offset: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        self.accesses.set(self.accesses.get() + 1);
        let bytes = self.bytes.borrow();
        let found = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)?.get(..into.len()));
        into.copy_from_slice(found.ok_or(MemoryFault)?);
        Ok(())
    }

    fn write(&self, _: usize, offset: u64, parts: &[&[u8]]) -> Result<(), MemoryFault> {
        self.accesses.set(self.accesses.get() + 1);
        let mut bytes = self.bytes.borrow_mut();
        let all = parts.concat();
        let at = usize::try_from(offset).map_err(|_| MemoryFault)?;
        let found = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..all.len()));
        found.ok_or(MemoryFault)?.copy_from_slice(&all);
        Ok(())
    }
}

/// A message of a front end.
pub fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request, 1, payload.len() as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// The messages by which a front end hands over the memory and the rings of a guest, each with its number
/// of descriptors. A kick message has to follow for each ring.
pub fn set_up(memory: u64, features: u64, base: [u16; 2]) -> Vec<(Vec<u8>, usize)> {
    let words =
        |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let mut messages = vec![
        (message(3, &[]), 0),
        (message(1, &[]), 0),
        (message(15, &[]), 0),
        (message(16, &words(&[0])), 0),
        (message(2, &words(&[features | FeatureBits::PROTOCOL_FEATURES])), 0),
        (message(5, &words(&[1, 0, memory, USER, 0])), 1),
    ];
    for ring in 0..2 {
        let at = USER + ModelRing::at(ring as usize);
        let state = |value: u64| words(&[ring | value << 32]);
        let addresses = [ring, at, at + ModelRing::USED, at + ModelRing::AVAILABLE, 0];
        messages.push((message(8, &state(u64::from(RING_SIZE))), 0));
        messages.push((message(9, &words(&addresses)), 0));
        messages.push((message(10, &state(u64::from(base[ring as usize]))), 0));
        messages.push((message(18, &state(1)), 0));
    }
    messages
}

/// A ring, seen from the guest.
#[derive(Debug)]
pub struct ModelRing {
    at: u64,
    available: u16,
    used: u16,
    has_event_idx: bool,
    free: Vec<u16>,
    chains: BTreeMap<u16, Vec<u16>>,
}

impl ModelRing {
    const AVAILABLE: u64 = 16 * RING_SIZE as u64;
    const USED: u64 = 0x2000;
    const TABLES: u64 = 0x8000;

    fn at(ring: usize) -> u64 {
        0x2_0000 * ring as u64
    }

    /// The ring with this number.
    pub fn new(ring: usize, features: u64) -> Self {
        Self {
            at: Self::at(ring),
            available: 0,
            used: 0,
            has_event_idx: features & FeatureBits::EVENT_IDX != 0,
            free: (0..RING_SIZE).rev().collect(),
            chains: BTreeMap::new(),
        }
    }

    /// The index of the next buffer.
    pub fn available(&self) -> u16 {
        self.available
    }

    /// How many more descriptors there are.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain of buffers available. Returns its number, and whether to kick the device. `None` if
    /// the ring is full.
    pub fn add<M: MemoryFiles>(
        &mut self,
        memory: &M,
        buffers: &[(u64, u32)],
        is_writable: bool,
        is_indirect: bool,
    ) -> Option<(u16, bool)> {
        let count = if is_indirect { 1 } else { buffers.len() };
        if self.free.len() < count {
            return None;
        }
        let ids: Vec<u16> = (0..count).filter_map(|_| self.free.pop()).collect();
        let head = *ids.first()?;
        let write = if is_writable { 2 } else { 0 };
        let table = self.at + Self::TABLES + 64 * u64::from(head);
        let entry = |at: u64, len: u32, flags: u16, next: u16| {
            let (at, len) = (at.to_le_bytes(), len.to_le_bytes());
            [&at[..], &len, &flags.to_le_bytes(), &next.to_le_bytes()].concat()
        };
        for (n, (at, len)) in buffers.iter().enumerate() {
            let more = u16::from(n + 1 < buffers.len());
            let (to, next) = match is_indirect {
                true => (table + 16 * n as u64, n as u16 + 1),
                false => (self.at + 16 * u64::from(ids[n]), ids.get(n + 1).copied().unwrap_or(0)),
            };
            memory.write(0, to, &[&entry(*at, *len, write | more, next)]).ok()?;
        }
        if is_indirect {
            let entry = entry(table, 16 * buffers.len() as u32, 4, 0);
            memory.write(0, self.at + 16 * u64::from(head), &[&entry]).ok()?;
        }
        self.chains.insert(head, ids);
        let slot = u64::from(self.available % RING_SIZE);
        let available = self.at + Self::AVAILABLE;
        memory.write(0, available + 4 + 2 * slot, &[&head.to_le_bytes()]).ok()?;
        self.available = self.available.wrapping_add(1);
        memory.write(0, available + 2, &[&self.available.to_le_bytes()]).ok()?;
        let mut event = [0; 2];
        let at = self.at + Self::USED + 4 + 8 * u64::from(RING_SIZE);
        memory.read(0, at, &mut event).ok()?;
        let kick_at = u16::from_le_bytes(event);
        Some((head, !self.has_event_idx || kick_at == self.available.wrapping_sub(1)))
    }

    /// The next used chain and its length. When there is none, the device interrupts at the next one.
    pub fn take_used<M: MemoryFiles>(&mut self, memory: &M) -> Option<(u16, u32)> {
        let mut index = [0; 2];
        let used = self.at + Self::USED;
        memory.read(0, used + 2, &mut index).ok()?;
        if u16::from_le_bytes(index) == self.used {
            let at = self.at + Self::AVAILABLE + 4 + 2 * u64::from(RING_SIZE);
            memory.write(0, at, &[&self.used.to_le_bytes()]).ok()?;
            return None;
        }
        let mut entry = [0; 8];
        memory.read(0, used + 4 + 8 * u64::from(self.used % RING_SIZE), &mut entry).ok()?;
        self.used = self.used.wrapping_add(1);
        let [a, b, c, d, len @ ..] = entry;
        let head = u32::from_le_bytes([a, b, c, d]) as u16;
        let ids = self.chains.remove(&head).expect("the device uses available chains only");
        self.free.extend(ids);
        Some((head, u32::from_le_bytes(len)))
    }
}
