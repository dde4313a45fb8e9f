//! The loop: waits for descriptors, and moves bytes between the session and the operations.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::child;
use crate::guest::BootedGuest;
use crate::job::{Forked, OperationProcess, OutputRead, STREAMS};
use crate::links::{LINKS, Links, VSOCK};
use crate::protocol::{
    AgentServer, GuestState, MAX_PAYLOAD, NONCE_LEN, Operation, OperationEnd, OperationId,
    ServerEvent,
};
use crate::sys::{self, Errno, Fd, Outcome, POLL_ERROR, POLL_HANGUP, POLL_IN, POLL_OUT, PollEntry};

/// How long the loop sleeps at most while something may appear without an event: the final root, a driver.
const BOOT_TICK: u64 = 100;
/// The same when the end of a child reports the state of the guest.
const WAITING_TICK: u64 = 500;
/// The same when the guest has been ready for a while.
const SLOW_TICK: u64 = 2_000;
/// For how long after it is ready the guest is looked at often.
const SETTLING: u64 = 10_000;
/// No message of the host is read while this many bytes wait for the transport.
const MAX_WAITING: usize = 1024 * 1024;
/// The character that ends the input of a terminal.
const END_OF_TRANSMISSION: &[u8] = b"\x04";

/// The agent.
pub(crate) struct Agent {
    server: AgentServer,
    guest: BootedGuest,
    links: Links,
    jobs: BTreeMap<OperationId, OperationProcess>,
    children: Fd,
    ready_since: Option<u64>,
    next_look: u64,
    /// The output that was read last.
    last_output: (OperationId, usize),
    buffer: Vec<u8>,
}

/// What a descriptor in the poll set belongs to.
#[derive(Debug, Clone, Copy)]
enum WatchedFd {
    Children,
    Listener,
    Link(usize),
    Status(OperationId),
    Input(OperationId),
    Output(OperationId, usize),
}

impl Agent {
    pub(crate) fn new(nonce: [u8; NONCE_LEN], guest: BootedGuest, links: Links) -> Outcome<Self> {
        Ok(Self {
            server: AgentServer::new(nonce, LINKS),
            guest,
            links,
            jobs: BTreeMap::new(),
            children: sys::watch_children()?,
            ready_since: None,
            next_look: 0,
            last_output: (0, 0),
            buffer: vec![0; MAX_PAYLOAD],
        })
    }

    /// Serves until an inherited transport is closed; in a guest until the guest ends.
    pub(crate) fn run(mut self) {
        let mut entries = Vec::new();
        let mut sources = Vec::new();
        while !(self.links.is_served && self.links.open[0].is_none()) {
            let now = sys::now();
            if now >= self.next_look {
                self.look(now);
            }
            self.advance_jobs();
            self.flush(now);
            let longest = self.collect(now, &mut entries, &mut sources);
            sys::poll(&mut entries, longest);
            // The first outputs may fill what the transport takes: the one after the last that was read is the
            // first.
            let turn = sources.iter().position(|source| match source {
                WatchedFd::Output(id, stream) => (*id, *stream) > self.last_output,
                _ => false,
            });
            let turn = turn.unwrap_or(0);
            let (later, first) = entries.split_at(turn);
            let (later_sources, first_sources) = sources.split_at(turn);
            let found = first.iter().zip(first_sources).chain(later.iter().zip(later_sources));
            for (entry, source) in found.filter(|(entry, _)| entry.occurred != 0) {
                self.handle(*source, entry.occurred);
            }
        }
        self.jobs.values_mut().for_each(OperationProcess::cancel);
    }

    /// Looks at what changes without an event.
    fn look(&mut self, now: u64) {
        if self.ready_since.is_none() && self.guest.is_ready(now) {
            self.ready_since = Some(now);
            self.server.set_state(GuestState::Ready);
            self.guest.load_drivers();
            self.handle_events();
        }
        self.links.open_missing(&self.guest, now, self.ready_since);
        let is_settled = self.ready_since.is_some_and(|since| now - since >= SETTLING);
        self.next_look = now
            + match self.guest.waits_for_child() {
                _ if is_settled => SLOW_TICK,
                true => WAITING_TICK,
                false => BOOT_TICK,
            };
    }

