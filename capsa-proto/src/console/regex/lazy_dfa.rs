//! [`LazyDfa`]: a DFA that is built from an NFA on demand, so that a byte costs one table lookup.
//!
//! A DFA state is a set of NFA states. The successor of a state for a byte is computed when it is
//! first needed, and cached. [`CACHE_MAX`] bounds the cache: when it is full, all states but the
//! current one are dropped. So the memory is bounded, and the work per byte is bounded by the size of
//! the expression, even if the guest's output needs new states all the time.
//!
//! The lazy DFA of `regex-automata` 0.4 cannot replace it. It reports a match one byte late, so each chunk
//! would need `next_eoi_state` at its end; when that call clears the full cache, the state of the search is
//! lost, and the output would have to be searched again. Without a cache the search is too slow:
//! `docs/measurements.md` has the figures.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use regex_automata::Anchored;
use regex_automata::nfa::thompson::{NFA, State};
use regex_automata::util::primitives::StateID;

/// The maximum size of the cached states: 512 KiB plus one state.
const CACHE_MAX: usize = 512 << 10;

/// A table entry that was not computed yet.
const UNKNOWN: u32 = u32::MAX;
/// The flag of table entries for states in which a match has just ended.
const MATCH: u32 = 1 << 31;
/// The member of a set that marks the end of a match.
const END: u32 = u32::MAX;

/// A search with one automaton, and the states that were built for it.
#[derive(Clone)]
pub(crate) struct LazyDfa {
    /// The column of the table for each byte.
    classes: Arc<[u8; 256]>,
    columns: usize,
    /// One row of successors for each state: the index of the successor's row, and [`MATCH`].
    table: Vec<u32>,
    sets: Vec<Box<[u32]>>,
    rows: BTreeMap<Box<[u32]>, u32>,
    cached_bytes: usize,
    start: Box<[u32]>,
    /// The bytes that lead out of the start state, if there are at most three.
    start_bytes: Option<Vec<u8>>,
    /// The index of the current state's row, and [`MATCH`].
    at: u32,
    start_row: u32,
    scratch: Closure,
}

impl LazyDfa {
    pub(super) fn new(nfa: &NFA, anchored: Anchored) -> Self {
        let classes = nfa.byte_classes();
        let mut scratch = Closure { seen: vec![0; nfa.states().len()], ..Closure::default() };
        let start = match anchored {
            Anchored::No => nfa.start_unanchored(),
            _ => nfa.start_anchored(),
        };
        scratch.begin();
        scratch.add(nfa, start);
        let mut dfa = Self {
            classes: Arc::new(core::array::from_fn(|byte| classes.get(byte as u8))),
            columns: classes.alphabet_len(),
            table: Vec::new(),
            sets: Vec::new(),
            rows: BTreeMap::new(),
            cached_bytes: 0,
            start: scratch.take(),
            start_bytes: None,
            at: 0,
            start_row: 0,
            scratch,
        };
        dfa.restart();
        dfa.start_bytes = dfa.find_start_bytes(nfa);
        dfa
    }

    /// Returns to the start state and keeps the cached states.
    pub(crate) fn restart(&mut self) {
        self.at = self.row(self.start.clone());
        self.start_row = self.at;
    }

    /// Whether no partial match exists.
    pub(crate) fn is_at_start(&self) -> bool {
        self.at == self.start_row
    }

    /// Feeds bytes. Returns the number of bytes up to the end of a match.
    pub(super) fn advance(&mut self, nfa: &NFA, bytes: &[u8]) -> Option<usize> {
        let mut i = 0;
        while i < bytes.len() {
            if self.at == self.start_row
                && let Some(start_bytes) = &self.start_bytes
            {
                let rest = &bytes[i..];
                i += match **start_bytes {
                    [] => None,
                    [a] => memchr::memchr(a, rest),
                    [a, b] => memchr::memchr2(a, b, rest),
                    [a, b, c] => memchr::memchr3(a, b, c, rest),
                    _ => Some(0),
                }?;
            }
            i += self.run_cached(&bytes[i..]);
            let Some(&byte) = bytes.get(i) else { break };
            self.step(nfa, byte);
            i += 1;
            if self.at & MATCH != 0 {
                return Some(i);
            }
        }
        None
    }

    /// Feeds `bytes` in reverse. Returns the start of the longest match.
    pub(super) fn advance_back(&mut self, nfa: &NFA, bytes: &[u8]) -> Option<usize> {
        let mut found = (self.at & MATCH != 0).then_some(bytes.len());
        for (i, &byte) in bytes.iter().enumerate().rev() {
            self.step(nfa, byte);
            if self.at & MATCH != 0 {
                found = Some(i);
            }
            if self.sets[self.index()].is_empty() {
                break;
            }
        }
        found
    }

