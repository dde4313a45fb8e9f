//! Input from a VM's processes: the control channel, the event pipe, standard error.
//!
//! The backend interprets it; the result is fed to the lifecycle.

use capsa_proto::backend::GuestEvent;
use capsa_proto::lifecycle::Input;
use capsa_proto::plan::ProcessId;
use capsa_proto::vm::ControlEvent;

use super::Supervisor;

impl Supervisor {
    pub(super) fn control_ready(&mut self) {
        self.more |= self.control.on_ready(&self.poll, &mut self.budgets.control);
        self.handle_control_events();
    }

    pub(super) fn handle_control_events(&mut self) {
        while let Some(event) = self.control.poll_event() {
            match event {
                ControlEvent::Up => {
                    tracing::debug!("control channel is up");
                    self.check_readiness();
                }
                ControlEvent::Reply(message, reply) => {
                    tracing::debug!(message = message.purpose, ?reply, "control reply");
                    let outcome = self.backend.reply(&message, &reply);
                    self.input(Input::Replied(outcome));
                }
                ControlEvent::Event(event) => {
                    tracing::debug!(?event, "control event");
                    self.guest_event(self.backend.event(&event));
                }
                ControlEvent::Lost(error) => {
                    if let Some(error) = error {
                        tracing::warn!("control channel: {error}");
                    }
                    self.input(Input::ControlLost);
                }
            }
            self.act();
        }
    }

    pub(super) fn guest_event(&mut self, event: Option<GuestEvent>) {
        let Some(input) = event.and_then(lifecycle_input) else { return };
        // Earlier output may explain the event.
        self.console_ready();
        self.stderr_ready(self.plan.hypervisor());
        self.input(input);
    }

    pub(super) fn stderr_ready(&mut self, id: ProcessId) {
        let Some(process) = &mut self.processes[id.0] else { return };
        let mut found = None;
        let is_hypervisor = id == self.plan.hypervisor();
        self.more |= process.drain_stderr(|line| {
            if is_hypervisor && found.is_none() {
                found = self.backend.stderr_line(line).and_then(lifecycle_input);
            }
        });
        if let Some(input) = found {
            self.console_ready();
            self.input(input);
        }
    }

    pub(super) fn events_ready(&mut self) {
        let Some(pipe) = &mut self.event_pipe else { return };
        let mut events = Vec::new();
        let more = pipe.on_ready(&mut self.budgets.events, &mut events);
        for event in events {
            tracing::debug!(%event, "event");
            self.guest_event(self.backend.pipe_event(&event));
        }
        match more {
            Ok(more) => self.more |= more,
            Err(error) => {
                self.event_pipe = None;
                self.input(Input::EventsLost(error.to_string()));
            }
        }
    }
}

/// The lifecycle input for an event of the guest, if there is one.
fn lifecycle_input(event: GuestEvent) -> Option<Input> {
    Some(match event {
        GuestEvent::PoweredOff => Input::GuestPoweredOff,
        GuestEvent::Reset => Input::GuestReset,
        GuestEvent::Panicked => Input::GuestPanicked { certain: true },
        GuestEvent::ExternalQuit => Input::ExternalQuit,
        GuestEvent::CpuFailed => Input::CpuFailed,
        _ => return None,
    })
}