    /// Collects the descriptors to wait for, and returns how long to wait at most.
    fn collect(&self, now: u64, entries: &mut Vec<PollEntry>, sources: &mut Vec<WatchedFd>) -> u64 {
        entries.clear();
        sources.clear();
        let mut add = |fd: &Fd, events: i16, source: WatchedFd| {
            entries.push(PollEntry::new(fd, events));
            sources.push(source);
        };
        let mut longest = self.next_look.saturating_sub(now);
        add(&self.children, POLL_IN, WatchedFd::Children);
        if let Some(listener) = &self.links.listener {
            add(listener, POLL_IN, WatchedFd::Listener);
        }
        for (link, fd) in self.links.open.iter().enumerate() {
            let Some(fd) = fd else { continue };
            let rest = self.links.rest(link, now);
            if rest > 0 {
                longest = longest.min(rest);
                continue;
            }
            let waiting = match self.server.active() {
                Some(active) if active == link => self.server.output().len(),
                _ => 0,
            };
            let mut events = if waiting < MAX_WAITING { POLL_IN } else { 0 };
            if waiting > 0 {
                events |= POLL_OUT;
            }
            add(fd, events, WatchedFd::Link(link));
        }
        for (&id, job) in &self.jobs {
            if let Some(status) = &job.status {
                add(status, POLL_IN, WatchedFd::Status(id));
            }
            if let Some(input) = job.input.as_ref().filter(|_| !self.server.input(id).is_empty()) {
                add(input, POLL_OUT, WatchedFd::Input(id));
            }
            for (n, output) in job.outputs.iter().enumerate() {
                let Some(output) = output else { continue };
                if self.server.output_room(id, STREAMS[n]) == 0 {
                    continue;
                }
                add(output, POLL_IN, WatchedFd::Output(id, n));
                if job.is_draining() {
                    longest = longest.min(10);
                }
            }
        }
        longest
    }

    fn handle(&mut self, source: WatchedFd, occurred: i16) {
        match source {
            WatchedFd::Children => self.reap(),
            WatchedFd::Listener => {
                if self.links.accept() {
                    self.server.handle_close(VSOCK);
                    self.handle_events();
                }
            }
            WatchedFd::Link(link) => {
                if occurred & (POLL_IN | POLL_HANGUP | POLL_ERROR) != 0 {
                    self.read_link(link);
                }
            }
            WatchedFd::Status(id) => {
                if let Some(job) = self.jobs.get_mut(&id)
                    && job.read_status()
                {
                    self.server.started(id, job.pid as u32);
                }
            }
            WatchedFd::Input(id) => self.write_input(id),
            WatchedFd::Output(id, stream) => self.read_output(id, stream),
        }
    }

    fn read_link(&mut self, link: usize) {
        let Some(fd) = &self.links.open[link] else { return };
        match fd.read(&mut self.buffer) {
            Err(Errno::EAGAIN) => {}
            Ok(n) if n > 0 => {
                self.server.handle_bytes(link, &self.buffer[..n]);
                self.handle_events();
            }
            _ => self.end_link(link),
        }
    }

    /// A transport has no other end any more.
    fn end_link(&mut self, link: usize) {
        if self.links.is_served {
            self.links.open[link] = None;
        }
        self.links.handle_end(link, sys::now());
        self.server.handle_close(link);
        self.handle_events();
    }

