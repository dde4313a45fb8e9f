//! [`VmCore`]: a whole VM as one state machine, without I/O and without a clock.
//!
//! It combines the [`Lifecycle`], the [`ConsoleMux`] and the [`ControlClient`]: bytes from each
//! channel, exits and time go in; processes to launch, sockets to connect, bytes to write, signals and
//! events come out. Its driver makes system calls and decides nothing. There are three drivers: `capsa-io` has
//! one for the processes of a host and one for simulated guests, and the simulation in
//! `vm/simulate` checks the laws.

mod agent;
mod carrier;
mod output;
mod pausing;

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use carrier::Carrier;

pub use output::{Channel, LogRecord, Output};

use super::control::{ControlClient, ControlEvent};
use super::event::{EventQueue, VmEvent};
use super::stderr::StderrTail;
use crate::agent::AgentClient;
use crate::backend::{DiskError, DiskErrors, GuestEvent, HypervisorBackend};
use crate::codec::json_stream::JsonStream;
use crate::console::{ConsoleMux, DRAIN_LIMIT, Overflow};
use crate::lifecycle::{
    Action, Cause, EndedBy, Exit, Input, InvalidState, Lifecycle, Phase, StopReport, Timing,
    VmStatus,
};
use crate::plan::{LaunchPlan, Message, ProcessId, Readiness};
use crate::time::{Deadline, Instant};

/// A whole VM as one state machine.
///
/// # Driving
///
/// 1. The owner's requests: [`start`](VmCore::start), [`stop`](VmCore::stop), [`kill`](VmCore::kill),
///    and the console through [`with_console`](VmCore::with_console).
/// 2. Take every [`Output`] from [`poll_output`](VmCore::poll_output) and carry it out.
/// 3. For each open channel, write from [`outgoing`](VmCore::outgoing), read at most
///    [`window`](VmCore::window) bytes and pass them to [`handle_bytes`](VmCore::handle_bytes). Close
///    a channel that is not [open](VmCore::is_open) any more.
/// 4. Pass the output that a process wrote before an event, or before its exit, before that event or
///    [exit](VmCore::handle_exited): it may explain it.
/// 5. When [`poll_timeout`](VmCore::poll_timeout) has passed, call
///    [`handle_timeout`](VmCore::handle_timeout). Then go to 2.
/// 6. The owner takes events from [`poll_event`](VmCore::poll_event).
#[derive(Debug)]
pub struct VmCore {
    plan: Arc<LaunchPlan>,
    backend: Arc<dyn HypervisorBackend>,
    lifecycle: Lifecycle,
    console: ConsoleMux,
    control: ControlClient,
    carrier: Carrier,
    agent: Option<AgentClient>,
    /// [`Output::Connect`] for the control channel was queued and is not answered.
    connecting: bool,
    /// `None` after invalid events.
    pipe_decoder: Option<JsonStream>,
    stderr: Vec<StderrTail>,
    disk_errors: DiskErrors,
    outputs: VecDeque<Output>,
    events: EventQueue,
}

impl VmCore {
    /// A VM with this plan. Nothing is launched before [`start`](Self::start).
    pub fn new(
        plan: Arc<LaunchPlan>,
        backend: Arc<dyn HypervisorBackend>,
        console: ConsoleMux,
        timing: Timing,
    ) -> Self {
        let console = match plan.serial_port {
            Some(_) => console.with_serial_port(),
            None => console,
        };
        Self {
            backend,
            lifecycle: Lifecycle::new(Arc::clone(&plan), timing),
            console,
            control: ControlClient::new(plan.control.protocol),
            carrier: Carrier::default(),
            agent: plan.agent.as_ref().map(AgentClient::of_plan),
            connecting: false,
            pipe_decoder: Some(JsonStream::new()),
            stderr: plan.processes.iter().map(|_| StderrTail::default()).collect(),
            disk_errors: DiskErrors::default(),
            outputs: VecDeque::new(),
            events: EventQueue::default(),
            plan,
        }
    }

