//! Launches a process of the plan: the spawn and the readiness checks.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use capsa_proto::lifecycle::Input;
use capsa_proto::plan::{ConsolePlan, OverlayPlan, ProcessId, Readiness};
use capsa_proto::time::Instant;
use capsa_proto::vm::VmEvent;

use super::{CONSOLE, EVENTS, Supervisor, keys};
use crate::ephemeral;
use crate::event_pipe::EventPipe;
use crate::process::{ChildProcess, Inherited};
use crate::stream::ByteStream;
use crate::sys::{self, Pty, StandardStreams};

/// A process whose readiness is being checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadinessCheck {
    pub(super) id: ProcessId,
    pub(super) tries: u32,
    pub(super) next: Instant,
}

impl ReadinessCheck {
    /// The delay before the next check: 1 ms at first, then longer.
    fn pause(self) -> Duration {
        Duration::from_millis(match self.tries {
            0..50 => 1,
            50..100 => 5,
            _ => 20,
        })
    }
}

impl Supervisor {
    pub(super) fn spawn(&mut self, id: ProcessId) -> io::Result<()> {
        if let Some(begun) = self.start_simulation() {
            return begun;
        }
        let _streams = StandardStreams::take()?;
        if let Some(run_dir) = &self.run_dir {
            run_dir.check_exists()?;
        }
        let is_hypervisor = id == self.plan.hypervisor();
        let inherited =
            if is_hypervisor { self.prepare_hypervisor()? } else { Inherited::default() };
        let plan = self.plan.process(id);
        tracing::debug!(program = %plan.program, args = ?plan.args, "spawn");
        let process = ChildProcess::spawn(plan, &self.poll, keys(id), inherited)?;
        tracing::info!(process = %plan.name, pid = process.pid(), "started");
        if let Some(run_dir) = &self.run_dir {
            run_dir.record_child(process.pid())?;
        }
        self.processes[id.0] = Some(process);
        Ok(())
    }

    /// Creates the console, event pipe and overlays for the hypervisor.
    fn prepare_hypervisor(&mut self) -> io::Result<Inherited> {
        let terminal = match &self.plan.console {
            ConsolePlan::Pty { .. } => Some(self.open_pty()?),
            _ => None,
        };
        if let Some(path) = &self.plan.event_pipe {
            self.event_pipe = Some(EventPipe::make(path, &self.poll, EVENTS)?);
        }
        let mut open = Vec::new();
        for overlay in &self.plan.overlays {
            match overlay {
                OverlayPlan::Qcow2 { at, overlay } => {
                    open.push(ephemeral::overlay(overlay, at)?.into());
                }
                OverlayPlan::Clone { at, of } => ephemeral::clone(of, at)?,
            }
        }
        Ok(Inherited { terminal, open })
    }

    fn open_pty(&mut self) -> io::Result<(OwnedFd, OwnedFd)> {
        let Pty { ours, stdin, stdout } = sys::open_pty()?;
        self.attach_console(ByteStream::Pty(ours))?;
        Ok((stdin, stdout))
    }

    pub(super) fn attach_console(&mut self, stream: ByteStream) -> io::Result<()> {
        let Self { console, console_stream, poll, .. } = self;
        console_stream.attach(console, stream, poll, CONSOLE)
    }

    /// Checks whether the process is ready, and schedules the next check if it is not.
    pub(super) fn check_readiness(&mut self) {
        let Some(mut check) = self.readiness else { return };
        if self.is_up(check.id) {
            self.readiness = None;
            if check.id == self.plan.hypervisor() {
                self.events.push(VmEvent::ControlReady);
            }
            self.input(Input::Ready(check.id));
            return;
        }
        check.next = self.clock.now() + check.pause();
        check.tries = check.tries.saturating_add(1);
        self.readiness = Some(check);
    }

    fn is_up(&mut self, id: ProcessId) -> bool {
        if self.is_simulated() {
            return true;
        }
        match &self.plan.process(id).ready {
            Readiness::SocketExists(path) => Path::new(path.as_str()).exists(),
            Readiness::ControlConnected => {
                if let ConsolePlan::Socket { socket, .. } = &self.plan.console
                    && !self.console.is_connected()
                    && !self.console.is_closed()
                {
                    let Ok(stream) = ByteStream::connect(socket.as_str()) else { return false };
                    if self.attach_console(stream).is_err() {
                        return false;
                    }
                }
                // A refused connection means that the hypervisor is not ready yet.
                self.control.try_connect(&self.poll).unwrap_or(false)
            }
        }
    }
}