    /// The size of the cached states in bytes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.cached_bytes
    }

    /// Follows cached transitions until one is missing, leads to a match, or leads to the start state
    /// and that has `start_bytes`. Returns the number of bytes consumed.
    fn run_cached(&mut self, bytes: &[u8]) -> usize {
        let stop = if self.start_bytes.is_some() { self.start_row } else { UNKNOWN };
        let mut at = self.at;
        for (i, &byte) in bytes.iter().enumerate() {
            let next = self.table[at as usize + usize::from(self.classes[usize::from(byte)])];
            if next >= MATCH || next == stop {
                self.at = at;
                return i;
            }
            at = next;
        }
        self.at = at;
        bytes.len()
    }

    fn step(&mut self, nfa: &NFA, byte: u8) {
        let at = (self.at & !MATCH) as usize + usize::from(self.classes[usize::from(byte)]);
        if self.table[at] == UNKNOWN {
            let set = &self.sets[self.index()];
            self.scratch.begin();
            for &state in set.iter().filter(|&&state| state != END) {
                let next = match nfa.state(StateID::must(state as usize)) {
                    State::ByteRange { trans } if trans.matches_byte(byte) => Some(trans.next),
                    State::Sparse(transitions) => transitions.matches_byte(byte),
                    State::Dense(transitions) => transitions.matches_byte(byte),
                    _ => None,
                };
                if let Some(next) = next {
                    self.scratch.add(nfa, next);
                }
            }
            let set = self.scratch.take();
            if self.cached_bytes > CACHE_MAX {
                self.clear_cache();
                self.at = self.row(set);
                return;
            }
            self.table[at] = self.row(set);
        }
        self.at = self.table[at];
    }

    /// The index of this state's row, which is created if it does not exist.
    fn row(&mut self, set: Box<[u32]>) -> u32 {
        if let Some(&row) = self.rows.get(&set) {
            return row;
        }
        let flag = if set.last() == Some(&END) { MATCH } else { 0 };
        let row = self.table.len() as u32 | flag;
        self.table.resize(self.table.len() + self.columns, UNKNOWN);
        // The set (stored twice), its row, and the overhead of the map.
        self.cached_bytes += (2 * set.len() + self.columns) * size_of::<u32>() + 64;
        self.sets.push(set.clone());
        self.rows.insert(set, row);
        row
    }

    fn clear_cache(&mut self) {
        self.table.clear();
        self.sets.clear();
        self.rows.clear();
        self.cached_bytes = 0;
        self.start_row = self.row(self.start.clone());
    }

    fn index(&self) -> usize {
        (self.at & !MATCH) as usize / self.columns
    }

    /// The bytes that lead out of the start state, if there are at most three.
    fn find_start_bytes(&mut self, nfa: &NFA) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let (mut class, mut leads_out) = (None, false);
        for byte in 0..=u8::MAX {
            // The bytes of a class are adjacent and have the same successor.
            if class.replace(self.classes[usize::from(byte)])
                != Some(self.classes[usize::from(byte)])
            {
                self.at = self.start_row;
                self.step(nfa, byte);
                leads_out = self.at != self.start_row;
            }
            if leads_out {
                bytes.push(byte);
            }
        }
        self.restart();
        (bytes.len() <= 3).then_some(bytes)
    }
}

/// Computes the set of NFA states that are reachable without consuming a byte.
#[derive(Clone, Default)]
struct Closure {
    /// The round in which each state was last seen.
    seen: Vec<u32>,
    round: u32,
    stack: Vec<StateID>,
    set: Vec<u32>,
}

impl Closure {
    fn begin(&mut self) {
        if self.round == u32::MAX {
            self.seen.fill(0);
            self.round = 0;
        }
        self.round += 1;
        self.set.clear();
    }

    fn add(&mut self, nfa: &NFA, state: StateID) {
        self.stack.push(state);
        while let Some(state) = self.stack.pop() {
            if core::mem::replace(&mut self.seen[state.as_usize()], self.round) == self.round {
                continue;
            }
            match nfa.state(state) {
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) => {
                    self.set.push(state.as_u32());
                }
                State::Union { alternates } => self.stack.extend(alternates.iter()),
                State::BinaryUnion { alt1, alt2 } => self.stack.extend([alt1, alt2]),
                State::Capture { next, .. } => self.stack.push(*next),
                State::Match { .. } => self.set.push(END),
                // Expressions with assertions were rejected.
                State::Look { .. } | State::Fail => {}
            }
        }
    }

    fn take(&mut self) -> Box<[u32]> {
        self.set.sort_unstable();
        self.set.dedup();
        self.set.as_slice().into()
    }
}

impl fmt::Debug for LazyDfa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyDfa").field("states", &self.sets.len()).finish_non_exhaustive()
    }
}
