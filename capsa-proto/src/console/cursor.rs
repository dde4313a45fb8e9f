//! [`Cursor`]: one reader's place in a [`Scrollback`].
//!
//! It holds no bytes and no borrow, so it can be copied to look ahead and put back to forget that.
//! It belongs to one log; taking it to another is not detected.

use super::Scrollback;
use alloc::vec::Vec;

/// A place in a log, and how many bytes were dropped before they could be read from it.
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
    /// A reader whose next byte is the one at `offset`: zero for all there ever was,
    /// [`Scrollback::end`] for only what comes from now on.
    pub const fn at(offset: u64) -> Self {
        Self { at: offset, lost: 0 }
    }

    /// Moves up to `into.len()` bytes out of the log and says how many; zero when there are none.
    pub fn read(&mut self, log: &Scrollback, into: &mut [u8]) -> usize {
        self.catch_up(log);
        let unread = log.since(self.at);
        let n = unread.len().min(into.len());
        into[..n].copy_from_slice(&unread[..n]);
        self.at += n as u64;
        n
    }

    /// Everything unread.
    pub fn take(&mut self, log: &Scrollback) -> Vec<u8> {
        self.take_to(log, log.end())
    }

    /// What [`take`](Self::take) would give, left unread.
    pub fn peek<'a>(&self, log: &'a Scrollback) -> &'a [u8] {
        log.since(self.at)
    }

    /// The unread bytes before `offset`, which are then read. A reader never goes back: an offset
    /// behind the cursor gives nothing.
    pub fn take_to(&mut self, log: &Scrollback, offset: u64) -> Vec<u8> {
        self.before(log, offset).to_vec()
    }

    /// Like [`take_to`](Self::take_to), without a copy.
    pub fn before<'a>(&mut self, log: &'a Scrollback, offset: u64) -> &'a [u8] {
        self.catch_up(log);
        let unread = log.since(self.at);
        let n = offset.saturating_sub(self.at).min(unread.len() as u64);
        self.at += n;
        &unread[..n as usize]
    }

    /// Makes unread again what comes from `offset` on.
    pub(super) fn put_back(&mut self, offset: u64) {
        self.at = self.at.min(offset);
    }

    /// The offset of the next byte, which may have been dropped meanwhile.
    pub const fn offset(&self) -> u64 {
        self.at
    }

    /// How many bytes this reader missed because they were dropped before it read on.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Steps over what was dropped, and counts it.
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
    fn readers_do_not_disturb_each_other() {
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
    fn dropped_bytes_are_counted_once() {
        let mut log = Scrollback::new(4);
        let mut reader = Cursor::at(0);
        log.push(b"abcdefgh");
        assert_eq!(reader.peek(&log), b"efgh");
        assert_eq!(reader.lost(), 0, "looking is not reading");
        assert_eq!(reader.take(&log), b"efgh");
        log.push(b"ijkl");
        assert_eq!(reader.take(&log), b"ijkl");
        assert_eq!((reader.lost(), reader.offset()), (4, 12));
    }

    #[test]
    fn a_cursor_ahead_of_the_log_waits_there() {
        let mut log = Scrollback::new(8);
        let mut reader = Cursor::at(3);
        log.push(b"ab");
        assert_eq!(reader.take(&log), b"");
        log.push(b"cd");
        assert_eq!(reader.take(&log), b"d");
    }

    #[test]
    fn before_never_goes_back() {
        let mut log = Scrollback::new(8);
        log.push(b"abcd");
        let mut reader = Cursor::at(2);
        assert_eq!(reader.before(&log, 1), b"");
        assert_eq!(reader.before(&log, 3), b"c");
        assert_eq!(reader.before(&log, 99), b"d");
        assert_eq!(reader.offset(), 4);
    }
}