    // The owner.

    /// Requests the start.
    ///
    /// # Errors
    ///
    /// When the VM was started before.
    pub fn start(&mut self, now: Instant) -> Result<(), InvalidState> {
        self.lifecycle.handle_input(now, Input::Start)
    }

    /// Requests that the guest powers off, and is killed after `grace`.
    ///
    /// # Errors
    ///
    /// When the VM was never started.
    pub fn stop(&mut self, now: Instant, grace: Duration) -> Result<(), InvalidState> {
        self.lifecycle.handle_input(now, Input::Stop { grace })
    }

    /// Requests that the VM is killed.
    ///
    /// # Errors
    ///
    /// When the VM was never started.
    pub fn kill(&mut self, now: Instant) -> Result<(), InvalidState> {
        self.lifecycle.handle_input(now, Input::Kill)
    }

    /// The current status.
    pub fn status(&self) -> &VmStatus {
        self.lifecycle.status()
    }

    /// The phase of the lifecycle.
    pub fn phase(&self) -> Phase {
        self.lifecycle.phase()
    }

    /// How the VM ended; `None` before the end.
    pub fn report(&self) -> Option<StopReport> {
        self.lifecycle.report()
    }

    /// The last error of each disk and operation that the hypervisor has reported.
    pub fn disk_errors(&self) -> &DiskErrors {
        &self.disk_errors
    }

    /// The launch plan.
    pub fn plan(&self) -> &Arc<LaunchPlan> {
        &self.plan
    }

    /// The console.
    pub fn console(&self) -> &ConsoleMux {
        &self.console
    }

    /// Lets `change` read, write or wait on the console, with the queue for events.
    pub fn with_console<T>(
        &mut self,
        change: impl FnOnce(&mut ConsoleMux, &mut EventQueue) -> T,
    ) -> T {
        change(&mut self.console, &mut self.events)
    }

    /// The next event for the owner; `None` when there is none.
    pub fn poll_event(&mut self) -> Option<VmEvent> {
        let agent = |core: &mut Self| core.agent.as_mut()?.poll_event().map(VmEvent::Agent);
        self.events.pop().or_else(|| agent(self))
    }