    /// Sends what waits for the active transport.
    fn flush(&mut self, now: u64) {
        while let Some(link) = self.server.active().filter(|_| !self.server.output().is_empty()) {
            let Some(fd) = &self.links.open[link] else { return self.end_link(link) };
            if self.links.rest(link, now) > 0 {
                return;
            }
            match fd.write(self.server.output()) {
                Ok(n) => self.server.handle_sent(n),
                Err(Errno::EAGAIN) => return,
                Err(_) => self.end_link(link),
            }
        }
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.server.poll() {
            match event {
                ServerEvent::Reset => {
                    self.jobs.values_mut().for_each(OperationProcess::cancel);
                    self.jobs.clear();
                    // The host sees that its session is over. A new one has an active transport.
                    if self.server.active().is_none() && !self.links.is_served {
                        self.links.handle_end(VSOCK, 0);
                    }
                }
                ServerEvent::Begin(id, operation) => self.begin(id, &operation),
                ServerEvent::Signal(id, number) => {
                    if let Some(job) = self.jobs.get(&id) {
                        job.signal(number);
                    }
                }
                ServerEvent::Resize(id, size) => {
                    if let Some(job) = self.jobs.get(&id) {
                        job.resize(size);
                    }
                }
                ServerEvent::Cancel(id) => {
                    if let Some(job) = self.jobs.get_mut(&id) {
                        job.cancel();
                    }
                }
            }
        }
    }

    fn begin(&mut self, id: OperationId, operation: &Operation) {
        if let Operation::SetClock(time) = operation {
            let end = match sys::set_clock(*time) {
                Ok(()) => OperationEnd::Done,
                Err(Errno(errno)) => OperationEnd::Failed(errno),
            };
            return self.server.finish(id, end);
        }
        match OperationProcess::start(operation, &self.guest) {
            Ok(Forked::Agent(job)) => drop(self.jobs.insert(id, job)),
            Ok(Forked::Child(streams, status)) => {
                // Work on files replaces no program, so that nothing else closes the pipes of other operations.
                self.jobs.clear();
                self.links = Links::none();
                child::run(operation, &self.guest, streams, &status)
            }
            Err(Errno(errno)) => self.server.finish(id, OperationEnd::Failed(errno)),
        }
    }

    fn reap(&mut self) {
        // Signals of one kind that wait are one.
        let _ = self.children.read(&mut self.buffer);
        while let Some((pid, end)) = sys::reap_child() {
            // The id of a process that is reaped may belong to another one.
            let mut running = self.jobs.iter_mut().filter(|(_, job)| !job.is_draining());
            let Some((id, job)) = running.find(|(_, job)| job.pid == pid) else {
                if self.guest.handle_child_end(pid, end) {
                    self.next_look = 0;
                }
                continue;
            };
            if job.handle_end(end) {
                self.server.started(*id, pid as u32);
            }
        }
    }

    fn write_input(&mut self, id: OperationId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(input) = &job.input else { return };
        match input.write(self.server.input(id)) {
            Ok(n) => self.server.handle_taken(id, n),
            Err(Errno::EAGAIN) => {}
            // The command has closed its input.
            Err(_) => job.input = None,
        }
    }

    fn read_output(&mut self, id: OperationId, stream: usize) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let room = self.server.output_room(id, STREAMS[stream]);
        if room == 0 {
            return;
        }
        if let OutputRead::Bytes(n) = job.read_output(stream, &mut self.buffer[..room]) {
            self.last_output = (id, stream);
            self.server.put_output(id, STREAMS[stream], &self.buffer[..n]);
        }
    }

    /// What follows without an event: ends of inputs, outputs of processes that have ended, ends of operations.
    fn advance_jobs(&mut self) {
        let mut ended = Vec::new();
        let ids: Vec<OperationId> = self.jobs.keys().copied().collect();
        for id in ids {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if job.input.is_none() {
                // Input that is not wanted must not stop the host.
                while !self.server.input(id).is_empty() {
                    self.server.handle_taken(id, self.server.input(id).len());
                }
            } else if self.server.is_input_ended(id)
                && let Some(input) = job.input.take()
                && job.is_terminal
            {
                let _ = input.write(END_OF_TRANSMISSION);
            }
            if job.is_draining() {
                (0..STREAMS.len()).for_each(|stream| self.read_output(id, stream));
            }
            ended.extend(self.jobs.get(&id).and_then(OperationProcess::end).map(|end| (id, end)));
        }
        for (id, end) in ended {
            self.jobs.remove(&id);
            self.server.finish(id, end);
        }
    }
}
