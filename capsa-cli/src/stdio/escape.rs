//! The keys that are not the guest's: Ctrl-] and what follows it.
//!
//! Ctrl-] alone waits for the next key. `q` and `k` are orders, a second Ctrl-] is one for the
//! guest, and any other key goes to the guest with the Ctrl-] before it.

/// Ctrl-].
const PREFIX: u8 = 0x1d;

/// What the user wants of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Ask the guest to power off.
    Stop,
    /// Cut its power.
    Kill,
}

/// The state between two reads.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    after_prefix: bool,
}

impl Escape {
    /// Splits what was typed into bytes for the guest and orders.
    pub(crate) fn split(&mut self, typed: &[u8]) -> (Vec<u8>, Vec<Order>) {
        let (mut guest, mut orders) = (Vec::with_capacity(typed.len()), Vec::new());
        for &byte in typed {
            match (std::mem::take(&mut self.after_prefix), byte) {
                (false, PREFIX) => self.after_prefix = true,
                (false, byte) => guest.push(byte),
                (true, b'q') => orders.push(Order::Stop),
                (true, b'k') => orders.push(Order::Kill),
                (true, PREFIX) => guest.push(PREFIX),
                (true, byte) => guest.extend([PREFIX, byte]),
            }
        }
        (guest, orders)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_bytes_come_apart_however_the_reads_fall() {
        for (typed, guest, orders) in [
            (&b"ls\r\x03"[..], &b"ls\r\x03"[..], &[][..]),
            (b"a\x1dqb", b"ab", &[Order::Stop]),
            (b"\x1dk\x1dq", b"", &[Order::Kill, Order::Stop]),
            (b"\x1d\x1dq", b"\x1dq", &[]),
            (b"\x1dx\x1d", b"\x1dx", &[]),
        ] {
            for cut in 0..=typed.len() {
                let mut escape = Escape::default();
                let (mut bytes, mut wanted) = escape.split(&typed[..cut]);
                let (more, others) = escape.split(&typed[cut..]);
                bytes.extend(more);
                wanted.extend(others);
                assert_eq!((bytes.as_slice(), wanted.as_slice()), (guest, orders), "{typed:?}");
            }
        }
    }
}
