//! A simulated guest for tests: a terminal with echo, a getty, and a shell that runs the command wrapper.
//!
//! It interprets only what `line.rs` types for a command in a process of its own. Real shells run the
//! same lines in `tests/tests/console/real_shells.rs`.

use super::{CommandOutput, Script, ScriptAction, ScriptError, ShellUse};
use crate::console::{Cursor, Scrollback};
use crate::time::Instant;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// How input is echoed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Echo {
    /// The kernel's echo: unchanged.
    Tty,
    /// bash with readline, 80 columns.
    Readline,
    /// busybox ash with line editing, 80 columns.
    Ash,
    /// `stty -echo`.
    Off,
}

pub(super) const ECHOES: [Echo; 4] = [Echo::Tty, Echo::Readline, Echo::Ash, Echo::Off];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestAt {
    Login,
    Password,
    Shell,
    /// Prints nothing and ignores input.
    Dead,
}

/// The output of a command, and its exit status; `None` if it never ends.
pub(super) type Behaviour = fn(&str) -> (&'static [u8], Option<i32>);

/// What the wrapper of a command does.
enum Wrapper {
    None,
    /// It reads the command of this nonce.
    Reads(String, String),
    /// The command of this nonce runs.
    Runs(String),
    /// The command has ended.
    Ended,
}

pub(super) struct TestGuest {
    pub(super) at: GuestAt,
    pub(super) echo: Echo,
    pub(super) prompt: &'static str,
    pub(super) password: Option<&'static str>,
    /// Kernel messages that are printed after each prompt.
    pub(super) noise: &'static str,
    pub(super) behaviour: Behaviour,
    /// The commands that the shell ran.
    pub(super) ran: Vec<String>,
    /// The requests to the wrapper, such as `INT`.
    pub(super) requests: Vec<String>,
    /// The signals that commands ignore.
    pub(super) ignored: &'static [&'static str],
    wrapper: Wrapper,
    line: String,
    out: Vec<u8>,
}

impl TestGuest {
    pub(super) fn new(at: GuestAt) -> Self {
        Self {
            at,
            echo: Echo::Tty,
            prompt: "# ",
            password: None,
            noise: "",
            behaviour: |_| (b"", Some(0)),
            ran: Vec::new(),
            requests: Vec::new(),
            ignored: &[],
            wrapper: Wrapper::None,
            line: String::new(),
            out: Vec::new(),
        }
    }

    pub(super) fn print(&mut self, text: impl AsRef<[u8]>) {
        for &byte in text.as_ref() {
            if byte == b'\n' {
                self.out.push(b'\r');
            }
            self.out.push(byte);
        }
    }

    pub(super) fn prompt(&mut self) {
        let prompt = match self.at {
            GuestAt::Login => "guest login: ",
            GuestAt::Password => "Password: ",
            GuestAt::Shell => self.prompt,
            GuestAt::Dead => "",
        };
        self.print(prompt);
        self.print(self.noise);
    }

