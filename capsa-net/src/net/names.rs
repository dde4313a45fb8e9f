//! The names that addresses stand for: [`NamePool`] and [`PinnedNames`].
//!
//! Under a policy, the guest gets an address of 198.18.0.0/15 for each name, and no address of the host's
//! side. A connection to it is a connection to the name. Where a rule asks for real addresses, those that
//! the resolver gave are pinned to the name. Both tables are bounded. They do not know what is allowed.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};
use core::ops::RangeInclusive;
use core::time::Duration;

use capsa_proto::policy::is_within_v4;
use capsa_proto::time::Instant;

/// Names that have an address, at most.
pub(super) const POOL_NAMES: usize = 1024;
/// An address is not given to another name before this time has passed without a query or flow.
pub(super) const HOLD: Duration = Duration::from_secs(10 * 60);

/// The range that is reserved for benchmarks: no host of the internet has an address in it.
const RANGE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const PREFIX: u8 = 15;

/// Names with pinned addresses, at most.
const PINNED_NAMES: usize = 256;
/// Addresses that are pinned to one name, at most.
const PINNED_ADDRESSES: usize = 64;
/// An address is pinned for as long as the guest may keep the answer, within these bounds: programs connect
/// a little after that, and names move to other addresses.
const PIN_TIME: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(10 * 60);
/// Names of one pinned address that are looked at.
const NAMES_OF_ADDRESS: usize = 16;

/// Whether the address is in the range of the pool.
pub(super) fn is_synthetic(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if is_within_v4(v4, RANGE, PREFIX))
}

/// The number of a name in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NameIndex(usize);

/// One address for each name.
#[derive(Debug, Default)]
pub(super) struct NamePool {
    names: Vec<PooledName>,
    by_name: BTreeMap<Arc<str>, NameIndex>,
    /// The names that no flow uses, by the time of their last use.
    unused: BTreeSet<(Instant, NameIndex)>,
}

#[derive(Debug)]
struct PooledName {
    name: Arc<str>,
    used_at: Instant,
    flows: usize,
}

impl NamePool {
    /// The address of a name. `None` when all addresses belong to names that were used lately.
    pub(super) fn address(&mut self, name: &str, now: Instant) -> Option<Ipv4Addr> {
        let index = match self.by_name.get(name) {
            Some(index) => *index,
            None => self.insert(name, now)?,
        };
        self.touch(index, now);
        Some(Ipv4Addr::from_bits(RANGE.to_bits() + 1 + index.0 as u32))
    }

    /// Whether a name has an address.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The name of an address that was handed out.
    pub(super) fn name(&self, address: IpAddr) -> Option<(NameIndex, &Arc<str>)> {
        let IpAddr::V4(v4) = address else { return None };
        let index = v4.to_bits().checked_sub(RANGE.to_bits() + 1)? as usize;
        self.names.get(index).map(|pooled| (NameIndex(index), &pooled.name))
    }

    /// A flow uses the address from now on.
    pub(super) fn acquire(&mut self, index: NameIndex) {
        if let Some(pooled) = self.names.get_mut(index.0) {
            pooled.flows += 1;
            self.unused.remove(&(pooled.used_at, index));
        }
    }

    /// A flow has used the address until now.
    pub(super) fn release(&mut self, index: NameIndex, now: Instant) {
        if let Some(pooled) = self.names.get_mut(index.0) {
            pooled.flows -= 1;
        }
        self.touch(index, now);
    }

    fn insert(&mut self, name: &str, now: Instant) -> Option<NameIndex> {
        let name: Arc<str> = name.into();
        let pooled = PooledName { name: name.clone(), used_at: now, flows: 0 };
        let index = if self.names.len() < POOL_NAMES {
            self.names.push(pooled);
            NameIndex(self.names.len() - 1)
        } else {
            let (_, index) = self.unused.first().filter(|(at, _)| *at + HOLD <= now).copied()?;
            self.unused.pop_first();
            let old = core::mem::replace(&mut self.names[index.0], pooled);
            self.by_name.remove(&old.name);
            index
        };
        self.by_name.insert(name, index);
        Some(index)
    }

