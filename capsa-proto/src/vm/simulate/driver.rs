//! The driver of a schedule: carries out the outputs of the core, and moves bytes, as the drivers of
//! `capsa-io` do.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::hypervisor::{Mark, SimLink};
use super::setup::EventRoute;
use super::trace::Step;
use super::world::{HostState, Simulation, law};
use crate::lifecycle::{Cause, Exit, Phase};
use crate::plan::{ConsolePlan, ControlEndpoint, ProcessId, Signal};
use crate::vm::{Channel, Output};

/// More calls of `handle_timeout` at one time than a core and its waits need.
const TIMEOUTS_AT_ONCE: usize = 16;

/// More timeouts than lead from any phase to the end.
const TIMEOUTS_TO_THE_END: usize = 12;

/// More timeouts than a wait without output needs.
const TIMEOUTS_OF_A_WAIT: usize = 20;

impl Simulation<'_> {
    pub(super) fn link(&mut self, channel: Channel) -> &mut SimLink {
        match channel {
            Channel::Control => &mut self.control,
            Channel::Console => &mut self.console,
            Channel::Events => &mut self.events,
            Channel::Stderr(id) => &mut self.stderr[id.0],
            Channel::SerialPort | Channel::Agent(_) => {
                unreachable!("the simulated plans have no serial port and no agent")
            }
        }
    }

    // Bytes.

    /// Reads at most `max` bytes of a channel, cut into pieces, and passes them to the core. Output of
    /// the guest goes first: it may explain what the other channels report.
    pub(super) fn deliver(&mut self, channel: Channel, max: usize) {
        if channel != Channel::Console {
            self.deliver_from(Channel::Console, usize::MAX);
        }
        self.deliver_from(channel, max);
    }

    pub(super) fn deliver_all(&mut self) {
        self.deliver_from(Channel::Console, usize::MAX);
        for id in (0..self.processes.len()).rev().map(ProcessId) {
            self.deliver_from(Channel::Stderr(id), usize::MAX);
        }
        self.deliver_from(Channel::Control, usize::MAX);
        self.deliver_from(Channel::Events, usize::MAX);
    }

    fn deliver_from(&mut self, channel: Channel, max: usize) {
        // A match takes precedence over a deadline that has passed, so a late driver makes a difference
        // between a whole match and one whose first byte comes alone.
        if self.owner.keeps_results && self.core.poll_timeout().is_some_and(|d| d.at <= self.now) {
            self.pump();
        }
        let mut left = max.min(self.link(channel).inbound.len());
        if left > 0 {
            let phase = self.core.phase();
            let mut total = 0;
            while left > 0 && self.link(channel).open {
                let window = self.core.window(channel);
                if window == 0 {
                    break;
                }
                let piece = self.cuts.piece(left.min(window));
                let (bytes, marks) = self.link(channel).read(piece);
                self.note_marks(channel, phase, &marks);
                if channel == Channel::Console {
                    self.passed.extend_from_slice(&bytes);
                    self.owner.expects_data = true;
                }
                self.core.handle_bytes(self.now, channel, &bytes);
                left -= piece;
                total += piece;
                self.close_unused(channel);
            }
            self.add_step(Step::Read(channel, total));
        }
        let has_window = self.core.window(channel) > 0;
        let link = self.link(channel);
        if link.open && link.ended && link.inbound.is_empty() && has_window {
            self.close(channel);
            self.note_end(channel);
            self.core.handle_eof(self.now, channel);
        }
    }

    fn note_marks(&mut self, channel: Channel, phase: Phase, marks: &[Mark]) {
        for mark in marks {
            match mark {
                Mark::Guest(event) => self.laws.note_event(phase, *event, &self.plan),
                Mark::ButtonRefused => self.laws.note_refused_button(phase),
                Mark::Garbage => self.note_end(channel),
                Mark::Reply => {
                    let reply = self.vmm.replies.pop_front();
                    self.laws.replies.extend(reply);
                }
            }
        }
    }

    /// The channel is at its end, or unusable.
    fn note_end(&mut self, channel: Channel) {
        self.laws.facts.channel_lost |= matches!(channel, Channel::Control | Channel::Events);
    }

    /// Closes a channel that the core does not use.
    fn close_unused(&mut self, channel: Channel) {
        if self.link(channel).open && !self.core.is_open(channel) {
            self.close(channel);
        }
    }

    fn close(&mut self, channel: Channel) {
        self.link(channel).close();
        if channel == Channel::Control {
            self.vmm.forget_connection();
        }
        self.add_step(Step::Closed(channel));
    }

    /// The driver cannot use the channel any more.
    pub(super) fn lose(&mut self, channel: Channel) {
        if self.link(channel).open {
            self.close(channel);
            self.add_step(Step::Lost(channel));
            self.note_end(channel);
            self.core.handle_lost(self.now, channel);
        }
    }

    /// Writes at most `max` bytes of what the core has for a channel.
    pub(super) fn flush(&mut self, channel: Channel, max: usize) {
        self.close_unused(channel);
        let (open, ended) = (self.link(channel).open, self.link(channel).ended);
        if !open {
            return;
        }
        let wants_write = self.core.wants_write(channel);
        let Some(outgoing) = self.core.outgoing(channel) else { return };
        let n = max.min(outgoing.len());
        law!(self, n == 0 || wants_write, "bytes for {channel:?} wait, and it is not watched");
        if n > 0 {
            // A stream whose other end is closed takes no bytes: they are lost.
            let n = if ended { outgoing.len() } else { n };
            let bytes: Vec<u8> = outgoing.drain(..n).collect();
            self.add_step(Step::Wrote(channel, bytes.len()));
            match channel {
                _ if ended => {}
                Channel::Control => self.vmm.handle_bytes(&bytes),
                _ => self.type_into_guest(&bytes),
            }
        }
        self.core.handle_writable(channel);
        if channel == Channel::Console {
            self.note_room();
        }
    }

    // Outputs and time.

    /// Carries out all outputs, and passes the time until no deadline is in the past.
    pub(super) fn pump(&mut self) {
        self.drain_outputs();
        let limit = TIMEOUTS_AT_ONCE + TIMEOUTS_OF_A_WAIT * self.owner.waits.len();
        for calls in 0.. {
            let Some(deadline) = self.core.poll_timeout().filter(|d| d.at <= self.now) else {
                break;
            };
            law!(self, calls < limit, "{deadline} is in the past after {calls} timeouts");
            self.core.handle_timeout(self.now);
            self.add_step(Step::TimedOut);
            self.drain_outputs();
        }
        if self.core.phase() != self.laws.phase {
            self.laws.phase = self.core.phase();
            self.add_step(Step::Phase(self.core.phase()));
        }
        self.close_unused(Channel::Control);
        self.close_unused(Channel::Console);
        self.check_deadlines();
    }

    fn drain_outputs(&mut self) {
        for outputs in 0.. {
            let Some(output) = self.core.poll_output(self.now) else { return };
            law!(self, outputs < 5000, "outputs without end: {output:?}");
            self.check_output(&output);
            match output {
                Output::Launch(id) => self.launch_process(id),
                Output::CheckSocket(id) => self.check_socket(id),
                Output::Connect(channel) => self.connect(channel),
                Output::Signal(id, signal) => self.signal(id, signal),
                Output::Log(_) => {}
                Output::Release => self.release(),
            }
        }
    }

    fn launch_process(&mut self, id: ProcessId) {
        if self.choose.chance(self.temper.failures) {
            self.add_step(Step::LaunchFailed(id));
            self.laws.facts.launch_failed = true;
            self.core.handle_launch_failed(self.now, id, Cause::new("no such program"));
            return;
        }
        self.add_step(Step::Launched(id));
        self.launch(id);
        if id == self.hypervisor() {
            self.attach_inherited();
        }
    }

    /// The hypervisor inherits the other ends of its channels.
    fn attach_inherited(&mut self) {
        if self.vmm.route == EventRoute::Pipe {
            self.events = SimLink::opened();
        }
        if self.plan.control.endpoint == ControlEndpoint::SocketPair {
            self.vmm.accept_connection(&mut self.control);
            self.core.handle_connected(self.now, Channel::Control);
        }
        if self.plan.console != ConsolePlan::None {
            self.console = SimLink::opened();
            self.core.handle_connected(self.now, Channel::Console);
            self.close_unused(Channel::Console);
        }
    }

    fn check_socket(&mut self, id: ProcessId) {
        let process = &mut self.processes[id.0];
        let exists = process.checks_left == 0 && process.state != HostState::NotLaunched;
        process.checks_left = process.checks_left.saturating_sub(1);
        self.add_step(Step::SocketChecked(id, exists));
        if exists {
            self.core.handle_ready(self.now, id);
        }
    }

    fn connect(&mut self, channel: Channel) {
        let listens = self.vmm.refusals_left == 0 && self.hypervisor_is_alive();
        self.vmm.refusals_left = self.vmm.refusals_left.saturating_sub(1);
        if !listens || self.choose.chance(self.temper.refusals) {
            self.add_step(Step::Refused(channel));
            self.core.handle_connect_failed(self.now, channel, String::from("refused"));
            return;
        }
        self.add_step(Step::Connected(channel));
        let is_socket = matches!(self.plan.control.endpoint, ControlEndpoint::Socket(_));
        law!(self, is_socket && channel == Channel::Control, "{channel:?} has no socket");
        self.vmm.accept_connection(&mut self.control);
        if self.choose.chance(self.temper.failures) {
            // Accepted, and closed at once.
            self.link(channel).inbound.clear();
            self.link(channel).ended = true;
        }
        self.core.handle_connected(self.now, channel);
        self.close_unused(channel);
    }

    fn signal(&mut self, id: ProcessId, signal: Signal) {
        self.add_step(Step::Signalled(id, signal));
        self.check_signal(id, signal);
        let process = &mut self.processes[id.0];
        match signal {
            Signal::Kill => process.killed = true,
            Signal::Term => process.terminated = true,
        }
    }

    /// Notices the exit of a process: the hypervisor's before that of a helper. What they wrote goes
    /// first.
    pub(super) fn reap(&mut self, id: ProcessId) {
        let vmm = self.hypervisor();
        if self.laws.released {
            return;
        }
        if id != vmm && matches!(self.processes[vmm.0].state, HostState::Dead(_)) {
            self.reap(vmm);
        }
        if id == vmm {
            self.deliver_all();
        } else {
            self.deliver_from(Channel::Stderr(id), usize::MAX);
        }
        let HostState::Dead(exit) = self.processes[id.0].state.clone() else { return };
        if self.laws.released {
            return;
        }
        self.processes[id.0].state = HostState::Reaped;
        self.add_step(Step::Reaped(id, exit.code));
        self.laws.note_exit(self.core.phase(), id == vmm, &exit);
        self.link(Channel::Stderr(id)).close();
        self.core.handle_exited(self.now, id, exit);
    }

    fn release(&mut self) {
        self.add_step(Step::Released);
        self.check_release();
        let left = self.core.drain_limit().min(self.console.inbound.len());
        let (rest, _) = self.console.read(left);
        for bytes in rest.chunks(100) {
            self.passed.extend_from_slice(bytes);
            self.core.handle_rest(bytes);
        }
        for channel in [Channel::Control, Channel::Console, Channel::Events] {
            self.link(channel).close();
        }
        self.core.handle_released(self.now);
        self.laws.released = true;
    }

    // The end.

    /// The owner kills the VM. From here on, timeouts alone lead to the end.
    pub(super) fn end(&mut self) {
        if !self.laws.started {
            self.start();
        }
        let obeys = self.choose.below(4) > 0;
        self.kill();
        let limit = TIMEOUTS_TO_THE_END + TIMEOUTS_OF_A_WAIT * self.owner.waits.len();
        for timeouts in 0.. {
            self.pump();
            if obeys {
                self.run_processes();
                self.pump();
            }
            if self.laws.released {
                break;
            }
            let phase = self.core.phase();
            law!(
                self,
                timeouts < limit,
                "{timeouts} timeouts after a kill, and the VM is {phase:?}"
            );
            let Some(deadline) = self.core.poll_timeout() else {
                self.trace.fail(format_args!("no deadline leads from {phase:?} to the end"));
            };
            self.now = self.now.max(deadline.at);
        }
        self.poll_events();
        self.check_late_inputs();
        self.check_end();
    }

    /// After the end nothing changes any more, and no deadline is left.
    fn check_late_inputs(&mut self) {
        let status = self.core.status().clone();
        let later = self.now + Duration::from_secs(1);
        law!(self, self.core.stop(later, Duration::ZERO).is_ok(), "a late stop is an error");
        law!(self, self.core.kill(later).is_ok(), "a late kill is an error");
        law!(self, self.core.start(later).is_err(), "a VM was started twice");
        self.core.handle_exited(later, self.hypervisor(), Exit::with_code(0));
        self.now = later;
        for timeouts in 0.. {
            self.drain_outputs();
            let Some(deadline) = self.core.poll_timeout() else { break };
            // A crash message on the console may still be confirmed.
            let is_console = self.core.console().poll_timeout() == Some(deadline);
            law!(self, timeouts < 2 && is_console, "a deadline after the end: {deadline}");
            self.now = self.now.max(deadline.at);
            self.core.handle_timeout(self.now);
        }
        let after = self.core.status().clone();
        law!(self, after == status, "{status:?} became {after:?}");
        self.poll_events();
    }
}
