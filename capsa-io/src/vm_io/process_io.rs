//! [`ProcessIo`]: the I/O of a VM whose hypervisor and helpers are processes of this host.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use capsa_proto::agent::protocol::NONCE_LEN;
use capsa_proto::lifecycle::{Cause, Phase};
use capsa_proto::plan::{
    AgentPlan, AgentTransport, ConsolePlan, ControlEndpoint, DescriptorKind, DescriptorPlan,
    LaunchPlan, NetworkLink, OverlayPlan, ProcessId, Readiness, Signal, VsockRoute,
};
use capsa_proto::policy::{NetworkEvent, PolicyRules};
use capsa_proto::time::{Deadline, Instant};
use capsa_proto::vm::{Channel, Output, VmCore};

use super::{VmIo, log};
use crate::clock::MonotonicClock;
use crate::ephemeral;
use crate::inherited::DescriptorSet;
use crate::initrd;
use crate::network::{Counters, Network};
use crate::process::{self, ChildProcess, Inherited};
use crate::run_dir::RunDir;
use crate::stream::{ByteStream, ReadResult};
use crate::sys::{self, Poll, PollSource, Pty, ReadyEvents, ReservedNumbers};
use crate::vsock::PortListener;

/// The largest number of bytes read from the console, or from the agent, in one call.
const CONSOLE_BUDGET: usize = 256 * 1024;

/// The largest number of bytes read from another channel in one call.
const CHANNEL_BUDGET: usize = 64 * 1024;

/// How many calls with a full budget may delay the exit of a hypervisor whose output is not read yet.
/// Output from before the exit is in the system's buffers, which are far smaller than this. A child
/// that the hypervisor left behind may write without end.
const MAX_EXIT_DELAYS: usize = 16;

/// The poller's key of a channel.
const fn key(channel: Channel) -> usize {
    match channel {
        Channel::Control => 0,
        Channel::Console => 1,
        Channel::Events => 2,
        Channel::SerialPort => 3,
        Channel::Agent(transport) => 4 + transport as usize,
        Channel::Stderr(id) => 7 + 2 * id.0,
    }
}

/// The poller's key of the exit of a process.
const fn exit_key(id: ProcessId) -> usize {
    8 + 2 * id.0
}

/// The poller's key of the network. `usize::MAX` is the poller's own.
const NETWORK_KEY: usize = usize::MAX - 1;

/// The processes and the channels of a VM.
#[derive(Debug)]
pub struct ProcessIo {
    plan: Arc<LaunchPlan>,
    read_budget: usize,
    poll: Poll,
    processes: Vec<Option<ChildProcess>>,
    streams: BTreeMap<Channel, PollSource<ByteStream>>,
    /// `None` after the end.
    run_dir: Option<RunDir>,
    /// The bytes that the current call has read, by the key of the channel.
    read: Vec<usize>,
    /// A budget was exhausted: there is more work, although the poller may not report it again.
    more: bool,
    exit_delays: usize,
    /// The hypervisor's end of a [blocking](capsa_proto::plan::DescriptorKind::BlockingConsole) console,
    /// until it blocks.
    blocking: Option<UnixStream>,
    /// `None` after the end.
    network: Option<PollSource<Network>>,
    /// What the network counted until it ended.
    last_counters: Counters,
    /// Its events that were not taken.
    last_events: Vec<NetworkEvent>,
}

/// What was read from a channel.
struct ChannelInput {
    channel: Channel,
    bytes: Vec<u8>,
    closed: bool,
}

impl ProcessIo {
    /// The I/O of a VM that is not started yet, for its run directory and its network. One call reads at
    /// most `read_budget` bytes of each kind, at least 1.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left for a poller.
    pub fn new(
        plan: Arc<LaunchPlan>,
        run_dir: impl Into<Option<RunDir>>,
        network: Option<Network>,
        read_budget: usize,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        Ok(Self {
            last_counters: Counters::default(),
            last_events: Vec::new(),
            network: network.map(|network| poll.add(network, NETWORK_KEY)).transpose()?,
            poll,
            processes: plan.processes.iter().map(|_| None).collect(),
            streams: BTreeMap::new(),
            run_dir: run_dir.into(),
            read: vec![0; exit_key(plan.hypervisor())],
            more: false,
            exit_delays: 0,
            blocking: None,
            plan,
            // With a budget of zero no call would make progress.
            read_budget: read_budget.max(1),
        })
    }