    fn touch(&mut self, index: NameIndex, now: Instant) {
        let Some(pooled) = self.names.get_mut(index.0) else { return };
        if pooled.flows == 0 {
            self.unused.remove(&(pooled.used_at, index));
            pooled.used_at = now.max(pooled.used_at);
            self.unused.insert((pooled.used_at, index));
        }
    }
}

/// Real addresses of names.
#[derive(Debug, Default)]
pub(super) struct PinnedNames {
    names: BTreeMap<Arc<str>, Vec<PinnedAddress>>,
    by_address: BTreeSet<(IpAddr, Arc<str>)>,
}

#[derive(Debug)]
struct PinnedAddress {
    address: IpAddr,
    until: Instant,
    /// The address stays pinned while a flow uses it.
    flows: usize,
}

impl PinnedAddress {
    fn is_pinned(&self, now: Instant) -> bool {
        self.flows > 0 || self.until > now
    }
}

impl PinnedNames {
    /// Pins the addresses that the guest gets for a name, and may keep for the time `ttl`. Returns those that
    /// are pinned.
    pub(super) fn pin(
        &mut self,
        name: &str,
        addresses: &[IpAddr],
        ttl: Duration,
        now: Instant,
    ) -> Vec<IpAddr> {
        let until = now + ttl.clamp(*PIN_TIME.start(), *PIN_TIME.end());
        if !self.names.contains_key(name) && self.names.len() >= PINNED_NAMES {
            let end =
                |pins: &Vec<PinnedAddress>| pins.iter().map(|pin| (pin.flows > 0, pin.until)).max();
            let first = self.names.iter().min_by_key(|(_, pins)| end(pins));
            if let Some(first) = first.map(|(name, _)| name.clone()) {
                self.remove(&first);
            }
        }
        let name: Arc<str> = name.into();
        let pins = self.names.entry(name.clone()).or_default();
        pins.retain(|pin| {
            let is_kept = pin.is_pinned(now);
            if !is_kept {
                self.by_address.remove(&(pin.address, name.clone()));
            }
            is_kept
        });
        let mut pinned = Vec::new();
        for address in addresses {
            match pins.iter().position(|pin| pin.address == *address) {
                Some(index) => pins[index].until = pins[index].until.max(until),
                None if pins.len() < PINNED_ADDRESSES => {
                    pins.push(PinnedAddress { address: *address, until, flows: 0 });
                    self.by_address.insert((*address, name.clone()));
                }
                None => continue,
            }
            pinned.push(*address);
        }
        pinned
    }

