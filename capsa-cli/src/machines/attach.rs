//! `capsa console NAME`: the console of a machine that another `capsa run` holds.
//!
//! It first shows what is kept of the console. Who may type is decided by that run; whoever may not
//! looks on. Leaving leaves the machine alone.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::signal::{Signal, raise};
use nix::unistd::read;

use crate::failure::{Failure, HYPERVISOR, NO_MACHINE, OK, OUTPUT, SIGNAL};
use crate::flags::{Given, usage};
use crate::machines;
use crate::session::control::Request;
use crate::session::signals::{Signals, Wish};
use crate::stdio::escape::{Escape, Order};
use crate::stdio::output::Output;
use crate::stdio::terminal::RawTerminal;
use crate::stdio::watch::Watch;
use crate::values::ProgressMode;
use crate::voice::Voice;

/// Attaches, until the machine ends or the user leaves.
pub(crate) fn console(given: &Given) -> Result<u8, Failure> {
    let Some(name) = given.operands.first() else {
        return Err(usage("no machine is named", Some(given.command)));
    };
    let voice = Voice::new(given.has("--quiet"), false, ProgressMode::None);
    let machine = machines::named(name)?;
    let wants_to_type = !given.has("--read-only");
    let (stream, answer) = machine.ask(&Request::Console { r#type: wants_to_type })?;
    let types = answer["types"].as_bool().unwrap_or_default();
    let begun = stream.buffer().to_vec();
    let broken =
        |error: io::Error| Failure::new(HYPERVISOR, format!("cannot show the console: {error}"));
    match (types, wants_to_type) {
        (true, _) if io::stdin().is_terminal() => voice.say("Ctrl-] q leaves; the machine goes on"),
        (false, true) => voice.say("somebody else types there: looking on, Ctrl-C leaves"),
        _ => {}
    }
    let mut attached = Attached::new(stream.into_inner(), begun, types).map_err(broken)?;
    let code = attached.drive().map_err(broken)?;
    let was_cut_off = attached.is_over && machine.still_runs();
    // The terminal is given back before the last words.
    drop(attached);
    if was_cut_off {
        let what = format!("{name} goes on without this viewer, which read too slowly");
        let hint = format!("look on again: capsa console {name}; what it missed is lost here");
        return Err(Failure::new(NO_MACHINE, what).hint(hint));
    }
    Ok(code)
}

struct Attached {
    stream: UnixStream,
    signals: Signals,
    output: Output,
    terminal: Option<RawTerminal>,
    escape: Escape,
    input_open: bool,
    /// Typed, and not yet taken by the run.
    typed: Vec<u8>,
    /// The run has said all.
    is_over: bool,
}

/// Who is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Signals,
    Machine,
    Input,
    Output,
}

impl Attached {
    fn new(stream: UnixStream, begun: Vec<u8>, types: bool) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        // Before the terminal is raw, so that no signal can end this program while it is.
        let signals = Signals::install()?;
        let mut output = Output::new()?;
        output.put(begun);
        Ok(Self {
            stream,
            signals,
            output,
            // Who only looks on leaves as from any program: with Ctrl-C.
            terminal: if types { RawTerminal::enter()? } else { None },
            escape: Escape::default(),
            input_open: types,
            typed: Vec::new(),
            is_over: false,
        })
    }

    fn drive(&mut self) -> io::Result<u8> {
        while !self.output.is_broken() && (!self.is_over || !self.output.is_empty()) {
            for who in self.wait()? {
                match who {
                    Who::Signals => {
                        if let Some(code) = self.signalled() {
                            return Ok(code);
                        }
                    }
                    Who::Output => self.output.on_writable(),
                    Who::Machine => self.exchange()?,
                    Who::Input => {
                        if self.read_input() {
                            return Ok(OK);
                        }
                    }
                }
            }
        }
        // Without anybody to show it to there is nothing to look on for.
        Ok(if self.output.is_lossy() { OUTPUT } else { OK })
    }

    fn wait(&self) -> io::Result<Vec<Who>> {
        let stdin = io::stdin();
        let mut watch = Watch::new();
        watch.readable(Who::Signals, self.signals.as_fd());
        if !self.output.is_empty() {
            watch.writable(Who::Output, self.output.as_fd());
        } else if !self.is_over {
            watch.readable(Who::Machine, self.stream.as_fd());
        }
        if !self.typed.is_empty() {
            watch.writable(Who::Machine, self.stream.as_fd());
        } else if self.input_open && self.terminal.as_ref().is_none_or(RawTerminal::is_foreground) {
            watch.readable(Who::Input, stdin.as_fd());
        }
        watch.wait(None)
    }

    /// Reads and writes what the socket gives and takes.
    fn exchange(&mut self) -> io::Result<()> {
        if !self.typed.is_empty() {
            match self.stream.write(&self.typed) {
                Ok(n) => drop(self.typed.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.typed.clear(),
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

    /// Reads what was typed. True when the user leaves.
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
            None => self.typed.extend_from_slice(read),
            Some(_) => {
                let (bytes, orders) = self.escape.split(read);
                self.typed.extend(bytes);
                return orders.contains(&Order::Stop);
            }
        }
        false
    }

    /// The exit code, when a signal wants an end.
    fn signalled(&mut self) -> Option<u8> {
        for wish in self.signals.take() {
            match wish {
                Wish::End(signal) | Wish::Kill(signal) => return Some(SIGNAL + signal),
                Wish::Suspend => {
                    if let Some(terminal) = &self.terminal {
                        terminal.suspend();
                    }
                    let _ = raise(Signal::SIGSTOP);
                }
                Wish::Resume => {
                    if let Some(terminal) = &self.terminal {
                        let _ = terminal.resume();
                    }
                }
            }
        }
        None
    }
}
