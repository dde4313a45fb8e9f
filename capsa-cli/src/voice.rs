//! What the command says on standard error while a machine runs: to a person, or as JSON lines.
//!
//! Where nobody reads it there is nothing to be done, so no call fails.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use capsa::escape_control;
use rustix::termios::tcgetwinsize;
use serde_json::{Value, json};

use crate::envelope;
use crate::values::ProgressMode;

/// How often the status line is drawn again, to count the seconds.
const REDRAW: Duration = Duration::from_secs(1);

/// How long something takes before a person is told that it goes on: what is over at once needs no
/// word.
const PATIENCE: Duration = Duration::from_millis(300);

/// The voice of one run.
#[derive(Debug)]
pub(crate) struct Voice {
    quiet: bool,
    verbose: bool,
    mode: ProgressMode,
    is_terminal: bool,
    begin: Instant,
    /// What goes on, for the status line, until the guest speaks.
    status: RefCell<Option<String>>,
    /// When the status line was drawn that is on the terminal.
    drawn: Cell<Option<Instant>>,
}

impl Voice {
    /// The voice that the flags ask for.
    pub(crate) fn new(quiet: bool, verbose: bool, mode: ProgressMode) -> Self {
        Self {
            quiet,
            verbose,
            mode,
            is_terminal: io::stderr().is_terminal(),
            begin: Instant::now(),
            status: RefCell::new(None),
            drawn: Cell::new(None),
        }
    }

    /// Whether standard error is for programs.
    pub(crate) fn is_json(&self) -> bool {
        self.mode == ProgressMode::Json
    }

    /// Something to know, for people who did not ask for silence.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet && !self.is_json() {
            self.line(&format!("capsa: {text}"));
        }
    }

    /// Something that is not as one would wish.
    pub(crate) fn warn(&self, text: &str) {
        if self.is_json() {
            self.event("warning", json!({"text": text}));
        } else {
            self.say(&format!("warning: {text}"));
        }
    }

    /// Something for people who asked for more.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose {
            self.say(text);
        }
    }

    /// Something that went wrong: it is said whatever was asked for.
    pub(crate) fn fail(&self, text: &str) {
        if self.is_json() {
            self.event("error", json!({"text": text}));
        } else {
            self.line(&format!("capsa: {text}"));
        }
    }

    /// What to do about what was said last.
    pub(crate) fn hint(&self, text: &str) {
        if !self.is_json() {
            self.line(&format!("    hint: {text}"));
        }
    }

    /// A step on the way, for programs; people who asked for more get its name.
    pub(crate) fn event(&self, name: &str, more: Value) {
        if !self.is_json() {
            if !matches!(name, "warning" | "error" | "stopped") {
                self.detail(&format!("{name} after {:.3} s", self.seconds()));
            }
            return;
        }
        let mut content = json!({"event": name, "seconds": (self.seconds() * 1e6).round() / 1e6});
        if let (Some(content), Value::Object(more)) = (content.as_object_mut(), more) {
            content.extend(more);
        }
        let _ = writeln!(io::stderr(), "{}", envelope::line("progress", content));
    }

    /// What goes on now; nothing once the guest speaks for itself.
    pub(crate) fn status(&self, text: Option<&str>) {
        *self.status.borrow_mut() = text.map(ToOwned::to_owned);
        self.clear();
    }

    /// How long until the status line wants to be drawn again.
    pub(crate) fn next_draw(&self) -> Option<Duration> {
        if !self.draws() || self.status.borrow().is_none() {
            return None;
        }
        Some(match self.drawn.get() {
            Some(drawn) => REDRAW.saturating_sub(drawn.elapsed()),
            None => PATIENCE.saturating_sub(self.begin.elapsed()),
        })
    }

    /// Draws the status line, where it is time.
    pub(crate) fn draw(&self) {
        if self.next_draw() != Some(Duration::ZERO) {
            return;
        }
        if let Some(text) = &*self.status.borrow() {
            // A line that is wider than the terminal could not be taken back.
            let width = tcgetwinsize(io::stderr()).map_or(80, |size| usize::from(size.ws_col));
            let line = format!("capsa: {text}, {:.0} s", self.seconds());
            let line: String = line.chars().take(width.saturating_sub(1)).collect();
            let _ = io::stderr().write_all(format!("\r\x1b[K{line}").as_bytes());
            self.drawn.set(Some(Instant::now()));
        }
    }

    /// Takes the status line off the terminal.
    pub(crate) fn clear(&self) {
        if self.drawn.take().is_some() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }

    fn draws(&self) -> bool {
        self.is_terminal && !self.quiet && self.mode == ProgressMode::Auto
    }

    fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    fn line(&self, text: &str) {
        self.clear();
        // A raw terminal wants both.
        let end = if self.is_terminal { "\r\n" } else { "\n" };
        let _ = io::stderr().write_all(format!("{}{end}", escape_control(text)).as_bytes());
    }
}
