//! The Internet checksum (RFC 1071): the ones' complement of the ones' complement sum of 16-bit words.
//!
//! The sum of a packet is the sum of its parts, so a payload in several slices needs no copy. A part of
//! odd length is followed by a byte of the next one: [`Sum::add`] keeps track of that.

use core::net::IpAddr;

/// Whether the checksums of TCP and UDP are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChecksumPolicy {
    /// They are verified.
    #[default]
    Verify,
    /// They are ignored: the sender left them to its card, or the bytes were only copied in memory.
    Ignore,
}

/// A sum of 16-bit words in network order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    /// Cannot overflow: each step adds less than 2^33, and a packet has at most 64 KiB.
    total: u64,
    is_odd: bool,
}

impl Sum {
    /// The sum of the pseudo header of TCP, UDP and ICMPv6: addresses, protocol and length.
    pub fn of_pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Self {
        let mut sum = Self::default();
        for address in [source, destination] {
            match address {
                IpAddr::V4(v4) => sum.add(&v4.octets()),
                IpAddr::V6(v6) => sum.add(&v6.octets()),
            };
        }
        sum.total += u64::from(protocol) + len as u64;
        sum
    }

    /// Adds the next bytes of the packet.
    pub fn add(&mut self, bytes: &[u8]) -> &mut Self {
        let mut rest = bytes;
        if self.is_odd
            && let [first, tail @ ..] = rest
        {
            self.total += u64::from(*first);
            self.is_odd = false;
            rest = tail;
        }
        // Words of four bytes in the order of this CPU: the sum in the other order has the same bytes
        // (RFC 1071, 2B), and the compiler adds several words at once.
        let (words, tail) = rest.as_chunks::<4>();
        let native = words.iter().map(|w| u64::from(u32::from_ne_bytes(*w))).sum::<u64>();
        self.total += u64::from(u16::from_be(fold(native)));
        let (pairs, tail) = tail.as_chunks::<2>();
        self.total += pairs.iter().map(|w| u64::from(u16::from_be_bytes(*w))).sum::<u64>();
        if let [last] = tail {
            self.total += u64::from(*last) << 8;
            self.is_odd = true;
        }
        self
    }

    /// The checksum: the complement of the folded sum.
    pub fn checksum(&self) -> u16 {
        !self.folded()
    }

    /// The sum itself, folded to 16 bits.
    pub fn folded(&self) -> u16 {
        fold(self.total)
    }

    /// Whether the summed packet, with its checksum field, is intact.
    pub fn is_valid(&self) -> bool {
        self.checksum() == 0
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of `bytes`.
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::default().add(bytes).checksum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, word by word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn checksum_example_of_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    proptest! {
        #[test]
        fn checksum_equals_naive_for_any_parts(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
        ) {
            let mut sum = Sum::default();
            for part in &parts {
                sum.add(part);
            }
            prop_assert_eq!(sum.checksum(), naive(&parts.concat()));
        }
    }
}
