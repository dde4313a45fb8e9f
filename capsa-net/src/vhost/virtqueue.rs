//! [`Virtqueue`]: a split virtqueue, seen from the device (VIRTIO 1.3, 2.7).
//!
//! An access to the guest's memory is a system call, so entries and descriptors are read in runs, and used
//! buffers are published in batches. With EVENT_IDX the guest kicks only when the queue had run empty, and
//! is interrupted only when it waits.
//!
//! # Indices
//!
//! The guest reads the used index while it is written, and the kernel copies short values byte by byte.
//! A guest that sees one new and one old byte takes stale entries for used ones. So the index is written
//! with its neighbours as one word of 8 bytes, which the kernel does not divide, and the available index
//! is read in the same way and once more when its high byte has changed.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use super::memory::{GuestMemory, MemoryFault, MemoryFiles};

/// The largest size of a ring (VIRTIO 1.3, 2.7: 32768; the hypervisors use 1024 at most).
pub(super) const MAX_SIZE: u16 = 1024;

/// Descriptors that are read at once, and entries that are read ahead.
const RUN: u16 = 32;

const DESCRIPTOR_LEN: usize = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// A flag of the available ring: the guest needs no interrupt.
const NO_INTERRUPT: u16 = 1;

/// What a driver did wrong. The ring is not used again until it is set up anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RingError {
    /// A buffer or the ring itself is not in the guest's memory, or the file of the memory has shrunk.
    Memory,
    /// More buffers are available than the ring has entries.
    Index,
    /// The number of a descriptor is not below the size of its table.
    Descriptor,
    /// A chain has more descriptors than the ring.
    Loop,
    /// The device is to write a buffer of the transmit ring, or to read one of the receive ring.
    Direction,
    /// A buffer has no bytes.
    Empty,
    /// An indirect table is empty, not of whole descriptors, within another one, or has a successor.
    Indirect,
}

impl From<MemoryFault> for RingError {
    fn from(_: MemoryFault) -> Self {
        Self::Memory
    }
}

/// The place of a ring in the guest's memory, and where to start.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingPlace {
    /// A power of 2, at most [`MAX_SIZE`].
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    /// The available index to start at.
    pub(super) base: u16,
    pub(super) has_event_idx: bool,
}

/// Contiguous bytes of the guest's memory.
#[derive(Debug, Clone, Copy)]
struct Extent {
    at: u64,
    len: u64,
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    at: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A buffer that the device has filled or read.
#[derive(Debug, Clone, Copy)]
struct UsedBuffer {
    head: u16,
    len: u32,
}

/// What a chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromGuest,
    ToGuest,
}

/// Whether a frame went into the guest's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PushResult {
    Sent,
    /// The guest has not posted enough buffers. It kicks when it posts the next one.
    Full,
    /// The frame does not fit into all buffers of the ring together.
    TooLong,
}

/// A ring that is in use.
#[derive(Debug)]
pub(super) struct Virtqueue {
    place: RingPlace,
    /// The available index as it was last read.
    seen: u16,
    /// The next entry to read.
    next: u16,
    /// The entries before `next` that are not used yet.
    heads: VecDeque<u16>,
    /// The guest kicks when it makes this entry available.
    kick_at: Option<u16>,
    /// Descriptors as they were read since the available index was: the first number, and the bytes.
    run: (u16, Vec<u8>),
    table: Vec<u8>,
    extents: Vec<Extent>,
    /// How many bytes of a frame each chain gets.
    chain_lens: Vec<u32>,
    /// The used index, with the buffers that are not published.
    used: u16,
    unpublished: Vec<UsedBuffer>,
    /// The first word of the used ring's entries: it is written together with the index.
    first_used: u32,
    /// The used index at the last decision about an interrupt.
    signalled: u16,
}

impl Virtqueue {
    pub(super) fn new<F: MemoryFiles>(
        place: RingPlace,
        memory: &GuestMemory<'_, F>,
    ) -> Result<Self, RingError> {
        let [_, _, a, b, first @ ..] = memory.read_array::<8>(place.used)?;
        let used = u16::from_le_bytes([a, b]);
        Ok(Self {
            place,
            seen: place.base,
            next: place.base,
            heads: VecDeque::new(),
            kick_at: None,
            run: (0, Vec::new()),
            table: Vec::new(),
            extents: Vec::new(),
            chain_lens: Vec::new(),
            used,
            unpublished: Vec::new(),
            first_used: u32::from_le_bytes(first),
            signalled: used,
        })
    }

