//! The flows of one network, by their addresses and by their number.
//!
//! A guest chooses the addresses, so they are hashed with a secret key: otherwise it could choose many
//! that collide. A look-up costs the same for ten flows and for ten thousand.

use alloc::vec::Vec;
use core::fmt;
use core::hash::{BuildHasher, Hash};
use core::net::SocketAddr;

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

/// Identifies a flow. The number of a removed flow is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// The place of the flow in the table: small, and used again after the flow has ended.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// The number of no flow.
    pub(crate) const NONE: Self = Self { index: u32::MAX, generation: u32::MAX };
}

impl fmt::Debug for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flow {}.{}", self.index, self.generation)
    }
}

/// The protocol of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FlowProtocol {
    /// A TCP connection.
    Tcp,
    /// UDP datagrams.
    Udp,
    /// Echo requests of ICMP or ICMPv6. The identifier is the guest's port, and the remote port is 0.
    Echo,
}

/// The addresses of a flow, as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FlowAddresses {
    /// The protocol.
    pub(crate) protocol: FlowProtocol,
    /// The guest's address and port.
    pub(crate) guest: SocketAddr,
    /// The address and port at the other end.
    pub(crate) remote: SocketAddr,
}

/// A secret key, and the hash functions that use it.
#[derive(Debug, Clone)]
pub(crate) struct HashKey([u8; 16]);

impl HashKey {
    pub(crate) fn new(key: [u8; 16]) -> Self {
        Self(key)
    }
}

impl BuildHasher for HashKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

/// Flows of type `F`, at most a fixed number.
#[derive(Debug)]
pub(crate) struct FlowTable<F> {
    slots: Vec<FlowSlot<F>>,
    free: Vec<u32>,
    /// The indexes of the flows, by their addresses. These are in the slot only: they are large.
    by_addresses: HashTable<u32>,
    secret: HashKey,
    capacity: usize,
}

#[derive(Debug)]
struct FlowSlot<F> {
    generation: u32,
    flow: Option<(FlowAddresses, F)>,
}

impl<F> FlowSlot<F> {
    fn has(&self, addresses: &FlowAddresses) -> bool {
        self.flow.as_ref().is_some_and(|(own, _)| own == addresses)
    }
}

/// The table has its maximum number of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableFull;

impl<F> FlowTable<F> {
    pub(crate) fn new(capacity: usize, secret: HashKey) -> Self {
        let by_addresses = HashTable::new();
        Self { slots: Vec::new(), free: Vec::new(), by_addresses, secret, capacity }
    }

    /// Sets the maximum number of flows. Flows beyond it stay.
    pub(crate) fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    pub(crate) fn len(&self) -> usize {
        self.by_addresses.len()
    }

    /// The memory that the table has allocated, in bytes.
    #[cfg(test)]
    pub(crate) fn allocated(&self) -> usize {
        let slots = self.slots.capacity() * size_of::<FlowSlot<F>>();
        slots + self.free.capacity() * size_of::<u32>() + self.by_addresses.allocation_size()
    }

    /// The flows.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &F> {
        self.slots.iter().filter_map(|slot| slot.flow.as_ref()).map(|(_, flow)| flow)
    }

    /// The numbers of the flows.
    pub(crate) fn ids(&self) -> impl Iterator<Item = FlowId> {
        let slots = self.slots.iter().enumerate().filter(|(_, slot)| slot.flow.is_some());
        slots.map(|(index, slot)| FlowId { index: index as u32, generation: slot.generation })
    }

    pub(crate) fn find(&self, addresses: &FlowAddresses) -> Option<FlowId> {
        let hash = self.secret.hash_one(addresses);
        let index =
            *self.by_addresses.find(hash, |index| self.slots[*index as usize].has(addresses))?;
        Some(FlowId { index, generation: self.slots[index as usize].generation })
    }

    /// Adds a flow. The table has none with these addresses.
    pub(crate) fn insert(
        &mut self,
        addresses: FlowAddresses,
        flow: F,
    ) -> Result<FlowId, TableFull> {
        debug_assert_eq!(self.find(&addresses), None, "two flows have the same addresses");
        if self.len() >= self.capacity {
            return Err(TableFull);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            if self.slots.len() == self.slots.capacity() {
                // An eighth more, not twice as much: a slot is large.
                self.slots.reserve_exact((self.slots.len() / 8).max(16));
            }
            self.slots.push(FlowSlot { generation: 0, flow: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.flow = Some((addresses, flow));
        let id = FlowId { index, generation: slot.generation };
        let (slots, secret) = (&self.slots, &self.secret);
        self.by_addresses.insert_unique(secret.hash_one(addresses), index, |index| {
            let flow = slots[*index as usize].flow.as_ref();
            secret.hash_one(flow.expect("an index of the table has a flow").0)
        });
        Ok(id)
    }

    pub(crate) fn get(&self, id: FlowId) -> Option<&(FlowAddresses, F)> {
        let slot = self.slots.get(id.index as usize)?;
        slot.flow.as_ref().filter(|_| slot.generation == id.generation)
    }

    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<(&FlowAddresses, &mut F)> {
        let slot = self.slots.get_mut(id.index as usize)?;
        let flow = slot.flow.as_mut().filter(|_| slot.generation == id.generation)?;
        Some((&flow.0, &mut flow.1))
    }

    pub(crate) fn remove(&mut self, id: FlowId) -> Option<F> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let (addresses, flow) = slot.flow.take()?;
        let hash = self.secret.hash_one(addresses);
        if let Ok(entry) = self.by_addresses.find_entry(hash, |index| *index == id.index) {
            entry.remove();
        }
        // A slot whose generations are used up is never used again.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(id.index);
        }
        Some(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(port: u16) -> FlowAddresses {
        FlowAddresses {
            protocol: FlowProtocol::Tcp,
            guest: SocketAddr::from(([10, 0, 2, 15], port)),
            remote: SocketAddr::from(([93, 184, 216, 34], 443)),
        }
    }

    #[test]
    fn removed_id_is_never_valid_again() {
        let mut table = FlowTable::new(1, HashKey::new([7; 16]));
        let first = table.insert(addresses(1), 'a').unwrap();
        assert_eq!(table.insert(addresses(2), 'b'), Err(TableFull));
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert(addresses(1), 'c').unwrap();
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.find(&addresses(1)), Some(second));
        assert_eq!(table.get_mut(second).map(|(_, flow)| *flow), Some('c'));
    }
}
