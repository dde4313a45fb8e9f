//! What went wrong, as the command says it, and the exit codes.
//!
//! ```text
//! capsa: cannot run this machine: the configuration is invalid
//!   kernel: /nope does not exist
//!     hint: check the path
//! ```
//!
//! With `--json` the same as one object, see the manual.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use capsa::{Error, Violation, escape_control};
use serde_json::{Value, json};

use crate::json_output;

/// The machine ended by itself, or because it was asked to.
pub(crate) const OK: u8 = 0;
/// The command line makes no sense.
pub(crate) const USAGE: u8 = 2;
/// What was asked for cannot be had. From here on they are ones that the commands people run in
/// guests hardly use: those of pytest, curl and grep are below, a shell's and timeout(1)'s above.
pub(crate) const CONFIG: u8 = 111;
/// No hypervisor can be used here.
pub(crate) const NO_BACKEND: u8 = 112;
/// The machine could not be started.
pub(crate) const START: u8 = 113;
/// The machine ran into its time limit.
pub(crate) const TIME_LIMIT: u8 = 114;
/// The guest's kernel panicked.
pub(crate) const PANIC: u8 = 115;
/// The hypervisor, or a helper of it, failed.
pub(crate) const HYPERVISOR: u8 = 116;
/// The command that was to be run in the guest was not, or did not tell its status.
pub(crate) const NO_COMMAND: u8 = 117;
/// There is no machine of that name, or it cannot do that.
pub(crate) const NO_VM: u8 = 118;
/// Standard output could not be written. That nobody reads it is no error.
pub(crate) const OUTPUT: u8 = 119;
/// The machine's power was cut: 128 and SIGKILL, as a shell says of a program that was killed.
pub(crate) const POWER_CUT: u8 = 137;
/// What is added to the number of the signal that ended it.
pub(crate) const SIGNAL: u8 = 128;

/// The exit codes for help.
pub(crate) const EXIT_CODES: &[(&str, &str)] = &[
    ("0", "the guest powered off or rebooted, by itself or because it was asked to"),
    ("2", "the command line makes no sense"),
    ("111", "the configuration is invalid, or no hypervisor here can do what it asks"),
    ("112", "no hypervisor can be used here"),
    ("113", "the machine could not be started"),
    ("114", "the time limit was reached"),
    ("115", "the guest's kernel panicked"),
    ("116", "the hypervisor, or a helper of it, failed"),
    ("117", "the command behind -- could not be run in the guest, or did not tell its status"),
    ("118", "no machine of that name runs, or it cannot be talked to"),
    ("119", "standard output could not be written: a full disk"),
    ("any", "with -- COMMAND: the command's own status, once it has run"),
    ("128+N", "signal N made capsa end the machine: 129 SIGHUP, 130 SIGINT, 143 SIGTERM"),
    ("137", "the machine's power was cut: it was killed, or did not power off when asked"),
];

/// Why the command ends with another code than 0.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// One line.
    what: String,
    details: Vec<Detail>,
}

/// A part of a file: the line, and the characters that are marked below it.
#[derive(Debug)]
pub(crate) struct SourceSpan {
    pub(crate) file: String,
    /// Counted from 1.
    pub(crate) line: usize,
    /// In characters, counted from 1.
    pub(crate) column: usize,
    /// The line, or the part of a long line around the span.
    pub(crate) text: String,
    /// The characters of that text that are meant.
    pub(crate) marked: Range<usize>,
}

#[derive(Debug)]
struct Detail {
    span: Option<SourceSpan>,
    /// `field: reason`, or nothing where the first line says it all.
    reason: Option<String>,
    hint: Option<String>,
}

