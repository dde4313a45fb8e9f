//! What the programs of a machine say: on the control channel, on the event pipe, on standard error.
//!
//! The backend knows what it means; the lifecycle machine is told.

use capsa_proto::backend::GuestEvent;
use capsa_proto::lifecycle::Input;
use capsa_proto::plan::ProcessId;

use super::Supervisor;
use crate::control::Heard;

impl Supervisor {
    pub(super) fn control_ready(&mut self) {
        let mut heard = Vec::new();
        self.more |= self.control.on_ready(&self.poll, &mut self.budgets.control, &mut heard);
        for heard in heard {
            self.heard(heard);
        }
    }

    pub(super) fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Up => self.look_for_readiness(),
            Heard::Reply(message, reply) => {
                let verdict = self.backend.reply(&message, &reply);
                self.tell(Input::Replied(verdict));
            }
            Heard::Event(event) => {
                tracing::debug!(?event, "control event");
                self.guest_event(self.backend.event(&event));
            }
            Heard::Lost => self.tell(Input::ControlLost),
        }
        self.act();
    }

    pub(super) fn guest_event(&mut self, event: Option<GuestEvent>) {
        let Some(input) = event.and_then(input) else { return };
        // What was said before explains why.
        self.console_ready();
        self.stderr_ready(self.plan.hypervisor());
        self.tell(input);
    }

    pub(super) fn stderr_ready(&mut self, id: ProcessId) {
        let Some(process) = &mut self.processes[id.0] else { return };
        let mut means = None;
        let is_hypervisor = id == self.plan.hypervisor();
        self.more |= process.drain_stderr(|line| {
            if is_hypervisor && means.is_none() {
                means = self.backend.stderr_line(line).and_then(input);
            }
        });
        if let Some(input) = means {
            self.console_ready();
            self.tell(input);
        }
    }

    pub(super) fn events_ready(&mut self) {
        let Some(pipe) = &mut self.event_pipe else { return };
        let mut heard = Vec::new();
        let more = pipe.on_ready(&mut self.budgets.events, &mut heard);
        for event in heard {
            tracing::debug!(%event, "event");
            self.guest_event(self.backend.pipe_event(&event));
        }
        match more {
            Ok(more) => self.more |= more,
            Err(error) => {
                self.event_pipe = None;
                self.tell(Input::EventsLost(error.to_string()));
            }
        }
    }
}

/// What the machine is to hear of it.
fn input(event: GuestEvent) -> Option<Input> {
    Some(match event {
        GuestEvent::PoweredOff => Input::GuestPoweredOff,
        GuestEvent::Reset => Input::GuestReset,
        GuestEvent::Panicked => Input::GuestPanicked { certain: true },
        GuestEvent::ExternalQuit => Input::ExternalQuit,
        GuestEvent::CpuFailed => Input::CpuFailed,
        _ => return None,
    })
}