    /// The index of the next entry that is not used.
    pub(super) fn base(&self) -> u16 {
        self.next.wrapping_sub(self.heads.len() as u16)
    }

    /// Reads the next chain of the guest into `into`, which grows if necessary. Returns the number of
    /// bytes; 0 for a chain of more than `max` bytes, which is dropped. `None`: there is no chain, and the
    /// guest kicks when there is one.
    pub(super) fn pop<F: MemoryFiles>(
        &mut self,
        memory: &GuestMemory<'_, F>,
        max: usize,
        into: &mut Vec<u8>,
    ) -> Result<Option<usize>, RingError> {
        self.fetch(memory, 1)?;
        let Some(head) = self.heads.pop_front() else { return Ok(None) };
        self.extents.clear();
        let len = self.chain(memory, head, Direction::FromGuest)?;
        let len = usize::try_from(len).ok().filter(|len| *len <= max).unwrap_or(0);
        if into.len() < len {
            into.resize(len, 0);
        }
        let mut rest = &mut into[..len];
        for extent in &self.extents {
            // Nothing is left of a chain that is dropped.
            let part = rest.split_off_mut(..(extent.len as usize).min(rest.len()));
            memory.read(extent.at, part.unwrap_or_default())?;
        }
        self.mark_used(head, 0);
        Ok(Some(len))
    }

    /// Writes a frame into buffers of the guest: `header`, whose last two bytes become the number of
    /// buffers, and `parts`. A frame takes several buffers only if `is_mergeable`.
    pub(super) fn push<F: MemoryFiles>(
        &mut self,
        memory: &GuestMemory<'_, F>,
        mut header: [u8; 12],
        parts: &[&[u8]],
        is_mergeable: bool,
    ) -> Result<PushResult, RingError> {
        let len = (header.len() + parts.iter().map(|part| part.len()).sum::<usize>()) as u64;
        let most = if is_mergeable { usize::from(self.place.size) } else { 1 };
        self.extents.clear();
        self.chain_lens.clear();
        let mut room = 0;
        while room < len {
            let buffers = self.chain_lens.len();
            if buffers == most {
                return Ok(PushResult::TooLong);
            }
            self.fetch(memory, buffers + 1)?;
            let Some(head) = self.heads.get(buffers) else { return Ok(PushResult::Full) };
            let chain = self.chain(memory, *head, Direction::ToGuest)?;
            self.chain_lens.push(chain.min(len - room) as u32);
            room += chain;
        }
        let buffers = self.chain_lens.len() as u16;
        header[10..].copy_from_slice(&buffers.to_le_bytes());
        let mut source: Vec<&[u8]> = Vec::with_capacity(1 + parts.len());
        source.push(&header);
        source.extend(parts);
        let mut source = &mut source[..];
        for extent in &self.extents {
            // The parts that fit into this extent, of which the last one is cut.
            let mut left = extent.len as usize;
            let mut whole = 0;
            while let Some(part) = source.get(whole)
                && part.len() <= left
            {
                left -= part.len();
                whole += 1;
            }
            let cut = source.get_mut(whole).and_then(|part| part.split_off(..left));
            if let Some(cut) = cut {
                let rest = source[whole];
                source[whole] = cut;
                memory.write_parts(extent.at, &source[..=whole])?;
                source[whole] = rest;
            } else {
                memory.write_parts(extent.at, &source[..whole])?;
            }
            source = &mut source[whole..];
        }
        for n in 0..self.chain_lens.len() {
            if let Some(head) = self.heads.pop_front() {
                self.mark_used(head, self.chain_lens[n]);
            }
        }
        Ok(PushResult::Sent)
    }