impl Failure {
    /// A failure with this exit code and first line.
    pub(crate) fn new(code: u8, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), details: Vec::new() }
    }

    /// A mistake on the command line.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(USAGE, what)
    }

    /// With what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.details.push(Detail { span: None, reason: None, hint: Some(hint.into()) });
        self
    }

    /// With one of several problems, and what to do about it.
    pub(crate) fn problem(mut self, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        let (reason, hint) = (Some(reason.into()), Some(hint.into()));
        self.details.push(Detail { span: None, reason, hint });
        self
    }

    /// With one of several problems, at its source span.
    pub(crate) fn problem_at(
        mut self,
        span: SourceSpan,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (reason, hint) = (Some(reason.into()), Some(hint.into()));
        self.details.push(Detail { span: Some(span), reason, hint });
        self
    }

    /// With one of several problems, at its source span where it has one.
    pub(crate) fn problem_in(self, span: Option<SourceSpan>, reason: String, hint: String) -> Self {
        match span {
            Some(span) => self.problem_at(span, reason, hint),
            None => self.problem(reason, hint),
        }
    }

    /// These problems, then another's, as those of a config file: in the order of its lines.
    pub(crate) fn of_file(path: &Path, some: Option<Self>, others: Option<Self>) -> Option<Self> {
        let both: Vec<Self> = some.into_iter().chain(others).collect();
        let code = both.first()?.code;
        let mut details: Vec<Detail> = both.into_iter().flat_map(|one| one.details).collect();
        details.sort_by_key(|detail| {
            detail.span.as_ref().map_or((usize::MAX, 0), |span| (span.line, span.column))
        });
        Some(Self { code, what: cannot_use(path, details.len()), details })
    }

    /// For programs.
    pub(crate) fn json(&self) -> String {
        let (problems, hints): (Vec<_>, Vec<_>) =
            self.details.iter().partition(|detail| detail.reason.is_some());
        let problems: Vec<Value> = problems.into_iter().map(Detail::json).collect();
        let hint = hints.into_iter().find_map(|detail| detail.hint.as_deref());
        let Self { code, what, .. } = self;
        let content = json!({"code": code, "what": what, "hint": hint, "problems": problems});
        json_output::line("error", content)
    }

    /// The library's refusal to build a machine. `name` gives the user's name of a field, and its
    /// source span in a config file; what `is_said` of a field is left out.
    pub(crate) fn from_build(
        error: &Error,
        name: impl Fn(&str) -> (String, Option<SourceSpan>),
        is_said: impl Fn(&str) -> bool,
    ) -> Self {
        const WHAT: &str = "cannot run this machine";
        let violations = error.violations();
        if !violations.is_empty() {
            let why = match error {
                Error::UnsupportedFeature(_) => "the hypervisor cannot do all that is asked",
                Error::MissingConfig(_) => "something is missing",
                _ => "the configuration is invalid",
            };
            let failure = Self::new(CONFIG, format!("{WHAT}: {why}"));
            let unsaid = violations.iter().filter(|violation| !is_said(&violation.field));
            return unsaid.fold(failure, |failure, violation| {
                let Violation { field, backend, reason, remedy, .. } = violation;
                let by = backend.map(|backend| format!(" [{backend}]")).unwrap_or_default();
                let (name, span) = name(field);
                failure.problem_in(span, format!("{name}: {reason}{by}"), remedy.clone())
            });
        }
        match error {
            Error::NoBackendAvailable { rejected } => {
                let mut failure =
                    Self::new(NO_BACKEND, format!("{WHAT}: no hypervisor can be used here"));
                for rejection in rejected {
                    for reason in &rejection.reasons {
                        let what = format!("{}: {}", rejection.backend, reason.what);
                        failure = failure.problem(what, &reason.remedy);
                    }
                }
                failure
            }
            Error::BackendUnavailable { name: backend, reasons } => {
                let what = format!("{WHAT}: the backend {backend:?} cannot be used here");
                reasons.iter().fold(Self::new(NO_BACKEND, what), |failure, reason| {
                    let what = format!("{backend}: {}", reason.what);
                    failure.problem_in(name("backend").1, what, reason.remedy.clone())
                })
            }
            Error::UnsupportedGuestOs(_) => Self::new(CONFIG, format!("{WHAT}: {error}")),
            other => Self::new(START, format!("{WHAT}: {other}")),
        }
    }
}