    /// Whether an event waits for the owner.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty() || self.agent.as_ref().is_some_and(AgentClient::has_events)
    }

    // The driver: processes.

    /// The process could not be launched.
    pub fn handle_launch_failed(&mut self, now: Instant, id: ProcessId, cause: Cause) {
        self.input(now, Input::LaunchFailed(id, cause));
    }

    /// The process is ready: its socket exists, it inherits the socket, or its control channel is up.
    pub fn handle_ready(&mut self, now: Instant, id: ProcessId) {
        if id == self.plan.hypervisor() {
            self.events.push(VmEvent::ControlReady);
        }
        self.input(now, Input::Ready(id));
    }

    /// The process exited. The core adds the last lines of its standard error.
    pub fn handle_exited(&mut self, now: Instant, id: ProcessId, exit: Exit) {
        let exit = Exit { stderr_tail: self.stderr[id.0].text(), ..exit };
        self.log(LogRecord::Exited(self.plan.process(id).name.clone(), exit.clone()));
        self.input(
            now,
            if id == self.plan.hypervisor() {
                Input::HypervisorExited(exit)
            } else {
                Input::HelperExited(id, exit)
            },
        );
    }

    // The driver: channels.

    /// The channel is connected. The driver closes it again if it is not [open](Self::is_open) then:
    /// with HTTP, the first connection only shows that the hypervisor listens.
    pub fn handle_connected(&mut self, now: Instant, channel: Channel) {
        match channel {
            Channel::Console => self.console.handle_connected(),
            Channel::Control => {
                self.connecting = false;
                self.control.handle_connected();
            }
            Channel::Agent(transport) => self.handle_agent_connected(now, transport),
            Channel::Events | Channel::SerialPort | Channel::Stderr(_) => {}
        }
        self.check_control_ready(now);
    }

    /// The channel could not be connected. A hypervisor that starts is not ready yet.
    pub fn handle_connect_failed(&mut self, now: Instant, channel: Channel, why: String) {
        match channel {
            Channel::Control => {
                self.connecting = false;
                if self.control.wants_connection() {
                    self.control.handle_connect_failed(why);
                    self.handle_control_events(now);
                }
            }
            Channel::Agent(transport) => self.handle_agent_closed(now, transport),
            _ => {}
        }
    }

    /// Takes bytes that were read from a channel.
    pub fn handle_bytes(&mut self, now: Instant, channel: Channel, bytes: &[u8]) {
        match channel {
            Channel::Console => {
                let panicked = self.console.handle_bytes(now, bytes, &mut self.events);
                self.handle_panic_text(now, panicked);
            }
            Channel::Control => {
                self.control.handle_bytes(bytes);
                self.handle_control_events(now);
            }
            Channel::Events => self.handle_pipe_bytes(now, bytes),
            Channel::SerialPort => {
                let panicked = self.console.handle_serial_bytes(now, bytes);
                self.handle_panic_text(now, panicked);
            }
            Channel::Stderr(id) => self.handle_stderr(now, id, bytes),
            Channel::Agent(transport) => self.handle_agent_bytes(now, transport, bytes),
        }
    }

    /// The channel was closed by its other end.
    pub fn handle_eof(&mut self, now: Instant, channel: Channel) {
        match channel {
            Channel::Console => self.console.handle_eof(now, &mut self.events),
            Channel::Control => {
                self.control.handle_eof();
                self.handle_control_events(now);
            }
            Channel::Agent(transport) => self.handle_agent_closed(now, transport),
            Channel::Events | Channel::SerialPort | Channel::Stderr(_) => {}
        }
    }

    /// The channel cannot be used any more, for a reason on this side.
    pub fn handle_lost(&mut self, now: Instant, channel: Channel) {
        match channel {
            Channel::Console => self.console.disconnect(),
            Channel::Control => {
                self.control.handle_lost();
                self.handle_control_events(now);
            }
            Channel::Agent(transport) => self.handle_agent_closed(now, transport),
            Channel::Events | Channel::SerialPort | Channel::Stderr(_) => {}
        }
    }

    /// The channel takes bytes again, after [`outgoing`](Self::outgoing) was written.
    pub fn handle_writable(&mut self, channel: Channel) {
        if channel == Channel::Console {
            self.console.handle_writable(&mut self.events);
        }
    }

    /// How many bytes of a channel the core takes now. Zero is back-pressure: the bytes stay in the
    /// system until a reader of the console has caught up.
    pub fn window(&self, channel: Channel) -> usize {
        match channel {
            Channel::Console => self.console.window(),
            _ => usize::MAX,
        }
    }

    /// The bytes that wait to be written. The driver removes what the channel took, or all if the
    /// channel has failed: its end is seen by reading. `None` for a channel that is only read.
    pub fn outgoing(&mut self, channel: Channel) -> Option<&mut VecDeque<u8>> {
        match channel {
            Channel::Console => Some(self.console.outgoing()),
            Channel::Control => Some(self.control.outgoing()),
            Channel::Agent(transport) => self.agent_outgoing(transport),
            Channel::Events | Channel::SerialPort | Channel::Stderr(_) => None,
        }
    }

    /// Whether the driver should watch the channel for writing.
    pub fn wants_write(&mut self, channel: Channel) -> bool {
        match channel {
            Channel::Console => self.console.wants_write(),
            Channel::Control => !self.control.outgoing().is_empty(),
            Channel::Agent(transport) => {
                self.agent_outgoing(transport).is_some_and(|bytes| !bytes.is_empty())
            }
            Channel::Events | Channel::SerialPort | Channel::Stderr(_) => false,
        }
    }

    /// Whether the core uses the channel. The driver closes one that is not open.
    pub fn is_open(&self, channel: Channel) -> bool {
        match channel {
            Channel::Console => self.console.is_connected(),
            Channel::Control => self.control.is_connected(),
            Channel::Events => self.pipe_decoder.is_some(),
            Channel::Agent(transport) => self.is_agent_open(transport),
            Channel::SerialPort | Channel::Stderr(_) => true,
        }
    }

    /// How many bytes of console output to read before the release, although there is no window: a
    /// slow reader has kept them in the system.
    pub fn drain_limit(&self) -> usize {
        match self.console.scrollback().overflow() {
            Overflow::Pause => DRAIN_LIMIT,
            Overflow::DropOldest => 0,
        }
    }

    /// Takes console output that was read before the release, at most
    /// [`drain_limit`](Self::drain_limit) bytes.
    pub fn handle_rest(&mut self, bytes: &[u8]) {
        self.console.handle_rest(bytes);
    }

    /// All resources are released: the console is closed, and every wait ends.
    pub fn handle_released(&mut self, now: Instant) {
        if self.report().is_some_and(|report| report.ended_by != EndedBy::GuestPanic) {
            self.console.handle_end_without_panic();
        }
        self.console.close(now, &mut self.events);
    }

    // The driver: time and outputs.

    /// Time has passed. May be called at any time.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.lifecycle.handle_timeout(now);
        if let Some(agent) = &mut self.agent {
            agent.handle_timeout(now);
        }
        if self.console.poll_timeout().is_some_and(|deadline| deadline.at <= now)
            && let Some(crash) = self.console.handle_timeout(now, &mut self.events)
        {
            self.input(now, Input::ConsoleCrash(crash));
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout). In the past while outputs are queued.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if !self.outputs.is_empty() {
            return Some(Deadline { at: Instant::ZERO, why: "queued outputs" });
        }
        let agent = self.agent.as_ref().and_then(AgentClient::poll_timeout);
        let vm = Deadline::earliest(self.lifecycle.poll_timeout(), self.console.poll_timeout());
        Deadline::earliest(vm, agent)
    }

    /// The next output; `None` when there is none.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            let Some(action) = self.lifecycle.poll_action() else {
                return self.poll_agent_output();
            };
            match action {
                Action::Launch(id) => return Some(Output::Launch(id)),
                Action::CheckReady(id) => self.check_ready(now, id),
                Action::Send(message) => self.send(now, message),
                Action::Signal(id, signal) => {
                    if id == self.plan.hypervisor() {
                        self.console.release_back_pressure();
                    }
                    return Some(Output::Signal(id, signal));
                }
                Action::Announce(status) => {
                    self.log(LogRecord::Status(status.clone()));
                    if status == VmStatus::Running {
                        self.console.handle_started(now);
                        self.send_carrier(now);
                    }
                    self.handle_agent_status(now, &status);
                    self.events.push(VmEvent::Status(status));
                }
                Action::AnnounceReboot => {
                    self.events.push(VmEvent::Rebooted);
                    if let Some(agent) = &mut self.agent {
                        agent.handle_reboot(now);
                    }
                    self.console.handle_reboot(now, &mut self.events);
                }
                Action::AnnounceRejection(request, reason) => {
                    self.events.push(VmEvent::PauseRejected { request, reason });
                }
                Action::Release => return Some(Output::Release),
            }
        }
    }

    fn input(&mut self, now: Instant, input: Input) {
        self.log(LogRecord::Input(input.clone()));
        // Only requests of the owner can be invalid, and they do not come through here.
        let _ = self.lifecycle.handle_input(now, input);
    }

    fn handle_panic_text(&mut self, now: Instant, panicked: Option<bool>) {
        match panicked {
            Some(true) => self.input(now, Input::ConsolePanic),
            Some(false) => self.input(now, Input::ConsoleNoPanic),
            None => {}
        }
    }

    fn log(&mut self, record: LogRecord) {
        self.outputs.push_back(Output::Log(record));
    }

    fn check_ready(&mut self, now: Instant, id: ProcessId) {
        match self.plan.process(id).ready {
            Readiness::Immediate => self.handle_ready(now, id),
            Readiness::SocketExists(_) => self.outputs.push_back(Output::CheckSocket(id)),
            Readiness::ControlConnected => {
                if self.plan.is_polled(id) && !self.control.is_up() && !self.control.is_connected()
                {
                    self.connect_control();
                }
                self.check_control_ready(now);
            }
        }
    }

    /// The hypervisor is ready when its control channel is up.
    fn check_control_ready(&mut self, now: Instant) {
        if self.lifecycle.phase() == Phase::StartingHypervisor && self.control.is_up() {
            self.handle_ready(now, self.plan.hypervisor());
        }
    }

    fn connect_control(&mut self) {
        if !self.connecting {
            self.connecting = true;
            self.outputs.push_back(Output::Connect(Channel::Control));
        }
    }

    fn send(&mut self, now: Instant, message: Message) {
        self.log(LogRecord::Sent(message.clone()));
        if self.plan.power_button.as_ref() == Some(&message) {
            self.console.handle_power_button(now);
        }
        self.control.send(message);
        self.handle_control_events(now);
    }

    fn handle_control_events(&mut self, now: Instant) {
        while let Some(event) = self.control.poll_event() {
            match event {
                ControlEvent::Up => {
                    self.log(LogRecord::ControlUp);
                    self.check_control_ready(now);
                }
                ControlEvent::Reply(message, reply) => {
                    let outcome = self.backend.reply(&message, &reply);
                    self.log(LogRecord::Replied(message.clone(), reply));
                    self.handle_carrier_reply(now, &message);
                    self.input(now, Input::Replied(message, outcome));
                }
                ControlEvent::Event(event) => {
                    let guest_event = self.backend.event(&event);
                    let disk_error = self.backend.disk_error(&event, &self.plan.disks);
                    self.log(LogRecord::ControlEvent(event));
                    self.handle_guest_event(now, guest_event);
                    self.handle_disk_error(now, disk_error);
                }
                ControlEvent::Lost(error) => {
                    self.log(LogRecord::ControlLost(error));
                    self.input(now, Input::ControlLost);
                }
            }
        }
        if self.control.wants_connection() {
            self.connect_control();
        }
    }

    fn handle_guest_event(&mut self, now: Instant, event: Option<GuestEvent>) {
        match event {
            Some(GuestEvent::ConsoleOpened) => self.console.handle_opened(),
            Some(event) => self.input(now, Input::Guest(event)),
            None => {}
        }
    }

    fn handle_disk_error(&mut self, now: Instant, error: Option<DiskError>) {
        if let Some(error) = error
            && self.disk_errors.add(now, error.clone())
        {
            self.log(LogRecord::DiskError(error.clone()));
            self.events.push(VmEvent::DiskError(error));
        }
    }

    fn handle_pipe_bytes(&mut self, now: Instant, bytes: &[u8]) {
        let Some(decoder) = &mut self.pipe_decoder else { return };
        let mut values = Vec::new();
        let decoded = decoder.handle_bytes(bytes).and_then(|()| {
            while let Some(value) = decoder.poll_value()? {
                values.push(value);
            }
            Ok(())
        });
        for value in values {
            let guest_event = self.backend.pipe_event(&value);
            self.log(LogRecord::PipeEvent(value));
            self.handle_guest_event(now, guest_event);
        }
        if let Err(error) = decoded {
            self.pipe_decoder = None;
            self.input(now, Input::EventsLost(error.to_string()));
        }
    }

    fn handle_stderr(&mut self, now: Instant, id: ProcessId, bytes: &[u8]) {
        let is_hypervisor = id == self.plan.hypervisor();
        let mut guest_events = Vec::new();
        self.stderr[id.0].handle_bytes(bytes, |line| {
            if is_hypervisor {
                guest_events.extend(self.backend.stderr_line(line));
            }
        });
        for event in guest_events {
            self.handle_guest_event(now, Some(event));
        }
    }
}

#[cfg(test)]
mod tests;
