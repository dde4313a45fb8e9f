//! [`Walk`]: an automaton made deterministic as it goes, so that a byte costs one look into a table.
//!
//! A state is a set of the automaton's states. Which comes after it under a byte is worked out when
//! it is first needed, and kept. What is kept is bounded by [`CACHE_MAX`]: at the bound all is
//! forgotten but the present state, and the walk goes on. So the memory is bounded, and the work per
//! byte by the size of the expression, even where a guest sends what needs ever new states.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use regex_automata::Anchored;
use regex_automata::nfa::thompson::{NFA, State};
use regex_automata::util::primitives::StateID;

/// The most that the states of one walk take: 512 KiB, and one state more.
const CACHE_MAX: usize = 512 << 10;

/// Stands in the table for what was not worked out yet.
const UNKNOWN: u32 = u32::MAX;
/// Set in the table for a state in which a match has just ended.
const MATCH: u32 = 1 << 31;
/// Stands in a set for the end of a match.
const END: u32 = u32::MAX;

/// One way through an automaton, and what was worked out on it.
#[derive(Clone)]
pub(crate) struct Walk {
    /// To which column of the table a byte belongs.
    classes: Arc<[u8; 256]>,
    columns: usize,
    /// The states' successors, a row each: where the next row begins, and [`MATCH`].
    table: Vec<u32>,
    sets: Vec<Box<[u32]>>,
    rows: BTreeMap<Box<[u32]>, u32>,
    kept: usize,
    start: Box<[u32]>,
    /// The bytes that lead out of the start, where those are few.
    way_out: Option<Vec<u8>>,
    /// Where the row of the present state begins, and [`MATCH`].
    at: u32,
    start_row: u32,
    scratch: Closure,
}

impl Walk {
    pub(super) fn new(nfa: &NFA, anchored: Anchored) -> Self {
        let classes = nfa.byte_classes();
        let mut scratch = Closure { seen: vec![0; nfa.states().len()], ..Closure::default() };
        let start = match anchored {
            Anchored::No => nfa.start_unanchored(),
            _ => nfa.start_anchored(),
        };
        scratch.begin();
        scratch.add(nfa, start);
        let mut walk = Self {
            classes: Arc::new(core::array::from_fn(|byte| classes.get(byte as u8))),
            columns: classes.alphabet_len(),
            table: Vec::new(),
            sets: Vec::new(),
            rows: BTreeMap::new(),
            kept: 0,
            start: scratch.take(),
            way_out: None,
            at: 0,
            start_row: 0,
            scratch,
        };
        walk.restart();
        walk.way_out = walk.way_out(nfa);
        walk
    }

    /// Goes back to the start, and keeps what was worked out.
    pub(crate) fn restart(&mut self) {
        self.at = self.row(self.start.clone());
        self.start_row = self.at;
    }

    /// Whether no match is under way.
    pub(crate) fn is_at_start(&self) -> bool {
        self.at == self.start_row
    }

    /// How many bytes it took to come to the end of a match.
    pub(super) fn advance(&mut self, nfa: &NFA, bytes: &[u8]) -> Option<usize> {
        let mut i = 0;
        while i < bytes.len() {
            if self.at == self.start_row
                && let Some(way_out) = &self.way_out
            {
                let rest = &bytes[i..];
                i += match **way_out {
                    [] => None,
                    [a] => memchr::memchr(a, rest),
                    [a, b] => memchr::memchr2(a, b, rest),
                    [a, b, c] => memchr::memchr3(a, b, c, rest),
                    _ => Some(0),
                }?;
            }
            i += self.run(&bytes[i..]);
            let Some(&byte) = bytes.get(i) else { break };
            self.step(nfa, byte);
            i += 1;
            if self.at & MATCH != 0 {
                return Some(i);
            }
        }
        None
    }

    /// Goes backwards through `bytes`: where the last match on the way begins.
    pub(super) fn back(&mut self, nfa: &NFA, bytes: &[u8]) -> Option<usize> {
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

    /// What is kept, in bytes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.kept
    }

    /// Goes on while the way is known, has no match, and does not come back to a start that has a
    /// short way out. How far that was.
    fn run(&mut self, bytes: &[u8]) -> usize {
        let stop = if self.way_out.is_some() { self.start_row } else { UNKNOWN };
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
            if self.kept > CACHE_MAX {
                self.forget();
                self.at = self.row(set);
                return;
            }
            self.table[at] = self.row(set);
        }
        self.at = self.table[at];
    }

    /// Where the row of this state begins. It is made if need be.
    fn row(&mut self, set: Box<[u32]>) -> u32 {
        if let Some(&row) = self.rows.get(&set) {
            return row;
        }
        let flag = if set.last() == Some(&END) { MATCH } else { 0 };
        let row = self.table.len() as u32 | flag;
        self.table.resize(self.table.len() + self.columns, UNKNOWN);
        // The set twice, its row, and what the map around it takes.
        self.kept += (2 * set.len() + self.columns) * size_of::<u32>() + 64;
        self.sets.push(set.clone());
        self.rows.insert(set, row);
        row
    }

    fn forget(&mut self) {
        self.table.clear();
        self.sets.clear();
        self.rows.clear();
        self.kept = 0;
        self.start_row = self.row(self.start.clone());
    }

    fn index(&self) -> usize {
        (self.at & !MATCH) as usize / self.columns
    }

    /// The bytes that lead out of the start, if there are three or fewer.
    fn way_out(&mut self, nfa: &NFA) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let (mut class, mut leads_out) = (None, false);
        for byte in 0..=u8::MAX {
            // The bytes of a class are neighbours, and lead to the same.
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

/// Gathers the states that are reached without a byte.
#[derive(Clone, Default)]
struct Closure {
    /// In which round a state was seen last.
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
                // Assertions were refused.
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

impl fmt::Debug for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walk").field("states", &self.sets.len()).finish_non_exhaustive()
    }
}