    pub(super) fn take_output(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.out)
    }

    pub(super) fn input(&mut self, bytes: &[u8]) {
        if self.at == GuestAt::Dead {
            return;
        }
        for &byte in bytes {
            match byte {
                b'\r' | b'\n' => {
                    let line = core::mem::take(&mut self.line);
                    self.echo_line(&line);
                    self.take_line(&line);
                }
                _ => self.line.push(byte as char),
            }
        }
    }

    fn echo_line(&mut self, line: &str) {
        if self.at == GuestAt::Password {
            return self.print("\n");
        }
        let wrap = match self.echo {
            Echo::Off => return,
            Echo::Tty => "",
            // readline prints the first character of the next row twice.
            Echo::Readline => "x\r",
            Echo::Ash => "\r\r\n",
        };
        let mut column = self.prompt.len() % 80;
        for c in line.chars() {
            self.out.push(c as u8);
            column += 1;
            if column == 80 {
                column = 0;
                self.out.extend_from_slice(wrap.as_bytes());
            }
        }
        self.print("\n");
        if let Echo::Readline = self.echo {
            self.print("\x1b[?2004l\r");
        }
    }

    fn take_line(&mut self, line: &str) {
        match self.at {
            GuestAt::Login if line.is_empty() => {}
            GuestAt::Login if self.password.is_some() => self.at = GuestAt::Password,
            GuestAt::Login => self.enter(),
            GuestAt::Password if self.password == Some(line) => self.enter(),
            GuestAt::Password => {
                self.print("\nLogin incorrect\n");
                self.at = GuestAt::Login;
            }
            GuestAt::Shell => return self.shell(line),
            GuestAt::Dead => return,
        }
        self.prompt();
    }

    fn enter(&mut self) {
        self.print("Last login: Mon Nov 23 on ttyS0\n");
        self.at = GuestAt::Shell;
    }

    fn shell(&mut self, line: &str) {
        match core::mem::replace(&mut self.wrapper, Wrapper::None) {
            Wrapper::None => {}
            Wrapper::Reads(nonce, mut payload) => {
                return match line.strip_prefix('+') {
                    Some(piece) => {
                        payload.push_str(piece);
                        self.print(format!("capsa:more:{nonce}\n"));
                        self.wrapper = Wrapper::Reads(nonce, payload);
                    }
                    None => self.run(nonce, if line == "." { &payload } else { "" }),
                };
            }
            wrapper => {
                let request = line.rsplit_once(' ').map(|(_, request)| request).unwrap_or_default();
                self.requests.push(request.into());
                self.wrapper = match wrapper {
                    Wrapper::Ended if request == "ok" => return self.prompt(),
                    Wrapper::Runs(nonce) if request != "ok" && !self.ignored.contains(&request) => {
                        self.print(format!("capsa:end:{nonce}:130;\n"));
                        Wrapper::Ended
                    }
                    wrapper => wrapper,
                };
                return;
            }
        }
        let Some(rest) = line.strip_prefix(" /bin/sh -c '") else { return self.prompt() };
        let (program, words) = rest.split_once("' capsa ").expect("the words of the wrapper");
        let (nonce, payload) = words.split_once(' ').expect("two words");
        let payload = payload.strip_prefix('\'').and_then(|word| word.strip_suffix('\''));
        let payload = payload.expect("a quoted word");
        assert!(!payload.contains('\''), "{payload}");
        if program.contains("capsa more") {
            self.print(format!("capsa:more:{nonce}\n"));
            self.wrapper = Wrapper::Reads(nonce.into(), String::new());
        } else {
            self.run(nonce.into(), payload);
        }
    }

    fn run(&mut self, nonce: String, payload: &str) {
        let command = unescape(payload);
        self.print(format!("capsa:begin:{nonce}\n"));
        let (output, ended) = (self.behaviour)(&command);
        self.ran.push(command);
        self.print(output);
        self.wrapper = match ended {
            Some(status) => {
                self.print(format!("capsa:end:{nonce}:{status};\n"));
                Wrapper::Ended
            }
            None => Wrapper::Runs(nonce),
        };
    }
}

fn unescape(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                assert_eq!(bytes.next(), Some(b'0'), "{text}");
                let digits = bytes.by_ref().take(3);
                out.push(digits.fold(0u32, |n, d| n * 8 + u32::from(d - b'0')) as u8);
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).expect("UTF-8 as it was typed")
}

/// The result of a complete run of a script.
pub(super) struct ScriptRun {
    pub(super) result: Result<CommandOutput, ScriptError>,
    pub(super) typed: Vec<Vec<u8>>,
    pub(super) log: Scrollback,
    pub(super) cursor: Cursor,
    pub(super) took: Duration,
}

/// Runs `script` against `guest` until it is done, with output in chunks of 1 to `chunk` bytes.
/// Time passes only when neither has output.
pub(super) fn run_script(
    script: &mut dyn Script,
    guest: &mut TestGuest,
    chunk: usize,
    seed: u64,
) -> ScriptRun {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut log, mut cursor) = (Scrollback::new(1 << 16), Cursor::at(0));
    let (mut now, mut typed) = (Instant::ZERO, Vec::new());
    for _ in 0..1_000_000 {
        match script.poll_output(now, &log, &mut cursor, false) {
            ScriptAction::Write(bytes) => {
                guest.input(&bytes);
                typed.push(bytes);
            }
            ScriptAction::Done(result) => {
                let took = now.since(Instant::ZERO);
                // The rest of the guest's output comes later.
                log.push(&core::mem::take(&mut guest.out));
                return ScriptRun { result, typed, log, cursor, took };
            }
            ScriptAction::Wait if guest.out.is_empty() => {
                let deadline = script.poll_timeout().expect("nothing to wait for");
                assert!(deadline.at > now, "busy loop: {deadline}");
                now = deadline.at;
            }
            ScriptAction::Wait => {
                let n = random.usize(1..=chunk).min(guest.out.len());
                log.push(&guest.out[..n]);
                guest.out.drain(..n);
            }
        }
    }
    panic!("too many steps");
}

/// Runs a script that ends a command, until it is done. Gives the use of the shell if it is stuck.
pub(super) fn continue_script(
    script: &mut dyn Script,
    guest: &mut TestGuest,
    mut log: Scrollback,
    mut cursor: Cursor,
    mut now: Instant,
) -> Result<CommandOutput, ShellUse> {
    loop {
        match script.poll_output(now, &log, &mut cursor, false) {
            ScriptAction::Write(bytes) => guest.input(&bytes),
            ScriptAction::Done(result) => return Ok(result.expect("it ends")),
            ScriptAction::Wait if guest.out.is_empty() => match script.poll_timeout() {
                Some(deadline) => now = deadline.at,
                None => return Err(script.shell_use()),
            },
            ScriptAction::Wait => log.push(&core::mem::take(&mut guest.out)),
        }
    }
}
