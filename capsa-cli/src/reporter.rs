//! Writes progress, warnings and errors to standard error while a VM runs: as text, or as JSON lines.
//!
//! Write errors on standard error are ignored, so no method fails.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use capsa::console::escape_control;
use rustix::termios::tcgetwinsize;
use serde_json::{Value, json};

use crate::json_output;
use crate::print::print_message;
use crate::settings::ProgressMode;

/// How often the status line is redrawn, to update its seconds.
const REDRAW: Duration = Duration::from_secs(1);

/// When the status line appears first, so that a short wait shows none.
const FIRST_DRAW: Duration = Duration::from_millis(300);

/// The reporter of one run.
#[derive(Debug)]
pub(crate) struct Reporter {
    quiet: bool,
    verbose: bool,
    mode: ProgressMode,
    is_terminal: bool,
    begin: Instant,
    /// The text of the status line, until there is console output.
    status: RefCell<Option<String>>,
    /// When the status line was drawn; `None` while it is not on the terminal.
    drawn: Cell<Option<Instant>>,
}

impl Reporter {
    /// A reporter for these flags.
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

    /// Whether standard error carries JSON lines.
    pub(crate) fn is_json(&self) -> bool {
        self.mode == ProgressMode::Json
    }

    /// A message, unless `--quiet`.
    pub(crate) fn info(&self, text: &str) {
        if !self.quiet && !self.is_json() {
            self.line(&format!("capsa: {text}"));
        }
    }

    /// A warning, unless `--quiet`; always as JSON.
    pub(crate) fn warn(&self, text: &str) {
        if self.is_json() {
            self.event("warning", json!({"text": text}));
        } else {
            self.info(&format!("warning: {text}"));
        }
    }

    /// A message for `--verbose`.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose {
            self.info(text);
        }
    }

    /// An error. `--quiet` does not suppress it.
    pub(crate) fn error(&self, text: &str) {
        if self.is_json() {
            self.event("error", json!({"text": text}));
        } else {
            self.line(&format!("capsa: {text}"));
        }
    }

    /// The remedy for the last error.
    pub(crate) fn hint(&self, text: &str) {
        if !self.is_json() {
            self.line(&format!("    hint: {text}"));
        }
    }

    /// A step of the run, as a JSON line; its name with `--verbose`.
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
        print_message(&format!("{}\n", json_output::line("progress", content)));
    }

    /// Sets the text of the status line, or removes the line.
    pub(crate) fn status(&self, text: Option<&str>) {
        *self.status.borrow_mut() = text.map(ToOwned::to_owned);
        self.clear();
    }

    /// The time until the next [`Reporter::draw`]; `None` where there is no status line.
    pub(crate) fn next_draw(&self) -> Option<Duration> {
        if !self.has_status_line() || self.status.borrow().is_none() {
            return None;
        }
        Some(match self.drawn.get() {
            Some(drawn) => REDRAW.saturating_sub(drawn.elapsed()),
            None => FIRST_DRAW.saturating_sub(self.begin.elapsed()),
        })
    }

    /// Draws the status line if it is due.
    pub(crate) fn draw(&self) {
        if self.next_draw() != Some(Duration::ZERO) {
            return;
        }
        if let Some(text) = &*self.status.borrow() {
            // `\r` and `\x1b[K` erase one line only, so the text must not wrap.
            let width = tcgetwinsize(io::stderr()).map_or(80, |size| usize::from(size.ws_col));
            let line = format!("capsa: {text}, {:.0} s", self.seconds());
            let line: String = line.chars().take(width.saturating_sub(1)).collect();
            print_message(&format!("\r\x1b[K{line}"));
            self.drawn.set(Some(Instant::now()));
        }
    }

    /// Erases the status line from the terminal.
    pub(crate) fn clear(&self) {
        if self.drawn.take().is_some() {
            print_message("\r\x1b[K");
        }
    }

    fn has_status_line(&self) -> bool {
        self.is_terminal && !self.quiet && self.mode == ProgressMode::Auto
    }

    fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    fn line(&self, text: &str) {
        self.clear();
        // The terminal may be raw, where a line feed alone does not return to column 1.
        let end = if self.is_terminal { "\r\n" } else { "\n" };
        print_message(&format!("{}{end}", escape_control(text)));
    }
}
