//! `capsa console NAME`: attaches this terminal to the console of a VM that another `capsa run` owns.
//!
//! It first shows the output that the run still has. The run decides whether this client becomes the
//! input owner; otherwise it only shows output. Detaching does not affect the VM.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::signal::{Signal, raise};
use nix::unistd::read;

use super::protocol::SocketRequest;
use super::registry;
use crate::failure::{CliError, HYPERVISOR, NO_VM, OK, OUTPUT, SIGNAL};
use crate::flags::{Arguments, usage};
use crate::reporter::Reporter;
use crate::session::signals::{SignalRequest, Signals};
use crate::settings::ProgressMode;
use crate::stdio::escape::{EscapeCommand, EscapeParser};
use crate::stdio::output::OutputWriter;
use crate::stdio::poll_set::PollSet;
use crate::stdio::terminal::RawTerminal;

/// Attaches, until the VM ends or the user detaches.
pub(crate) fn console(arguments: &Arguments) -> Result<u8, CliError> {
    let options = &arguments.settings.options;
    let Some(name) = arguments.operands.first() else {
        return Err(usage("missing the name or ID of a VM", Some(arguments.command)));
    };
    let reporter = Reporter::new(options.quiet, false, ProgressMode::None);
    let vm = registry::find(name)?;
    let wants_input = !options.read_only;
    let (stream, reply) = vm.request(&SocketRequest::Console { input: wants_input })?;
    let owns_input = reply.input.unwrap_or_default();
    let first_output = stream.buffer().to_vec();
    let failed =
        |error: io::Error| CliError::new(HYPERVISOR, format!("cannot show the console: {error}"));
    match (owns_input, wants_input) {
        (true, _) if io::stdin().is_terminal() => {
            reporter.info("attached; Ctrl-] q detaches, the VM keeps running");
        }
        (false, true) => {
            reporter.info("attached read-only: the console's input is in use; Ctrl-C detaches");
        }
        _ => {}
    }
    let mut attachment =
        Attachment::new(stream.into_inner(), first_output, owns_input).map_err(failed)?;
    let code = attachment.drive().map_err(failed)?;
    let was_disconnected = attachment.is_over && vm.still_runs();
    // Restores the terminal before the message.
    drop(attachment);
    if was_disconnected {
        let what = format!("disconnected from {name}: this client read the console too slowly");
        let hint = format!(
            "the VM keeps running; attach again with `capsa console {name}`, without the output \
             missed here"
        );
        return Err(CliError::new(NO_VM, what).hint(hint));
    }
    Ok(code)
}

struct Attachment {
    stream: UnixStream,
    signals: Signals,
    output: OutputWriter,
    terminal: Option<RawTerminal>,
    escape: EscapeParser,
    input_open: bool,
    /// Input that is not yet written to the run.
    input: Vec<u8>,
    /// The run has closed the connection.
    is_over: bool,
}

/// A descriptor that [`Attachment`] polls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttachSource {
    Signals,
    Run,
    Input,
    Output,
}

impl Attachment {
    fn new(stream: UnixStream, first_output: Vec<u8>, owns_input: bool) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        // Before the terminal becomes raw, so that no signal ends this program while it is raw.
        let signals = Signals::install()?;
        let mut output = OutputWriter::new()?;
        output.put(first_output);
        Ok(Self {
            stream,
            signals,
            output,
            // Without input the terminal stays as it is, and Ctrl-C detaches.
            terminal: if owns_input { RawTerminal::enter()? } else { None },
            escape: EscapeParser::default(),
            input_open: owns_input,
            input: Vec::new(),
            is_over: false,
        })
    }

    fn drive(&mut self) -> io::Result<u8> {
        while !self.output.is_broken() && (!self.is_over || !self.output.is_empty()) {
            if let Some(terminal) = &mut self.terminal {
                terminal.follow_foreground();
            }
            for source in self.wait()? {
                match source {
                    AttachSource::Signals => {
                        if let Some(code) = self.handle_signals() {
                            return Ok(code);
                        }
                    }
                    AttachSource::Output => self.output.on_writable(),
                    AttachSource::Run => self.exchange()?,
                    AttachSource::Input => {
                        if self.read_input() {
                            return Ok(OK);
                        }
                    }
                }
            }
        }
        Ok(if self.output.is_lossy() { OUTPUT } else { OK })
    }

    fn wait(&self) -> io::Result<Vec<AttachSource>> {
        let stdin = io::stdin();
        let mut poll_set = PollSet::new();
        poll_set.readable(AttachSource::Signals, self.signals.as_fd());
        if !self.output.is_empty() {
            poll_set.writable(AttachSource::Output, self.output.as_fd());
        } else if !self.is_over {
            poll_set.readable(AttachSource::Run, self.stream.as_fd());
        }
        if !self.input.is_empty() {
            poll_set.writable(AttachSource::Run, self.stream.as_fd());
        } else if self.input_open && self.terminal.as_ref().is_none_or(RawTerminal::is_foreground) {
            poll_set.readable(AttachSource::Input, stdin.as_fd());
        }
        poll_set.wait(self.terminal.as_ref().and_then(RawTerminal::next_check))
    }

    /// Writes input to the run and reads output from it, as far as neither blocks.
    fn exchange(&mut self) -> io::Result<()> {
        if !self.input.is_empty() {
            match self.stream.write(&self.input) {
                Ok(n) => drop(self.input.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.input.clear(),
            }
        }
        if !self.output.is_empty() {
            return Ok(());
        }
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.is_over = true,
            Ok(n) => self.output.put(chunk[..n].to_vec()),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // A run that was killed resets the connection.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.is_over = true,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads standard input. True when the user detaches.
    fn read_input(&mut self) -> bool {
        let mut chunk = [0; 4096];
        let read = match read(io::stdin(), &mut chunk) {
            Ok(n @ 1..) => &chunk[..n],
            Err(Errno::EINTR | Errno::EAGAIN) => return false,
            Ok(0) | Err(_) => {
                self.input_open = false;
                return false;
            }
        };
        match self.terminal {
            None => self.input.extend_from_slice(read),
            Some(_) => {
                let (bytes, commands) = self.escape.split(read);
                self.input.extend(bytes);
                return commands.contains(&EscapeCommand::Stop);
            }
        }
        false
    }

    /// The exit code, when a signal ends this program.
    fn handle_signals(&mut self) -> Option<u8> {
        for request in self.signals.take() {
            match request {
                // A serial console has no size.
                SignalRequest::Resize => {}
                SignalRequest::Stop(signal) | SignalRequest::Kill(signal) => {
                    return Some(SIGNAL + signal);
                }
                SignalRequest::Suspend => {
                    if let Some(terminal) = &self.terminal {
                        terminal.suspend();
                    }
                    let _ = raise(Signal::SIGSTOP);
                }
                SignalRequest::Resume => {
                    if let Some(terminal) = &mut self.terminal {
                        let _ = terminal.resume();
                    }
                }
            }
        }
        None
    }
}