    fn ids(&self) -> impl DoubleEndedIterator<Item = ProcessId> + use<> {
        (0..self.processes.len()).map(ProcessId)
    }

    // Channels.

    fn attach(&mut self, channel: Channel, stream: ByteStream) -> io::Result<()> {
        let source = self.poll.add(stream, key(channel))?;
        self.streams.insert(channel, source);
        Ok(())
    }

    fn connect(&mut self, core: &mut VmCore, now: Instant, channel: Channel) {
        let socket = match (channel, &self.plan.control.endpoint) {
            (Channel::Agent(_), _) => {
                let route = self.plan.agent.as_ref().and_then(AgentPlan::vsock_route);
                route.map(|route| match route {
                    VsockRoute::Handshake(socket) | VsockRoute::Direct(socket) => socket,
                })
            }
            (_, ControlEndpoint::Socket(socket)) => Some(socket),
            (_, ControlEndpoint::SocketPair) => None,
        };
        let connected = match socket {
            Some(socket) => ByteStream::connect(socket.as_str()),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        match connected.and_then(|stream| self.attach(channel, stream)) {
            Ok(()) => core.handle_connected(now, channel),
            Err(error) => core.handle_connect_failed(now, channel, error.to_string()),
        }
        self.sync_channel(core, now, channel);
    }

    /// How many bytes may still be read from a channel in this call.
    fn budget(&self, channel: Channel) -> usize {
        let limit = match channel {
            Channel::Console | Channel::Agent(_) => CONSOLE_BUDGET,
            _ => CHANNEL_BUDGET,
        };
        self.read_budget.min(limit).saturating_sub(self.read[key(channel)])
    }

    /// Reads the channels that may report an event, then passes the console's output, and then what
    /// was read first: output that precedes an event may explain it.
    fn read_channels(&mut self, core: &mut VmCore, now: Instant, is_ready: impl Fn(usize) -> bool) {
        let stderr = self.ids().rev().map(Channel::Stderr);
        let mut inputs = Vec::new();
        let events = [Channel::SerialPort, Channel::Control, Channel::Events];
        let channels = stderr.chain(AgentTransport::ALL.map(Channel::Agent)).chain(events);
        for channel in channels {
            if is_ready(key(channel)) {
                inputs.extend(self.read_channel(channel, self.budget(channel)));
            }
        }
        if !inputs.is_empty() || is_ready(key(Channel::Console)) {
            self.read_console(core, now);
        }
        for input in inputs {
            self.pass(core, now, &input);
        }
    }

    /// Reads what a channel has, at most `budget` bytes. `None` if it is not connected.
    fn read_channel(&mut self, channel: Channel, mut budget: usize) -> Option<ChannelInput> {
        let mut input = ChannelInput { channel, bytes: Vec::new(), closed: false };
        let mut chunk = [0; 8192];
        loop {
            let room = budget.min(chunk.len());
            let stream = self.streams.get_mut(&channel)?;
            if room == 0 {
                self.more = true;
                break;
            }
            match stream.io().read(&mut chunk[..room]) {
                ReadResult::NothingYet => break,
                ReadResult::Bytes(n) => {
                    budget -= n;
                    self.read[key(channel)] += n;
                    input.bytes.extend_from_slice(&chunk[..n]);
                }
                ReadResult::Closed => {
                    input.closed = true;
                    break;
                }
            }
        }
        Some(input)
    }

    fn pass(&mut self, core: &mut VmCore, now: Instant, input: &ChannelInput) {
        let channel = input.channel;
        if !input.bytes.is_empty() {
            if let Channel::Stderr(id) = channel {
                let process = &self.plan.process(id).name;
                let text = String::from_utf8_lossy(&input.bytes);
                tracing::debug!(%process, "stderr: {}", text.trim_end());
            }
            if channel == Channel::SerialPort {
                let text = String::from_utf8_lossy(&input.bytes);
                tracing::debug!("serial port: {}", text.trim_end());
            }
            core.handle_bytes(now, channel, &input.bytes);
        }
        if input.closed {
            self.streams.remove(&channel);
            core.handle_eof(now, channel);
        }
        self.sync_channel(core, now, channel);
    }

    /// Moves the console's bytes both ways, within its window and its budget.
    fn read_console(&mut self, core: &mut VmCore, now: Instant) {
        let channel = Channel::Console;
        self.sync_channel(core, now, channel);
        core.handle_writable(channel);
        let mut chunk = [0; 8192];
        loop {
            let window = core.window(channel).min(chunk.len());
            let room = self.budget(channel).min(window);
            let Some(stream) = self.streams.get_mut(&channel) else { break };
            if room == 0 {
                self.more |= window > 0;
                break;
            }
            match stream.io().read(&mut chunk[..room]) {
                ReadResult::NothingYet => break,
                ReadResult::Bytes(n) => {
                    self.read[key(channel)] += n;
                    core.handle_bytes(now, channel, &chunk[..n]);
                }
                ReadResult::Closed => {
                    self.streams.remove(&channel);
                    core.handle_eof(now, channel);
                }
            }
            self.sync_channel(core, now, channel);
        }
        self.sync_channel(core, now, channel);
    }

    /// Writes what the channel accepts, watches it for what the core waits for, and closes it if the
    /// core does not use it any more. In a forked child it does nothing: the bytes are the parent's.
    fn sync_channel(&mut self, core: &mut VmCore, now: Instant, channel: Channel) {
        let Some(stream) = self.streams.get_mut(&channel).filter(|s| s.is_same_process()) else {
            return;
        };
        if !core.is_open(channel) {
            self.streams.remove(&channel);
            return;
        }
        if let Some(outgoing) = core.outgoing(channel) {
            stream.io().write_from(outgoing);
        }
        let (readable, writable) = (core.window(channel) > 0, core.wants_write(channel));
        if let Err(error) = stream.set_interest(readable, writable) {
            tracing::warn!("cannot watch the {channel:?} channel: {error}");
            self.streams.remove(&channel);
            core.handle_lost(now, channel);
        }
    }

    // Processes.

    fn launch(&mut self, core: &mut VmCore, now: Instant, id: ProcessId) -> io::Result<()> {
        let plan = Arc::clone(&self.plan);
        let process = plan.process(id);
        let last = process.descriptors.iter().map(|descriptor| descriptor.number + 1).max();
        let _numbers = ReservedNumbers::below(last.unwrap_or(sys::FIRST_NUMBER))?;
        if let Some(run_dir) = &self.run_dir {
            run_dir.check_exists()?;
        }
        let nonce = match plan.agent {
            Some(_) => initrd::nonce()?,
            None => [0; NONCE_LEN],
        };
        let DescriptorSet { numbered, mut channels, blocking, network } =
            DescriptorSet::new(&plan, process, &nonce)?;
        let mut inherited = Inherited { terminal: None, numbered };
        if id == plan.hypervisor() {
            if let ConsolePlan::Pty { .. } = plan.console {
                let Pty { ours, stdin, stdout } = sys::open_pty()?;
                channels.push((Channel::Console, ByteStream::File(ours)));
                inherited.terminal = Some((stdin, stdout));
            }
            if let Some(path) = &plan.serial_port {
                let fifo = sys::create_fifo(Path::new(path.as_str()))?;
                channels.push((Channel::SerialPort, ByteStream::File(fifo)));
            }
            self.blocking = blocking;
            if let (Some(plan), Some(card)) = (&plan.network, &mut self.network) {
                match (&plan.link, network) {
                    (NetworkLink::VhostUser { socket }, _) => {
                        card.io().listen(Path::new(socket.as_str()))?;
                    }
                    (link, Some(end)) => card.io().attach(link, end)?,
                    (_, None) => {}
                }
            }
            if let Some(agent) = &plan.agent {
                let is_inherited =
                    |d: &DescriptorPlan| matches!(d.kind, DescriptorKind::Initrd { .. });
                if !process.descriptors.iter().any(is_inherited) {
                    initrd::named(&agent.initrd, &nonce)?;
                }
                core.handle_agent_nonce(nonce);
            }
            for overlay in &plan.overlays {
                if let OverlayPlan::Clone { at, of } = overlay {
                    ephemeral::clone(of, at)?;
                }
            }
        }
        tracing::debug!(program = %process.program, args = ?process.args, "spawn");
        let (child, stderr) = ChildProcess::spawn(process, &self.poll, exit_key(id), inherited)?;
        tracing::info!(process = %process.name, pid = child.pid(), "started");
        if let Some(run_dir) = &self.run_dir {
            run_dir.record_child(child.pid())?;
        }
        channels.push((Channel::Stderr(id), stderr));
        for (channel, stream) in channels {
            self.attach(channel, stream)?;
            core.handle_connected(now, channel);
        }
        self.processes[id.0] = Some(child);
        Ok(())
    }

    fn socket_exists(&self, id: ProcessId) -> bool {
        match &self.plan.process(id).ready {
            Readiness::SocketExists(path) => Path::new(path.as_str()).exists(),
            Readiness::Immediate | Readiness::ControlConnected => true,
        }
    }

    fn signal(&self, id: ProcessId, signal: Signal) {
        let name = &self.plan.process(id).name;
        tracing::info!(process = %name, ?signal, "signal");
        if let Some(process) = &self.processes[id.0]
            && let Err(error) = process.signal(signal)
        {
            tracing::warn!("cannot signal {name}: {error}");
        }
    }

    /// Reaps a process that has exited. `false` if that is delayed: the hypervisor's output from before
    /// the exit is not read yet. Its descriptor stays readable.
    fn reap(&mut self, core: &mut VmCore, now: Instant, id: ProcessId) -> bool {
        if id == self.plan.hypervisor() {
            self.read_channels(core, now, |_| true);
            let budget = self.read_budget.min(CONSOLE_BUDGET);
            let max_delays = MAX_EXIT_DELAYS * CONSOLE_BUDGET.div_ceil(budget);
            if self.more && self.exit_delays < max_delays {
                self.exit_delays += 1;
                return false;
            }
        }
        let Some(process) = &mut self.processes[id.0] else { return true };
        if let Some(exit) = process.try_reap() {
            self.processes[id.0] = None;
            let stderr = Channel::Stderr(id);
            // The rest explains the exit, so the read budget does not apply.
            if let Some(input) = self.read_channel(stderr, CHANNEL_BUDGET) {
                self.pass(core, now, &input);
            }
            self.streams.remove(&stderr);
            core.handle_exited(now, id, exit);
        }
        true
    }

    fn drive_network(&mut self, now: Instant, is_ready: bool) {
        let Some(network) = &mut self.network else { return };
        let network = network.io();
        let is_due = network.poll_timeout().is_some_and(|deadline| deadline.at <= now);
        if (is_ready || is_due || network.has_work())
            && let Err(error) = network.on_ready(now)
        {
            tracing::warn!("the VM's network ends: {error}");
            self.end_network();
        }
    }

    fn end_network(&mut self) {
        self.last_counters = self.network_counters();
        if self.network.is_some() {
            self.last_events = self.take_network_events();
        }
        self.network = None;
    }

    fn release(&mut self, core: &mut VmCore, now: Instant) {
        // Only a process that survived SIGKILL is left here.
        self.processes.iter_mut().rev().filter_map(Option::take).for_each(|mut it| it.give_up());
        let mut chunk = [0; 8192];
        let mut left = core.drain_limit();
        while let Some(stream) = self.streams.get_mut(&Channel::Console)
            && left > 0
            && let room = left.min(chunk.len())
            && let ReadResult::Bytes(n) = stream.io().read(&mut chunk[..room])
        {
            left -= n;
            core.handle_rest(&chunk[..n]);
        }
        self.streams.clear();
        self.end_network();
        core.handle_released(now);
        self.run_dir = None;
    }
}

impl VmIo for ProcessIo {
    fn on_ready(&mut self, core: &mut VmCore, clock: &mut MonotonicClock) -> io::Result<()> {
        self.more = false;
        self.read.fill(0);
        let mut ready = ReadyEvents::take();
        let waited = self.poll.wait(Some(Duration::ZERO), &mut ready);
        if waited.is_ok() {
            process::reap_dying(Duration::ZERO);
            self.read_channels(core, clock.now(), |key| ready.has(key));
            self.drive_network(clock.now(), ready.has(NETWORK_KEY));
            // The hypervisor before its helper processes, which exit because it did.
            let exited = self.ids().rev().filter(|id| ready.has(exit_key(*id)));
            // While an exit is delayed, no deadline applies: the exit has happened before it.
            let mut delayed = false;
            for id in exited {
                delayed |= !self.reap(core, clock.now(), id);
            }
            if !delayed {
                core.handle_timeout(clock.now());
            }
            self.act(core, clock);
        }
        ready.keep();
        waited
    }

