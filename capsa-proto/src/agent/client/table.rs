//! [`OperationTable`]: the operations that have begun, under their handles, and queues of them.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::error::OperationRefused;
use super::operation::OperationEntry;

/// An operation of an [`AgentClient`](super::AgentClient).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationHandle(pub(super) u32);

#[cfg(feature = "fuzz")]
impl OperationHandle {
    /// The handle with this id in messages.
    pub(crate) const fn from_wire(id: u32) -> Self {
        Self(id)
    }
}

/// How many operations may have begun and not been taken.
pub const MAX_BEGUN: usize = 1 << SLOT_BITS;

const SLOT_BITS: u32 = 10;

/// The operations. A handle has the index of its slot and a generation, so a look-up is one access.
#[derive(Debug, Default)]
pub(super) struct OperationTable {
    slots: Vec<TableSlot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct TableSlot {
    handle: OperationHandle,
    entry: Option<Box<OperationEntry>>,
}

impl OperationTable {
    pub(super) fn add(
        &mut self,
        entry: OperationEntry,
    ) -> Result<OperationHandle, OperationRefused> {
        let entry = Some(Box::new(entry));
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            let generation = (slot.handle.0 >> SLOT_BITS).wrapping_add(1) << SLOT_BITS;
            slot.handle =
                OperationHandle(if generation == 0 { 1 << SLOT_BITS } else { generation } | index);
            slot.entry = entry;
            return Ok(slot.handle);
        }
        let index = self.slots.len();
        if index == MAX_BEGUN {
            return Err(OperationRefused::TooMany(index));
        }
        let handle = OperationHandle(1 << SLOT_BITS | index as u32);
        self.slots.push(TableSlot { handle, entry });
        Ok(handle)
    }

    pub(super) fn entry(&self, handle: OperationHandle) -> Option<&OperationEntry> {
        let slot = self.slots.get(Self::index(handle))?;
        slot.entry.as_deref().filter(|_| slot.handle == handle)
    }

    pub(super) fn entry_mut(&mut self, handle: OperationHandle) -> Option<&mut OperationEntry> {
        let slot = self.slots.get_mut(Self::index(handle))?;
        slot.entry.as_deref_mut().filter(|_| slot.handle == handle)
    }

    pub(super) fn remove(&mut self, handle: OperationHandle) {
        let index = Self::index(handle);
        let slot = self.slots.get_mut(index).filter(|slot| slot.handle == handle);
        if slot.is_some_and(|slot| slot.entry.take().is_some()) {
            self.free.push(index as u32);
        }
    }

    pub(super) fn handles(&self) -> Vec<OperationHandle> {
        self.slots.iter().filter(|slot| slot.entry.is_some()).map(|slot| slot.handle).collect()
    }

    fn handle_at(&self, index: usize) -> Option<OperationHandle> {
        self.slots.get(index).filter(|slot| slot.entry.is_some()).map(|slot| slot.handle)
    }

    const fn index(handle: OperationHandle) -> usize {
        handle.0 as usize & (MAX_BEGUN - 1)
    }
}

/// Operations in the order in which they were added, each slot of the table at most once.
#[derive(Debug, Default)]
pub(super) struct OperationQueue {
    slots: VecDeque<usize>,
    is_queued: Vec<bool>,
}

impl OperationQueue {
    pub(super) fn push(&mut self, handle: OperationHandle) {
        let index = OperationTable::index(handle);
        if self.is_queued.len() <= index {
            self.is_queued.resize(index + 1, false);
        }
        if !core::mem::replace(&mut self.is_queued[index], true) {
            self.slots.push_back(index);
        }
    }

    /// The next operation that is still in the table.
    pub(super) fn pop(&mut self, table: &OperationTable) -> Option<OperationHandle> {
        loop {
            let index = self.slots.pop_front()?;
            self.is_queued[index] = false;
            if let Some(handle) = table.handle_at(index) {
                return Some(handle);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}
