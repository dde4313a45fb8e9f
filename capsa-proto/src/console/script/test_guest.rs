//! A simulated guest for tests: a terminal with echo, a getty, and a shell that runs the command wrapper.
//!
//! It parses the lines by the rules of a shell (quotes, `printf %b`), independently of `line.rs`, so the
//! two check each other. Its behaviour was compared with real shells.

use super::{CommandOutput, Script, ScriptAction, ScriptError};
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
    pub(super) interrupts: usize,
    variable: String,
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
            interrupts: 0,
            variable: String::new(),
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
                0x03 => {
                    self.interrupts += 1;
                    self.line.clear();
                    self.print("^C\n");
                    self.prompt();
                }
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
        let mut status = 0;
        for statement in split_statements(line) {
            let statement = statement.trim();
            if let Some(value) = statement.strip_prefix("capsa_command=") {
                self.variable = self.word(value);
            } else if let Some(word) = statement.strip_prefix("command eval ") {
                let word = word.strip_suffix(" </dev/null").unwrap_or(word);
                let command = self.word(word);
                let (output, ended) = (self.behaviour)(&command);
                self.ran.push(command);
                self.print(output);
                match ended {
                    Some(n) => status = n,
                    None => return,
                }
            } else if let Some(args) = statement.strip_prefix("printf ") {
                let args: Vec<&str> = args.split(' ').collect();
                let text = match args[..] {
                    [r"'%s:%s:%s\n'", a, b, c] => format!("{a}:{b}:{c}\n"),
                    [r"'%s:%s:%s:%d;\n'", a, b, c, "$?"] => format!("{a}:{b}:{c}:{status};\n"),
                    _ => format!("printf: unsupported {args:?}\n"),
                };
                self.print(text);
            }
        }
        self.prompt();
    }

    /// Expands one shell word.
    fn word(&self, word: &str) -> String {
        let escaped = word.strip_prefix("\"$(printf %b ").and_then(|w| w.strip_suffix(")\""));
        if let Some(inner) = escaped {
            return unescape(&self.word(inner));
        }
        let mut out = String::new();
        let mut rest = word;
        while let Some(c) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix('\'') {
                let (inner, after) = after.split_once('\'').expect("a closing quote");
                out.push_str(inner);
                rest = after;
            } else if let Some(after) = rest.strip_prefix("$capsa_command") {
                out.push_str(&self.variable);
                rest = after;
            } else if let Some(after) = rest.strip_prefix(r"\'") {
                out.push('\'');
                rest = after;
            } else {
                assert_eq!(c, '"', "unquoted {rest:?}");
                rest = &rest[1..];
            }
        }
        out
    }
}

/// Splits at semicolons outside of quotes.
fn split_statements(line: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (i, c) in line.char_indices() {
        match c {
            _ if core::mem::take(&mut escaped) => {}
            '\\' if !quoted => escaped = true,
            '\'' => quoted = !quoted,
            ';' if !quoted => {
                parts.push(&line[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&line[start..]);
    parts
}

fn unescape(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(b'0') => {
                    let digits =
                        bytes.by_ref().take(3).fold(0u32, |n, d| n * 8 + u32::from(d - b'0'));
                    out.push(digits as u8);
                }
                other => out.extend(other),
            },
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