    /// Whether a name has pinned addresses.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The names that an address is pinned to.
    pub(super) fn names(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = &Arc<str>> {
        let start = (address, Arc::from(""));
        let all = self.by_address.range(start..).take_while(move |(own, _)| *own == address);
        all.take(NAMES_OF_ADDRESS).map(|(_, name)| name).filter(move |name| {
            let mut pins = self.names.get(*name).into_iter().flatten();
            pins.any(|pin| pin.address == address && pin.is_pinned(now))
        })
    }

    /// A flow to the name uses the address from now on.
    pub(super) fn acquire(&mut self, name: &str, address: IpAddr) {
        if let Some(pin) = self.pin_mut(name, address) {
            pin.flows += 1;
        }
    }

    /// A flow to the name has used the address until now.
    pub(super) fn release(&mut self, name: &str, address: IpAddr) {
        if let Some(pin) = self.pin_mut(name, address) {
            // The pin may be younger than the flow, if there were too many names.
            pin.flows = pin.flows.saturating_sub(1);
        }
    }

    fn pin_mut(&mut self, name: &str, address: IpAddr) -> Option<&mut PinnedAddress> {
        self.names.get_mut(name)?.iter_mut().find(|pin| pin.address == address)
    }

    fn remove(&mut self, name: &Arc<str>) {
        for pin in self.names.remove(name).unwrap_or_default() {
            self.by_address.remove(&(pin.address, name.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    const START: Instant = Instant::ZERO;

    #[test]
    fn pool_address_is_not_reused_within_the_hold() {
        let mut pool = NamePool::default();
        let first = pool.address("n0.example", START).unwrap();
        for n in 1..POOL_NAMES {
            assert_ne!(pool.address(&format!("n{n}.example"), START), Some(first));
        }
        assert_eq!(pool.address("other.example", START), None);
        assert_eq!(pool.address("n0.example", START), Some(first));
        let (index, _) = pool.name(first.into()).unwrap();
        pool.acquire(index);
        let later = START + HOLD;
        for n in 1..POOL_NAMES {
            // A flow uses the first one.
            assert_ne!(pool.address(&format!("m{n}.example"), later), Some(first));
        }
        assert_eq!(pool.address("other.example", later), None);
        pool.release(index, later);
        assert_eq!(pool.address("other.example", later + Duration::from_secs(599)), None);
        assert_eq!(pool.address("other.example", later + HOLD), Some(first));
        assert_eq!(pool.name(first.into()).map(|(_, name)| &**name), Some("other.example"));
        assert_eq!((pool.names.len(), pool.by_name.len()), (POOL_NAMES, POOL_NAMES));
    }

    #[test]
    fn pins_are_bounded_and_end() {
        let mut pins = PinnedNames::default();
        let address = |n: u32| IpAddr::from(Ipv4Addr::from_bits(0x5db8_0000 + n));
        let many: Vec<IpAddr> = (0..100).map(address).collect();
        let longest = *PIN_TIME.end();
        assert_eq!(pins.pin("many.example", &many, longest, START), many[..64]);
        assert_eq!(pins.names(address(63), START).count(), 1);
        assert_eq!(pins.names(address(64), START).count(), 0);
        let end = START + longest;
        assert_eq!(pins.names(address(0), end).count(), 0);
        assert_eq!(pins.pin("many.example", &many[99..], longest, end), many[99..]);
        for n in 0..1000 {
            pins.pin(&format!("n{n}.example"), &[address(n)], longest, START);
            assert!(pins.names.len() <= PINNED_NAMES && pins.by_address.len() <= 257);
        }
        assert_eq!(pins.names(address(999), START).count(), 1);
        assert_eq!(pins.names(address(1), START).count(), 0);
    }

    #[test]
    fn pin_lasts_for_the_answer_and_its_flows() {
        let mut pins = PinnedNames::default();
        let address = IpAddr::from(Ipv4Addr::new(93, 184, 216, 34));
        let is_pinned = |pins: &PinnedNames, secs| {
            pins.names(address, START + Duration::from_secs(secs)).count()
        };
        for (ttl, time) in [(0, 60), (30, 60), (300, 300), (86_400, 600)] {
            pins = PinnedNames::default();
            pins.pin("a.example", &[address], Duration::from_secs(ttl), START);
            assert_eq!((is_pinned(&pins, time - 1), is_pinned(&pins, time)), (1, 0), "{ttl}");
        }
        // A shorter answer ends no pin early.
        pins.pin("a.example", &[address], Duration::ZERO, START);
        assert_eq!(is_pinned(&pins, 599), 1);
        pins.acquire("a.example", address);
        assert_eq!(is_pinned(&pins, 86_400), 1);
        for n in 0..1000 {
            pins.pin(&format!("n{n}.example"), &[address], Duration::from_secs(600), START);
        }
        assert!(pins.has_name("a.example") && !pins.has_name("n0.example"));
        pins.release("a.example", address);
        assert_eq!(is_pinned(&pins, 86_400), 0);
    }
}
