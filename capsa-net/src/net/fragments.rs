//! [`FragmentTable`]: datagrams of the guest that arrive in fragments.
//!
//! Nothing looks at a fragment before its datagram is whole, so that no header can hide in fragments. A
//! datagram of which two fragments overlap is dropped with all its later fragments (RFC 5722). The table
//! is bounded: a further datagram takes the place of the oldest one.

use alloc::vec::Vec;
use core::mem;
use core::net::IpAddr;
use core::ops::Range;
use core::time::Duration;

use capsa_proto::time::Instant;

use crate::wire::ip::{Fragment, IpHeader};

/// Incomplete datagrams, at most.
const DATAGRAMS: usize = 16;
/// Fragments of a datagram, at most.
const FRAGMENTS: usize = 512;
/// A datagram is dropped when it is not whole after this time.
const COMPLETE_WITHIN: Duration = Duration::from_secs(30);

/// Incomplete datagrams, in the order of their first fragments.
#[derive(Debug, Default)]
pub(super) struct FragmentTable {
    datagrams: Vec<IncompleteDatagram>,
}

/// What a fragment means for its datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reassembly {
    /// The datagram is not whole yet.
    Incomplete,
    /// The datagram is whole; this is its payload.
    Complete(Vec<u8>),
    /// The datagram was dropped: fragments overlap, contradict each other, or are too many.
    Dropped,
}

#[derive(Debug)]
struct IncompleteDatagram {
    addresses: (IpAddr, IpAddr),
    protocol: u8,
    id: u32,
    until: Instant,
    /// `None`: the datagram is dropped, and later fragments are, too.
    content: Option<DatagramContent>,
}

#[derive(Debug, Default)]
struct DatagramContent {
    payload: Vec<u8>,
    /// The parts that have arrived, in order. Adjacent ones are joined.
    parts: Vec<Range<usize>>,
    fragments: usize,
    /// The length of the whole payload, from the last fragment.
    total: Option<usize>,
}

impl FragmentTable {
    /// A fragment of a packet with this header.
    pub(super) fn add(
        &mut self,
        header: &IpHeader,
        fragment: &Fragment,
        payload: &[u8],
        now: Instant,
    ) -> Reassembly {
        self.handle_timeout(now);
        let addresses = (header.source, header.destination);
        let found = self.datagrams.iter().position(|datagram| {
            (datagram.addresses, datagram.protocol, datagram.id)
                == (addresses, header.protocol, fragment.id)
        });
        let index = found.unwrap_or_else(|| {
            if self.datagrams.len() == DATAGRAMS {
                self.datagrams.remove(0);
            }
            self.datagrams.push(IncompleteDatagram {
                addresses,
                protocol: header.protocol,
                id: fragment.id,
                until: now + COMPLETE_WITHIN,
                content: Some(DatagramContent::default()),
            });
            self.datagrams.len() - 1
        });
        let content = &mut self.datagrams[index].content;
        if !content.as_mut().is_some_and(|content| content.add(fragment, payload)) {
            *content = None;
            return Reassembly::Dropped;
        }
        match content {
            Some(content) if content.is_whole() => {
                let payload = mem::take(&mut content.payload);
                self.datagrams.remove(index);
                Reassembly::Complete(payload)
            }
            _ => Reassembly::Incomplete,
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.datagrams.first().map(|datagram| datagram.until)
    }

    /// Forgets the datagrams whose time is over.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.datagrams.retain(|datagram| now < datagram.until);
    }
}

impl DatagramContent {
    /// Adds a fragment. Returns false if the datagram must be dropped.
    fn add(&mut self, fragment: &Fragment, payload: &[u8]) -> bool {
        let (start, end) = (fragment.offset, fragment.offset + payload.len());
        self.fragments += 1;
        let last_end = self.parts.last().map_or(0, |part| part.end);
        let is_possible = match (self.total, fragment.more) {
            (Some(total), true) => end < total,
            (Some(_), false) => false,
            (None, true) => true,
            (None, false) => last_end <= start,
        };
        // The first part that does not end before the fragment.
        let index = self.parts.partition_point(|part| part.end <= start);
        let overlaps = self.parts.get(index).is_some_and(|part| part.start < end);
        if self.fragments > FRAGMENTS || !is_possible || overlaps {
            return false;
        }
        if !fragment.more {
            self.total = Some(end);
        }
        if self.payload.len() < end {
            self.payload.resize(end, 0);
        }
        self.payload[start..end].copy_from_slice(payload);
        let joins_previous = index > 0 && self.parts[index - 1].end == start;
        let joins_next = self.parts.get(index).is_some_and(|part| part.start == end);
        match (joins_previous, joins_next) {
            (true, true) => self.parts[index - 1].end = self.parts.remove(index).end,
            (true, false) => self.parts[index - 1].end = end,
            (false, true) => self.parts[index].start = start,
            (false, false) => self.parts.insert(index, start..end),
        }
        true
    }