    /// Lets the guest see the used buffers. Returns whether it waits for an interrupt.
    pub(super) fn publish<F: MemoryFiles>(
        &mut self,
        memory: &GuestMemory<'_, F>,
    ) -> Result<bool, RingError> {
        let first = self.used.wrapping_sub(self.unpublished.len() as u16);
        let mut rest = &self.unpublished[..];
        if rest.is_empty() {
            return Ok(false);
        }
        let mut slot = first % self.place.size;
        while !rest.is_empty() {
            let run = rest.len().min(usize::from(self.place.size - slot));
            let Some(now) = rest.split_off(..run) else { break };
            if slot == 0 {
                self.first_used = u32::from(now[0].head);
            }
            let entry = |buffer: &UsedBuffer| {
                let entry = u64::from(buffer.head) | u64::from(buffer.len) << 32;
                entry.to_le_bytes()
            };
            let entries: Vec<[u8; 8]> = now.iter().map(entry).collect();
            memory.write(self.place.used + 4 + 8 * u64::from(slot), entries.as_flattened())?;
            slot = 0;
        }
        self.unpublished.clear();
        // The entries are visible before the index.
        fence(Ordering::SeqCst);
        let [a, b] = self.used.to_le_bytes();
        let [c, d, e, f] = self.first_used.to_le_bytes();
        let word = [0, 0, a, b, c, d, e, f];
        // A driver that aligns its ring to 4 bytes only, as the standard permits, gets the index alone.
        let len = if self.place.used.is_multiple_of(8) { 8 } else { 4 };
        memory.write(self.place.used, &word[..len])?;
        // The index is visible before the guest's request for an interrupt is read.
        fence(Ordering::SeqCst);
        let before = core::mem::replace(&mut self.signalled, self.used);
        if !self.place.has_event_idx {
            return Ok(memory.read_u16(self.place.available)? & NO_INTERRUPT == 0);
        }
        let at = self.place.available + 4 + 2 * u64::from(self.place.size);
        let event = memory.read_u16(at)?;
        // Whether the index has passed `event` since the last decision (VIRTIO 1.3, 2.7.10).
        Ok(self.used.wrapping_sub(event).wrapping_sub(1) < self.used.wrapping_sub(before))
    }

    fn mark_used(&mut self, head: u16, len: u32) {
        self.unpublished.push(UsedBuffer { head, len });
        self.used = self.used.wrapping_add(1);
    }

    /// Reads entries of the available ring until there are `count` heads, or no more.
    fn fetch<F: MemoryFiles>(
        &mut self,
        memory: &GuestMemory<'_, F>,
        count: usize,
    ) -> Result<(), RingError> {
        while self.heads.len() < count {
            let ahead = self.seen.wrapping_sub(self.next);
            if ahead == 0 {
                if self.refresh(memory)? {
                    continue;
                }
                return Ok(());
            }
            let slot = self.next % self.place.size;
            let run = ahead.min(self.place.size - slot).min(RUN);
            let mut entries = [[0; 2]; RUN as usize];
            let entries = &mut entries[..usize::from(run)];
            let at = self.place.available + 4 + 2 * u64::from(slot);
            memory.read(at, entries.as_flattened_mut())?;
            for entry in entries {
                let head = u16::from_le_bytes(*entry);
                if head >= self.place.size {
                    return Err(RingError::Descriptor);
                }
                self.heads.push_back(head);
            }
            self.next = self.next.wrapping_add(run);
        }
        Ok(())
    }

    /// Reads the available index. Returns whether it has advanced; if not, the guest kicks when it does.
    fn refresh<F: MemoryFiles>(&mut self, memory: &GuestMemory<'_, F>) -> Result<bool, RingError> {
        let mut index = self.available_index(memory)?;
        if index == self.seen && self.place.has_event_idx && self.kick_at != Some(self.next) {
            let at = self.place.used + 4 + 8 * u64::from(self.place.size);
            memory.write(at, &self.next.to_le_bytes())?;
            self.kick_at = Some(self.next);
            // The request for a kick is visible before the index is read again.
            fence(Ordering::SeqCst);
            index = self.available_index(memory)?;
        }
        if index == self.seen {
            return Ok(false);
        }
        // All entries before the index are visible.
        fence(Ordering::SeqCst);
        if index.wrapping_sub(self.base()) > self.place.size {
            return Err(RingError::Index);
        }
        self.seen = index;
        self.run.1.clear();
        Ok(true)
    }

    fn available_index<F: MemoryFiles>(
        &self,
        memory: &GuestMemory<'_, F>,
    ) -> Result<u16, RingError> {
        let mut last = self.seen;
        // A guest changes the high byte once in 256 buffers.
        for _ in 0..8 {
            let [_, _, a, b, ..] = memory.read_array::<8>(self.place.available)?;
            let index = u16::from_le_bytes([a, b]);
            if index >> 8 == self.seen >> 8 || index == last {
                return Ok(index);
            }
            last = index;
        }
        Ok(last)
    }