impl fmt::Display for Failure {
    /// Every line, the last one without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "capsa: {}", escape_control(&self.what))?;
        for Detail { span, reason, hint } in &self.details {
            if let Some(reason) = reason {
                f.write_str("\n  ")?;
                if let Some(SourceSpan { file, line, column, .. }) = span {
                    write!(f, "{}:{line}:{column}: ", escape_control(file))?;
                }
                f.write_str(&escape_control(reason))?;
            }
            if let Some(span) = span {
                span.fmt(f)?;
            }
            if let Some(hint) = hint {
                write!(f, "\n    hint: {}", escape_control(hint))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for SourceSpan {
    /// The line, and marks under what is meant.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, text, marked, .. } = self;
        let gutter = " ".repeat(line.to_string().len());
        let (before, marks) = (" ".repeat(marked.start), "^".repeat(marked.len()));
        write!(f, "\n    {line} | {}\n    {gutter} | {before}{marks}", escape_control(text))
    }
}

impl Detail {
    fn json(&self) -> Value {
        let mut object = json!({"what": self.reason, "hint": self.hint});
        if let Some(SourceSpan { file, line, column, .. }) = &self.span {
            object["file"] = file.as_str().into();
            object["line"] = (*line).into();
            object["column"] = (*column).into();
        }
        object
    }
}

/// The first line about a config file with so many mistakes.
pub(crate) fn cannot_use(file: &Path, mistakes: usize) -> String {
    let file = file.display();
    match mistakes {
        1 => format!("cannot use {file}: one mistake"),
        n => format!("cannot use {file}: {n} mistakes"),
    }
}

/// What to do about a start that failed for what came between it and the check, in the words of whoever
/// failed.
pub(crate) fn hint_of_start(why: &str) -> Option<&'static str> {
    const IN_USE: &str =
        "another machine has the disk: end that one (`capsa ps`), or copy the image";
    const HINTS: &[(&str, &str)] = &[
        ("Failed to get \"", IN_USE),
        ("already locked", IN_USE),
        ("run directory", "`capsa doctor` tells what keeps it from being made"),
        ("(TMPDIR)", "set TMPDIR to a directory with room for what the guest writes"),
        ("Could not open temporary file", "set TMPDIR to a directory that is there"),
        ("annot allocate memory", "give it less: --memory"),
    ];
    HINTS.iter().find(|(words, _)| why.contains(words)).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa::{Capsa, LinuxBootConfig};

    #[test]
    fn no_text_reaches_the_terminal_as_an_order() {
        let failure = Failure::new(START, "said \u{1b}[2J").problem("and\u{7}\nmore", "\r!");
        let want = "capsa: said \\u{1b}[2J\n  and\\u{7}\nmore\n    hint: \\r!";
        assert_eq!(failure.to_string(), want);
    }

    #[test]
    fn every_violation_gets_a_line_and_a_hint() {
        let error = Capsa::vm(LinuxBootConfig::new("/nope"))
            .backend("qemu")
            .share("/also/nope", "/w", capsa::MountMode::ReadOnly)
            .plan()
            .unwrap_err();
        let name = |field: &str| (field.replace("shares[0]", "shares.w"), None);
        let failure = Failure::from_build(&error, name, |_| false);
        let text = failure.to_string();
        assert_eq!(failure.code, CONFIG);
        assert!(text.starts_with("capsa: cannot run this machine: the configuration is invalid\n"));
        assert!(text.contains("\n  kernel: /nope does not exist\n    hint: "), "{text}");
        assert!(text.contains("\n  shares.w.host: "), "{text}");
    }

    #[test]
    fn an_unknown_backend_lists_those_there_are() {
        let error = Capsa::vm(LinuxBootConfig::new("/k")).backend("xen").plan().unwrap_err();
        let failure = Failure::from_build(&error, |field| (field.into(), None), |_| false);
        assert_eq!(failure.code, NO_BACKEND);
        assert!(failure.to_string().contains("hint: use "), "{failure}");
    }
}
