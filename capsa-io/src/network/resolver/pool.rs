//! The threads that resolve names, for all VMs of the program.
//!
//! A thread starts when a name waits and none is free, and ends after a second without work. A look-up
//! cannot be cancelled, and a guest can ask for names whose servers never answer. So a VM has at most
//! two threads at a time, and the VMs take turns.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::ForkGuard;

use super::{AnswerQueue, ResolveJob};

/// Threads of the program, at most.
const THREADS: usize = 8;
/// Names of one VM that are resolved at the same time, at most.
const RUNNING: usize = 2;
/// Names of one VM that wait, at most.
const WAITING: usize = 64;
/// A name that has waited for this time is not resolved.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(1);

pub(super) static POOL: LazyLock<Pool> = LazyLock::new(Pool::new);

/// Identifies the queue of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueId(u64);

impl QueueId {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Threads, and the names that wait for them.
#[derive(Debug)]
pub(super) struct Pool {
    fork_guard: ForkGuard,
    /// A leaf lock, held for a few steps.
    state: Mutex<PoolState>,
    has_work: Condvar,
}

#[derive(Debug, Default)]
struct PoolState {
    threads: usize,
    idle: usize,
    /// The VMs with names that wait or are being resolved.
    queues: BTreeMap<QueueId, JobQueue>,
    /// The VM whose turn was last.
    last: Option<QueueId>,
}

#[derive(Debug)]
struct JobQueue {
    waiting: VecDeque<ResolveJob>,
    running: usize,
    answers: Arc<AnswerQueue>,
}

impl Pool {
    fn new() -> Self {
        Self { fork_guard: ForkGuard::new(), state: Mutex::default(), has_work: Condvar::new() }
    }

    /// Queues a name, or returns it: when too many wait, no thread can be started, or in a forked
    /// child, which does not have the threads.
    pub(super) fn push(
        &'static self,
        queue: QueueId,
        job: ResolveJob,
        answers: &Arc<AnswerQueue>,
    ) -> Result<(), ResolveJob> {
        // Before the lock, which another thread of the parent may have held.
        if !self.fork_guard.is_same_process() {
            return Err(job);
        }
        let mut state = self.lock();
        if state.idle == 0 && state.threads < THREADS {
            let thread = std::thread::Builder::new().name("capsa-resolve".into());
            match thread.spawn(move || self.work()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    tracing::error!("cannot start a thread that resolves names: {error}");
                    return Err(job);
                }
                Err(_) => {}
            }
        }
        let queue = state.queues.entry(queue).or_insert_with(|| JobQueue {
            waiting: VecDeque::new(),
            running: 0,
            answers: Arc::clone(answers),
        });
        if queue.waiting.len() >= WAITING {
            return Err(job);
        }
        queue.waiting.push_back(job);
        drop(state);
        self.has_work.notify_one();
        Ok(())
    }

    /// Drops the names of a VM.
    pub(super) fn remove(&self, queue: QueueId) {
        if self.fork_guard.is_same_process() {
            self.lock().queues.remove(&queue);
        }
    }

    /// A thread.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some((queue, job, answers)) = state.next() {
                drop(state);
                let is_late = Instant::now() >= job.ends_at;
                let answer = if is_late { job.failed() } else { job.run() };
                answers.push(job.query, answer);
                state = self.lock();
                state.finish(queue);
                continue;
            }
            state.idle += 1;
            let (after, timeout) =
                self.has_work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = after;
            state.idle -= 1;
            if timeout.timed_out() && !state.has_next() {
                state.threads -= 1;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolState {
    /// A name of the VM whose turn it is.
    fn next(&mut self) -> Option<(QueueId, ResolveJob, Arc<AnswerQueue>)> {
        let is_later = |id: &QueueId| self.last.is_none_or(|last| *id > last);
        let ready = self.queues.iter().filter(|(_, queue)| queue.is_ready()).map(|(id, _)| *id);
        let id = ready.clone().find(is_later).or_else(|| ready.clone().next())?;
        self.last = Some(id);
        let queue = self.queues.get_mut(&id)?;
        let job = queue.waiting.pop_front()?;
        queue.running += 1;
        Some((id, job, Arc::clone(&queue.answers)))
    }

    fn has_next(&self) -> bool {
        self.queues.values().any(JobQueue::is_ready)
    }

    /// A name of this VM was resolved.
    fn finish(&mut self, id: QueueId) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        queue.running -= 1;
        if queue.running == 0 && queue.waiting.is_empty() {
            self.queues.remove(&id);
        }
    }
}

impl JobQueue {
    fn is_ready(&self) -> bool {
        !self.waiting.is_empty() && self.running < RUNNING
    }
}

/// The number of threads.
#[cfg(test)]
pub(super) fn threads() -> usize {
    POOL.lock().threads
}