    fn is_whole(&self) -> bool {
        matches!((self.total, &self.parts[..]), (Some(total), [part]) if *part == (0..total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::UDP;
    use alloc::vec;
    use proptest::prelude::*;

    const NOW: Instant = Instant::ZERO;

    fn header() -> IpHeader {
        let (source, destination) = ([10, 0, 2, 15].into(), [93, 184, 216, 34].into());
        IpHeader { source, destination, protocol: UDP, hop_limit: 64 }
    }

    fn add(table: &mut FragmentTable, id: u32, part: Range<usize>, more: bool) -> Reassembly {
        let payload: Vec<u8> = part.clone().map(|n| n as u8).collect();
        let fragment = Fragment { id, offset: part.start, more };
        table.add(&header(), &fragment, &payload, NOW)
    }

    #[test]
    fn overlap_drops_datagram_and_later_fragments() {
        let overlaps = [(0..16, true), (8..24, true), (0..8, true), (8..16, true), (8..17, false)];
        for (part, more) in overlaps {
            let mut table = FragmentTable::default();
            assert_eq!(add(&mut table, 1, 0..16, true), Reassembly::Incomplete);
            assert_eq!(add(&mut table, 1, part, more), Reassembly::Dropped);
            assert_eq!(add(&mut table, 1, 0..16, true), Reassembly::Dropped);
            assert_eq!(add(&mut table, 1, 16..20, false), Reassembly::Dropped);
            assert!(matches!(add(&mut table, 2, 0..16, true), Reassembly::Incomplete));
            assert!(matches!(add(&mut table, 2, 16..20, false), Reassembly::Complete(_)));
        }
    }

    #[test]
    fn fragment_beyond_the_end_drops_datagram() {
        let mut table = FragmentTable::default();
        assert_eq!(add(&mut table, 1, 16..20, false), Reassembly::Incomplete);
        assert_eq!(add(&mut table, 1, 24..32, true), Reassembly::Dropped);
        assert_eq!(add(&mut table, 2, 24..32, true), Reassembly::Incomplete);
        assert_eq!(add(&mut table, 2, 16..20, false), Reassembly::Dropped);
        assert_eq!(add(&mut table, 3, 16..20, false), Reassembly::Incomplete);
        assert_eq!(add(&mut table, 3, 24..28, false), Reassembly::Dropped);
    }

    #[test]
    fn datagram_has_a_bounded_number_of_fragments() {
        let mut table = FragmentTable::default();
        for n in 0..FRAGMENTS {
            assert_eq!(add(&mut table, 1, n * 16..n * 16 + 8, true), Reassembly::Incomplete);
        }
        assert_eq!(add(&mut table, 1, 8..16, true), Reassembly::Dropped);
    }

    #[test]
    fn table_full_forgets_the_oldest_datagram() {
        let mut table = FragmentTable::default();
        for id in 0..=DATAGRAMS as u32 {
            add(&mut table, id, 0..8, true);
        }
        assert_eq!(table.datagrams.len(), DATAGRAMS);
        assert_eq!(add(&mut table, 1, 8..9, false), Reassembly::Complete((0..9).collect()));
        assert_eq!(add(&mut table, 0, 8..9, false), Reassembly::Incomplete);
    }

    #[test]
    fn datagram_with_a_hole_ends_after_30_seconds() {
        let mut table = FragmentTable::default();
        add(&mut table, 1, 0..8, true);
        assert_eq!(table.poll_timeout(), Some(NOW + COMPLETE_WITHIN));
        table.handle_timeout(NOW + COMPLETE_WITHIN);
        assert_eq!((table.poll_timeout(), table.datagrams.len()), (None, 0));
    }

    /// Cuts of a payload at multiples of 8, in any order.
    fn cut(len: usize, cuts: &[usize], order: u64) -> Vec<(Range<usize>, bool)> {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| (cut * 8) % len).collect();
        ends.retain(|end| *end > 0);
        ends.extend([0, len]);
        ends.sort_unstable();
        ends.dedup();
        let mut parts: Vec<_> =
            ends.windows(2).map(|pair| (pair[0]..pair[1], pair[1] < len)).collect();
        fastrand::Rng::with_seed(order).shuffle(&mut parts);
        parts
    }

    proptest! {
        #[test]
        fn any_split_in_any_order_gives_the_bytes(
            len in 9usize..=65_515,
            cuts in proptest::collection::vec(1usize..8190, 1..40),
            order: u64,
        ) {
            let payload: Vec<u8> = (0..len).map(|n| (n ^ (n >> 8)) as u8).collect();
            let parts = cut(len, &cuts, order);
            let mut table = FragmentTable::default();
            for (n, (part, more)) in parts.iter().enumerate() {
                let fragment = Fragment { id: 1, offset: part.start, more: *more };
                let bytes = &payload[part.clone()];
                let expected = match n + 1 == parts.len() {
                    false => Reassembly::Incomplete,
                    true => Reassembly::Complete(payload.clone()),
                };
                prop_assert_eq!(table.add(&header(), &fragment, bytes, NOW), expected);
            }
            prop_assert!(table.datagrams.is_empty());
        }

        #[test]
        fn any_overlap_drops_the_datagram(
            len in 24usize..2000,
            cuts in proptest::collection::vec(1usize..250, 1..10),
            order: u64,
            extra in (0usize..250, 1usize..20, any::<u64>()),
        ) {
            let mut parts = cut(len, &cuts, order);
            // One more fragment with the same number, before the datagram is whole.
            let start = (extra.0 * 8 % len) & !7;
            let end = (start + extra.1 * 8).min(len);
            let at = (extra.2 % parts.len() as u64) as usize;
            parts.insert(at, (start..end, end < len));
            let mut table = FragmentTable::default();
            let mut seen: Vec<Range<usize>> = Vec::new();
            for (part, more) in parts {
                let fragment = Fragment { id: 1, offset: part.start, more };
                let result = table.add(&header(), &fragment, &vec![0; part.len()], NOW);
                let is_apart = |old: &Range<usize>| old.end <= part.start || part.end <= old.start;
                let overlaps = !seen.iter().all(is_apart);
                prop_assert!(!overlaps || result == Reassembly::Dropped);
                seen.push(part);
                if let Reassembly::Complete(_) = result {
                    // The additional fragment was the rest of the datagram.
                    break;
                }
            }
        }
    }
}
