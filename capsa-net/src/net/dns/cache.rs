//! [`AnswerCache`]: what is known about names, for a short time.

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::time::Duration;

use capsa_proto::time::Instant;

use super::{KnownName, NEGATIVE, POSITIVE};
use crate::net::QueryType;

/// Names, at most.
const NAMES: usize = 256;
/// An answer with more bytes of data is not kept.
const DATA_MAX: usize = 4 << 10;

/// Names by what was asked about them.
#[derive(Debug, Default)]
pub(super) struct AnswerCache {
    names: BTreeMap<(String, QueryType), CachedName>,
}

#[derive(Debug)]
struct CachedName {
    known: KnownName,
    until: Instant,
}

impl AnswerCache {
    /// What is known, and for how many seconds.
    pub(super) fn find(
        &self,
        question: &(String, QueryType),
        now: Instant,
    ) -> Option<(&KnownName, u32)> {
        let cached = self.names.get(question).filter(|cached| cached.until > now)?;
        Some((&cached.known, seconds(cached.until.since(now))))
    }

    /// Keeps an answer, in place of the one that ends first when there are too many. Returns for how
    /// many seconds the guest may keep it.
    pub(super) fn insert(
        &mut self,
        question: (String, QueryType),
        known: &KnownName,
        now: Instant,
    ) -> u32 {
        let time = match known {
            KnownName::Addresses(all) if all.is_empty() => NEGATIVE,
            KnownName::Records(all) if all.is_empty() => NEGATIVE,
            KnownName::Addresses(_) => POSITIVE,
            KnownName::Records(all) => {
                let ttl = all.iter().map(|record| record.ttl).min().unwrap_or(0);
                POSITIVE.min(Duration::from_secs(ttl.into()))
            }
            KnownName::NoName(_) => NEGATIVE,
            // The host's network may come back at any time.
            KnownName::Unknown(_) => return 0,
        };
        let len = match known {
            KnownName::Records(all) | KnownName::NoName(all) => {
                all.iter().map(|record| record.owner.as_bytes().len() + record.data.len()).sum()
            }
            _ => 0,
        };
        if len <= DATA_MAX && !time.is_zero() {
            if self.names.len() >= NAMES {
                self.names.retain(|_, cached| cached.until > now);
            }
            if self.names.len() >= NAMES
                && let Some(first) = self.names.iter().min_by_key(|(_, cached)| cached.until)
            {
                let first = first.0.clone();
                self.names.remove(&first);
            }
            self.names.insert(question, CachedName { known: known.clone(), until: now + time });
        }
        seconds(time)
    }
}

#[cfg(test)]
impl AnswerCache {
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }
}

fn seconds(time: Duration) -> u32 {
    time.as_secs() as u32
}
