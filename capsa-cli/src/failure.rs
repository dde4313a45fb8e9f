//! The command's errors, as text and as JSON, and its exit codes.
//!
//! ```text
//! capsa: cannot run this VM: invalid configuration
//!   kernel: /nope does not exist
//!     hint: check the path
//! ```
//!
//! The first line names the operation, each problem the field, the value and what is wrong with it,
//! and each hint the remedy. With `--json` it is one object, which the manual describes. Text of
//! guests and hypervisors is escaped here.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use capsa::Error;
use capsa::backend::Violation;
use capsa::console::escape_control;
use serde_json::{Value, json};

use crate::doctor::{OPEN_FILES, RAISE_OPEN_FILES};
use crate::json_output;

/// The guest powered off or rebooted.
pub(crate) const OK: u8 = 0;
/// `capsa network explain`: the policy refuses a destination.
pub(crate) const REFUSED: u8 = 1;
/// The command line is invalid.
pub(crate) const USAGE: u8 = 2;
/// The configuration is invalid or unsupported. The codes from 111 on collide with few commands that
/// run in guests: pytest, curl and grep use lower ones, shells and timeout(1) higher ones.
pub(crate) const CONFIG: u8 = 111;
/// No backend is available on this host.
pub(crate) const NO_BACKEND: u8 = 112;
/// The VM could not be started.
pub(crate) const START: u8 = 113;
/// The time limit was reached.
pub(crate) const TIME_LIMIT: u8 = 114;
/// The guest's kernel panicked.
pub(crate) const PANIC: u8 = 115;
/// The hypervisor or a helper process failed.
pub(crate) const HYPERVISOR: u8 = 116;
/// The command did not run in the guest, or its exit status is unknown.
pub(crate) const NO_COMMAND: u8 = 117;
/// No running VM has that name, or it rejected the request.
pub(crate) const NO_VM: u8 = 118;
/// Standard output could not be written. A closed reader is no error.
pub(crate) const OUTPUT: u8 = 119;
/// The VM was killed: 128 + SIGKILL, as a shell reports a program that was killed.
pub(crate) const POWER_CUT: u8 = 137;
/// Added to the number of the signal that made capsa stop the VM.
pub(crate) const SIGNAL: u8 = 128;

/// The exit codes for help.
pub(crate) const EXIT_CODES: &[(&str, &str)] = &[
    ("0", "the guest powered off or rebooted, on its own or on request"),
    ("1", "of `network explain`: the policy refuses a destination"),
    ("2", "invalid command line"),
    ("111", "invalid configuration, or the backend does not support it"),
    ("112", "no backend is available on this host"),
    ("113", "the VM could not be started"),
    ("114", "the time limit was reached"),
    ("115", "the guest's kernel panicked"),
    ("116", "the hypervisor or a helper process failed"),
    ("117", "with -- COMMAND: the command did not run, or its exit status is unknown"),
    ("118", "no running VM has that name, or it cannot be controlled"),
    ("119", "standard output could not be written, e.g. the disk is full"),
    ("any", "with -- COMMAND: the command's own exit status"),
    ("128+N", "signal N made capsa stop the VM: 129 SIGHUP, 130 SIGINT, 143 SIGTERM"),
    ("137", "the VM was killed, or did not power off within the grace period"),
];

/// An error that ends the command with an exit code other than 0.
#[derive(Debug)]
pub(crate) struct CliError {
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
    /// `field: reason`; `None` where the first line has it.
    reason: Option<String>,
    hint: Option<String>,
}