    /// Appends the buffers of a chain to `extents`. Returns their length.
    fn chain<F: MemoryFiles>(
        &mut self,
        memory: &GuestMemory<'_, F>,
        head: u16,
        direction: Direction,
    ) -> Result<u64, RingError> {
        let (mut index, mut total) = (head, 0);
        for _ in 0..self.place.size {
            let descriptor = self.descriptor(memory, index)?;
            if descriptor.flags & INDIRECT != 0 {
                if descriptor.flags & NEXT != 0 {
                    return Err(RingError::Indirect);
                }
                return Ok(total + self.indirect(memory, descriptor, direction)?);
            }
            total += self.buffer(descriptor, direction)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(total);
            }
            index = descriptor.next;
        }
        Err(RingError::Loop)
    }

    /// The rest of a chain is in a table of its own.
    fn indirect<F: MemoryFiles>(
        &mut self,
        memory: &GuestMemory<'_, F>,
        table: Descriptor,
        direction: Direction,
    ) -> Result<u64, RingError> {
        let len = table.len as usize;
        let count = len / DESCRIPTOR_LEN;
        if count == 0 || !len.is_multiple_of(DESCRIPTOR_LEN) {
            return Err(RingError::Indirect);
        }
        if count > usize::from(self.place.size) {
            return Err(RingError::Loop);
        }
        let mut bytes = core::mem::take(&mut self.table);
        bytes.resize(len, 0);
        memory.read(table.at, &mut bytes)?;
        let (mut index, mut total) = (0, 0);
        for _ in 0..count {
            let at = index * DESCRIPTOR_LEN;
            let found = bytes.get(at..at + DESCRIPTOR_LEN).ok_or(RingError::Descriptor)?;
            let descriptor = Descriptor::parse(found);
            if descriptor.flags & INDIRECT != 0 {
                return Err(RingError::Indirect);
            }
            total += self.buffer(descriptor, direction)?;
            if descriptor.flags & NEXT == 0 {
                self.table = bytes;
                return Ok(total);
            }
            index = usize::from(descriptor.next);
        }
        Err(RingError::Loop)
    }

    /// Appends a buffer to `extents`.
    fn buffer(&mut self, descriptor: Descriptor, direction: Direction) -> Result<u64, RingError> {
        if (descriptor.flags & WRITE != 0) != (direction == Direction::ToGuest) {
            return Err(RingError::Direction);
        }
        let len = u64::from(descriptor.len);
        if len == 0 {
            return Err(RingError::Empty);
        }
        match self.extents.last_mut() {
            // Neighbours in memory are one access.
            Some(last) if last.at.checked_add(last.len) == Some(descriptor.at) => last.len += len,
            _ => self.extents.push(Extent { at: descriptor.at, len }),
        }
        Ok(len)
    }

    fn descriptor<F: MemoryFiles>(
        &mut self,
        memory: &GuestMemory<'_, F>,
        index: u16,
    ) -> Result<Descriptor, RingError> {
        if index >= self.place.size {
            return Err(RingError::Descriptor);
        }
        let (first, bytes) = &mut self.run;
        let start = index - index % RUN;
        if bytes.is_empty() || *first != start {
            *first = start;
            bytes.resize(DESCRIPTOR_LEN * usize::from(RUN.min(self.place.size)), 0);
            let at = self.place.descriptors + DESCRIPTOR_LEN as u64 * u64::from(start);
            memory.read(at, bytes)?;
        }
        let at = DESCRIPTOR_LEN * usize::from(index - start);
        Ok(Descriptor::parse(&bytes[at..at + DESCRIPTOR_LEN]))
    }
}

impl Descriptor {
    fn parse(bytes: &[u8]) -> Self {
        let (at, rest) = bytes.split_at(8);
        let (len, rest) = rest.split_at(4);
        let (flags, next) = rest.split_at(2);
        let u16_of = |bytes: &[u8]| u16::from_le_bytes(bytes.try_into().expect("the length is 2"));
        Self {
            at: u64::from_le_bytes(at.try_into().expect("the length is 8")),
            len: u32::from_le_bytes(len.try_into().expect("the length is 4")),
            flags: u16_of(flags),
            next: u16_of(next),
        }
    }
}
