//! [`Cursor`]: the position of one reader in a [`Scrollback`].
//!
//! A cursor holds no bytes and borrows nothing, so a copy can look ahead. It belongs to one
//! scrollback; its use with another one is not detected.

use super::Scrollback;
use alloc::vec::Vec;

/// A read position, and the number of bytes that were dropped before this reader could read them.
///
/// ```
/// use capsa_proto::console::{Cursor, Scrollback};
///
/// let mut log = Scrollback::new(4);
/// let mut reader = Cursor::at(0);
/// log.push(b"abcdef");
/// assert_eq!(reader.take(&log), b"cdef");
/// assert_eq!(reader.lost(), 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    at: u64,
    lost: u64,
}

impl Cursor {
    /// A cursor at `offset`: zero for all output, [`Scrollback::end`] for future output only.
    pub const fn at(offset: u64) -> Self {
        Self { at: offset, lost: 0 }
    }

    /// Reads up to `into.len()` bytes and returns how many; zero if there are none.
    pub fn read(&mut self, log: &Scrollback, into: &mut [u8]) -> usize {
        self.catch_up(log);
        let unread = log.since(self.at);
        let n = unread.len().min(into.len());
        into[..n].copy_from_slice(&unread[..n]);
        self.at += n as u64;
        n
    }

    /// Reads all unread bytes.
    pub fn take(&mut self, log: &Scrollback) -> Vec<u8> {
        self.take_to(log, log.end())
    }

    /// The unread bytes, without reading them.
    pub fn peek<'a>(&self, log: &'a Scrollback) -> &'a [u8] {
        log.since(self.at)
    }

    /// Reads the unread bytes before `offset`. A cursor does not move back: the result is empty if
    /// `offset` is before the cursor.
    pub(crate) fn take_to(&mut self, log: &Scrollback, offset: u64) -> Vec<u8> {
        self.before(log, offset).to_vec()
    }

    /// Like `take_to`, without a copy.
    pub fn before<'a>(&mut self, log: &'a Scrollback, offset: u64) -> &'a [u8] {
        self.catch_up(log);
        let unread = log.since(self.at);
        let n = offset.saturating_sub(self.at).min(unread.len() as u64);
        self.at += n;
        &unread[..n as usize]
    }

    /// Moves back to `offset`: the bytes from there on are unread again.
    pub(super) fn put_back(&mut self, offset: u64) {
        self.at = self.at.min(offset);
    }

    /// The offset of the next byte. It may have been dropped.
    pub const fn offset(&self) -> u64 {
        self.at
    }

    /// How many bytes were dropped before this reader could read them.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Skips and counts dropped bytes.
    fn catch_up(&mut self, log: &Scrollback) {
        let missed = log.start().saturating_sub(self.at);
        self.at += missed;
        self.lost += missed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_independent() {
        let mut log = Scrollback::new(16);
        log.push(b"hello");
        let mut a = Cursor::at(0);
        let mut b = Cursor::at(2);
        let mut buf = [0; 3];
        assert_eq!(a.read(&log, &mut buf), 3);
        assert_eq!(&buf, b"hel");
        assert_eq!(b.take(&log), b"llo");
        assert_eq!(a.peek(&log), b"lo");
        assert_eq!(a.take(&log), b"lo");
        assert_eq!(a.read(&log, &mut buf), 0);
    }

    #[test]
    fn cursor_dropped_bytes_are_counted_once() {
        let mut log = Scrollback::new(4);
        let mut reader = Cursor::at(0);
        log.push(b"abcdefgh");
        assert_eq!(reader.peek(&log), b"efgh");
        assert_eq!(reader.lost(), 0, "peek does not read");
        assert_eq!(reader.take(&log), b"efgh");
        log.push(b"ijkl");
        assert_eq!(reader.take(&log), b"ijkl");
        assert_eq!((reader.lost(), reader.offset()), (4, 12));
    }

    #[test]
    fn cursor_beyond_end_reads_later_bytes() {
        let mut log = Scrollback::new(8);
        let mut reader = Cursor::at(3);
        log.push(b"ab");
        assert_eq!(reader.take(&log), b"");
        log.push(b"cd");
        assert_eq!(reader.take(&log), b"d");
    }

    #[test]
    fn cursor_before_does_not_move_back() {
        let mut log = Scrollback::new(8);
        log.push(b"abcd");
        let mut reader = Cursor::at(2);
        assert_eq!(reader.before(&log, 1), b"");
        assert_eq!(reader.before(&log, 3), b"c");
        assert_eq!(reader.before(&log, 99), b"d");
        assert_eq!(reader.offset(), 4);
    }
}