    fn act(&mut self, core: &mut VmCore, clock: &MonotonicClock) {
        if self.check_process().is_err() {
            return;
        }
        if core.phase() != Phase::StartingHypervisor
            && let Some(console) = self.blocking.take()
            && let Err(error) = console.set_nonblocking(false)
        {
            tracing::warn!("cannot make the console's writer block, it may lose output: {error}");
        }
        while let Some(output) = core.poll_output(clock.now()) {
            let now = clock.now();
            match output {
                Output::Launch(id) => {
                    if let Err(error) = self.launch(core, now, id) {
                        core.handle_launch_failed(now, id, Cause::new(error));
                    }
                }
                Output::CheckSocket(id) => {
                    if self.socket_exists(id) {
                        core.handle_ready(now, id);
                    }
                }
                Output::Connect(channel) => self.connect(core, now, channel),
                Output::Signal(id, signal) => self.signal(id, signal),
                Output::Log(record) => log::write(&record),
                Output::Release => self.release(core, now),
            }
        }
        self.sync(core, clock.now());
    }

    fn sync(&mut self, core: &mut VmCore, now: Instant) {
        if core.agent().is_some() {
            for transport in AgentTransport::ALL {
                self.sync_channel(core, now, Channel::Agent(transport));
            }
        }
        self.sync_channel(core, now, Channel::Control);
        self.sync_channel(core, now, Channel::Console);
    }

