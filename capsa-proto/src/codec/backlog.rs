//! [`Backlog`]: received bytes that were not decoded yet.

use alloc::vec::Vec;

use super::MAX_BACKLOG;

/// A byte queue with a limit of [`MAX_BACKLOG`].
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    start: usize,
}

impl Backlog {
    /// Appends `more`. Returns `false` and changes nothing if that would exceed the limit.
    pub(super) fn push(&mut self, more: &[u8]) -> bool {
        if self.pending().len().saturating_add(more.len()) > MAX_BACKLOG {
            return false;
        }
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(more);
        true
    }

    pub(super) fn pending(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
    }

    /// Drops all bytes and frees the memory.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