impl CliError {
    /// A failure with this exit code and first line.
    pub(crate) fn new(code: u8, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), details: Vec::new() }
    }

    /// An error in the command line.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(USAGE, what)
    }

    /// Adds the remedy.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.details.push(Detail { span: None, reason: None, hint: Some(hint.into()) });
        self
    }

    /// Adds a problem and its remedy.
    pub(crate) fn problem(mut self, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        let (reason, hint) = (Some(reason.into()), Some(hint.into()));
        self.details.push(Detail { span: None, reason, hint });
        self
    }

    /// Adds a problem at a source span.
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

    /// Adds a problem, at its source span if it has one.
    pub(crate) fn problem_in(self, span: Option<SourceSpan>, reason: String, hint: String) -> Self {
        match span {
            Some(span) => self.problem_at(span, reason, hint),
            None => self.problem(reason, hint),
        }
    }

    /// One failure for a config file, with the problems of both in the order of the file's lines.
    pub(crate) fn of_file(path: &Path, first: Option<Self>, second: Option<Self>) -> Option<Self> {
        let both: Vec<Self> = first.into_iter().chain(second).collect();
        let code = both.first()?.code;
        let mut details: Vec<Detail> = both.into_iter().flat_map(|one| one.details).collect();
        details.sort_by_key(|detail| {
            detail.span.as_ref().map_or((usize::MAX, 0), |span| (span.line, span.column))
        });
        Some(Self { code, what: invalid_file(path, details.len()), details })
    }

    /// The failure as JSON.
    pub(crate) fn json(&self) -> String {
        let (problems, hints): (Vec<_>, Vec<_>) =
            self.details.iter().partition(|detail| detail.reason.is_some());
        let problems: Vec<Value> = problems.into_iter().map(Detail::json).collect();
        let hint = hints.into_iter().find_map(|detail| detail.hint.as_deref());
        let Self { code, what, .. } = self;
        let content = json!({"code": code, "what": what, "hint": hint, "problems": problems});
        json_output::line("error", content)
    }

    /// The library's error for a VM that it does not build. `name` returns the user's name of a field
    /// and its source span. Violations of a field for which `is_reported` are left out.
    pub(crate) fn from_build(
        error: &Error,
        name: impl Fn(&str) -> (String, Option<SourceSpan>),
        is_reported: impl Fn(&str) -> bool,
    ) -> Self {
        const WHAT: &str = "cannot run this VM";
        let violations = error.violations();
        if !violations.is_empty() {
            let reason = match error {
                Error::UnsupportedFeature(_) => "unsupported configuration",
                Error::MissingConfig(_) => "incomplete configuration",
                _ => "invalid configuration",
            };
            let failure = Self::new(CONFIG, format!("{WHAT}: {reason}"));
            let unreported = violations.iter().filter(|violation| !is_reported(&violation.field));
            return unreported.fold(failure, |failure, violation| {
                let Violation { field, backend, reason, remedy, .. } = violation;
                let by = backend.map(|backend| format!(" [{backend}]")).unwrap_or_default();
                let (name, span) = name(field);
                failure.problem_in(span, format!("{name}: {reason}{by}"), remedy.clone())
            });
        }
        match error {
            Error::NoBackendAvailable { rejected } => {
                let mut failure = Self::new(NO_BACKEND, format!("{WHAT}: no backend is available"));
                for rejection in rejected {
                    for reason in &rejection.reasons {
                        let what = format!("{}: {}", rejection.backend, reason.what);
                        failure = failure.problem(what, &reason.remedy);
                    }
                }
                failure
            }
            Error::BackendUnavailable { name: backend, reasons } => {
                let what = format!("{WHAT}: backend {backend:?} is unavailable");
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

impl fmt::Display for CliError {
    /// All lines, without a line feed after the last one.
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
    /// The line, with marks below the span.
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

/// The first line of a failure for a config file with this many errors.
pub(crate) fn invalid_file(file: &Path, errors: usize) -> String {
    let file = file.display();
    match errors {
        1 => format!("invalid config file {file}: 1 error"),
        n => format!("invalid config file {file}: {n} errors"),
    }
}

/// The likely cause of a failed start on a host with this limit of open files. Hypervisors describe it in
/// many ways, so it is named before their text.
pub(crate) fn cause_of_start(open_files_limit: u64) -> Option<String> {
    (open_files_limit < OPEN_FILES).then(|| {
        format!("the limit of open files is {open_files_limit}, a likely cause: {RAISE_OPEN_FILES}")
    })
}

/// The remedy for a guest that failed, found by the messages of its kernel.
pub(crate) fn hint_of_console(console: &[u8]) -> Option<&'static str> {
    const TOO_LITTLE_MEMORY: [&[u8]; 4] = [
        b"Initramfs unpacking failed: write error",
        b"System is deadlocked on memory",
        b"Out of memory and no killable processes",
        b"compulsory panic_on_oom",
    ];
    let contains = |text: &&[u8]| console.windows(text.len()).any(|window| window == *text);
    TOO_LITTLE_MEMORY.iter().any(contains).then_some(
        "the VM has too little memory for this kernel and initrd, or for its programs: --memory",
    )
}

/// The remedy for a failed start, found by a fragment of the error text of the hypervisor, helper or
/// library. The check before the start finds most of these; here they have appeared since.
pub(crate) fn hint_of_start(reason: &str) -> Option<&'static str> {
    const IN_USE: &str =
        "another VM uses the disk: stop that VM (see `capsa ps`), or copy the image";
    const HINTS: &[(&str, &str)] = &[
        ("Failed to get \"", IN_USE),
        ("already locked", IN_USE),
        ("run directory", "`capsa doctor` checks the run directory"),
        ("(TMPDIR)", "set TMPDIR to a directory with free space for the guest's writes"),
        ("Could not open temporary file", "set TMPDIR to an existing directory"),
        ("annot allocate memory", "give the VM less memory: --memory"),
    ];
    HINTS.iter().find(|(fragment, _)| reason.contains(fragment)).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa::{Capsa, LinuxBootConfig};

    #[test]
    fn failure_escapes_control_characters() {
        let failure = CliError::new(START, "got \u{1b}[2J").problem("and\u{7}\nmore", "\r!");
        let want = "capsa: got \\u{1b}[2J\n  and\\u{7}\nmore\n    hint: \\r!";
        assert_eq!(failure.to_string(), want);
    }

    #[test]
    fn from_build_has_line_and_hint_per_violation() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("missing-kernel");
        let error = Capsa::vm(LinuxBootConfig::new(&kernel))
            .backend("qemu")
            .share(dir.path().join("missing-share"), "/w", capsa::MountMode::ReadOnly)
            .plan()
            .unwrap_err();
        let name = |field: &str| (field.replace("shares[0]", "shares.w"), None);
        let failure = CliError::from_build(&error, name, |_| false);
        let text = failure.to_string();
        assert_eq!(failure.code, CONFIG);
        assert!(text.starts_with("capsa: cannot run this VM: invalid configuration\n"));
        let line = format!("\n  kernel: {} does not exist\n    hint: ", kernel.display());
        assert!(text.contains(&line), "{text}");
        assert!(text.contains("\n  shares.w.host: "), "{text}");
    }

    #[test]
    fn cause_of_start_is_small_limit_only() {
        assert_eq!(cause_of_start(1024), None);
        let cause = cause_of_start(64).unwrap();
        assert!(cause.starts_with("the limit of open files is 64, "), "{cause}");
    }

    #[test]
    fn hint_of_console_names_memory() {
        let panic = b"[ 1.2] Kernel panic - not syncing: System is deadlocked on memory\r\n";
        assert!(hint_of_console(panic).unwrap().contains("--memory"));
        assert_eq!(hint_of_console(b"[ 1.2] Kernel panic - not syncing: VFS\r\n"), None);
    }

    #[test]
    fn unknown_backend_hint_lists_backends() {
        let error = Capsa::vm(LinuxBootConfig::new("/k")).backend("xen").plan().unwrap_err();
        let failure = CliError::from_build(&error, |field| (field.into(), None), |_| false);
        assert_eq!(failure.code, NO_BACKEND);
        assert!(failure.to_string().contains("hint: use "), "{failure}");
    }
}