    fn has_work(&self) -> bool {
        let network = self.network.as_ref().map(PollSource::io_ref);
        self.more || self.poll.has_interest_changed() || network.is_some_and(Network::has_work)
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        self.network.as_ref()?.io_ref().poll_timeout()
    }

    fn check_process(&self) -> io::Result<()> {
        self.poll.check_process()
    }

    fn hypervisor_pid(&self) -> Option<u32> {
        self.processes.last()?.as_ref().map(ChildProcess::pid)
    }

    fn nonce(&self, _: u64) -> Option<u64> {
        None
    }

    fn vsock_listen(&mut self, port: u32) -> io::Result<Option<PortListener>> {
        let Some(socket) = self.plan.vsock.as_ref().and_then(|vsock| vsock.listener(port)) else {
            return Ok(None);
        };
        PortListener::bind(&socket).map(Some)
    }

    fn service_listen(&mut self, index: usize) -> io::Result<Option<PortListener>> {
        let network = self.plan.network.as_ref();
        let socket = network.and_then(|plan| plan.service_socket(index, &self.plan.run_dir));
        socket.map(|socket| PortListener::bind(&socket)).transpose()
    }

    fn network_counters(&self) -> Counters {
        let network = self.network.as_ref();
        network.map_or(self.last_counters, |network| network.io_ref().counters())
    }

    fn set_network_link(&mut self, is_up: bool) {
        if let Some(network) = &mut self.network {
            network.io().set_link(is_up);
        }
    }

    fn set_network_policy(&mut self, policy: PolicyRules, now: Instant) {
        if let Some(network) = &mut self.network {
            network.io().set_policy(policy, now);
        }
    }

    fn take_network_events(&mut self) -> Vec<NetworkEvent> {
        match &mut self.network {
            Some(network) => network.io().take_events(),
            None => std::mem::take(&mut self.last_events),
        }
    }

    fn remove_files(&mut self) {
        self.run_dir = None;
    }
}

impl AsFd for ProcessIo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}

impl Drop for ProcessIo {
    /// Kills the remaining processes, the hypervisor before its helpers. The last VM of the program
    /// waits until all that were killed have exited.
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return;
        }
        self.streams.clear();
        process::kill_and_reap(self.processes.iter_mut().rev().filter_map(Option::take));
    }
}

#[cfg(test)]
pub(crate) mod tests;
