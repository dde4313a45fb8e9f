//! [`Resolver`]: resolves the names that a guest asks for, with the resolver of the host.
//!
//! Addresses come from `getaddrinfo`, so hosts file, VPN and split DNS work for the guest as for the
//! programs of the host, also after the host's network has changed. It blocks, so threads call it: a few
//! for all VMs of the program, which exist only while names are being resolved. Records of other types
//! come from the name servers of the host's configuration; see [`upstream`].
//!
//! A name is absolute: search domains of the host do not apply.

mod pool;
mod upstream;

use std::collections::VecDeque;
use std::ffi::CString;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use capsa_net::{QueryId, QueryType, ResolveError};

use crate::sys::{ForkGuard, NameError, PollWaker, addresses_of};

use self::pool::{POOL, QueueId};

/// The result of a resolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ResolvedName {
    /// For [`capsa_net::Net::handle_addresses`].
    Addresses(Result<Vec<IpAddr>, ResolveError>),
    /// For [`capsa_net::Net::handle_records`]: a message of an upstream server.
    Records(Result<Vec<u8>, ResolveError>),
}

/// Resolves names for one VM. Dropping it drops what it has not resolved.
#[derive(Debug)]
pub(crate) struct Resolver {
    queue: QueueId,
    answers: Arc<AnswerQueue>,
    fork_guard: ForkGuard,
}

/// Answers of the threads, for one VM.
#[derive(Debug)]
pub(crate) struct AnswerQueue {
    answers: Mutex<VecDeque<(QueryId, ResolvedName)>>,
    waker: PollWaker,
}

/// A name to resolve.
#[derive(Debug)]
struct ResolveJob {
    query: QueryId,
    name: String,
    query_type: QueryType,
    /// After this time nothing waits for the answer.
    ends_at: Instant,
}

impl Resolver {
    /// A resolver that wakes a poller when it has an answer.
    pub(crate) fn new(waker: PollWaker) -> Self {
        let answers = Arc::new(AnswerQueue { answers: Mutex::default(), waker });
        Self { queue: QueueId::new(), answers, fork_guard: ForkGuard::new() }
    }

    /// Resolves an absolute name in lower case, without a dot at its end. At most 64 names wait; further
    /// ones fail. In a forked child there is no answer: a lock may be one that no thread unlocks.
    pub(crate) fn resolve(&self, query: QueryId, name: String, query_type: QueryType) {
        if !self.fork_guard.is_same_process() {
            return;
        }
        let ends_at = Instant::now() + pool::PATIENCE;
        let job = ResolveJob { query, name, query_type, ends_at };
        if let Err(job) = POOL.push(self.queue, job, &self.answers) {
            self.answers.push(job.query, job.failed());
        }
    }

    /// The next answer.
    pub(crate) fn poll_answer(&self) -> Option<(QueryId, ResolvedName)> {
        if !self.fork_guard.is_same_process() {
            return None;
        }
        self.answers.lock().pop_front()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        POOL.remove(self.queue);
    }
}

impl AnswerQueue {
    fn push(&self, query: QueryId, answer: ResolvedName) {
        self.lock().push_back((query, answer));
        self.waker.wake();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(QueryId, ResolvedName)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolveJob {
    /// Resolves the name. Blocks.
    fn run(&self) -> ResolvedName {
        match self.query_type {
            QueryType::Addresses => ResolvedName::Addresses(addresses(&self.name)),
            QueryType::Records(record_type) => {
                ResolvedName::Records(upstream::records(&self.name, record_type))
            }
        }
    }

    fn failed(&self) -> ResolvedName {
        match self.query_type {
            QueryType::Addresses => ResolvedName::Addresses(Err(ResolveError::Failed)),
            QueryType::Records(_) => ResolvedName::Records(Err(ResolveError::Failed)),
        }
    }
}

/// The addresses of a name.
fn addresses(name: &str) -> Result<Vec<IpAddr>, ResolveError> {
    // The hosts file is not looked at for a name with a dot at its end (`nss_files` of glibc 2.41).
    let from_file = upstream::read(HOSTS).map(|text| in_hosts_file(&text, name));
    if let Some(addresses) = from_file.filter(|addresses| !addresses.is_empty()) {
        return Ok(addresses);
    }
    let Ok(absolute) = CString::new(format!("{name}.")) else { return Err(ResolveError::NoName) };
    addresses_of(&absolute).map_err(|error| match error {
        NameError::NoName => ResolveError::NoName,
        NameError::Failed => ResolveError::Failed,
    })
}

const HOSTS: &str = "/etc/hosts";

/// The addresses of a name in a hosts file.
fn in_hosts_file(text: &str, name: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address = words.next()?;
        let is_named = words.any(|word| word.eq_ignore_ascii_case(name));
        // An address with a zone is valid on one link of the host only.
        if is_named { address.parse().ok() } else { None }
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests;
