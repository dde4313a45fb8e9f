//! `capsa doctor`: checks whether this host can run VMs, and prints what to do if it cannot.

use std::fmt::Write as _;

use capsa::backend::{BackendReport, MissingFeature, NoteLevel};
use capsa_io::{ephemeral, facts, run_dir};
use serde_json::{Value, json};

use crate::failure::{CliError, NO_BACKEND, OK};
use crate::print::print;
use crate::{backends, json_output};

const RUN_DIRS: &str = "set CAPSA_RUN_DIR to a short path that only this user can write, or to a new one in a directory \
     that exists";
const OVERLAYS: &str = "set TMPDIR to a directory with free space; until then ephemeral disks are \
                        unavailable";

/// With fewer, hypervisors and virtiofsd fail with other words: cloud-hypervisor (v53) says that a channel
/// is closed.
pub(crate) const OPEN_FILES: u64 = 256;
pub(crate) const RAISE_OPEN_FILES: &str = "raise it before starting VMs: ulimit -n 1024";

/// The file is that of [`facts::SHARED_HUGE_PAGES`].
const SHARED_MEMORY: &str = "VMs of cloud-hypervisor with shares or NAT start faster with: \
     echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// How severe a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    Ok,
    /// VMs run, with less speed or without a feature.
    Warning,
    /// Something is unusable: a backend, of which there may be others, or the run directories.
    Problem,
}

#[derive(Debug)]
struct Finding {
    severity: Severity,
    about: String,
    what: String,
    remedy: Option<String>,
}

/// Checks the host and prints the findings.
pub(crate) fn doctor(json: bool) -> Result<u8, CliError> {
    let reports = capsa::backend::backends();
    let base = run_dir::base();
    let run_dirs = run_dir::check(&base).map(|()| base.display().to_string());
    let run_dirs = run_dirs.map_err(|error| error.to_string());
    let overlays = ephemeral::check().map(|dir| dir.display().to_string());
    let overlays = overlays.map_err(|error| error.to_string());
    let mut findings = vec![
        directory("run directories", Severity::Problem, &run_dirs, RUN_DIRS),
        directory("ephemeral disks", Severity::Warning, &overlays, OVERLAYS),
    ];
    findings.insert(0, open_files(facts::open_files_limits().0));
    findings.extend(facts::shared_huge_pages().map(|mode| huge_pages(&mode)));
    findings.extend(reports.iter().filter(|report| report.supports_os).flat_map(of_backend));
    let usable = reports.iter().find(|report| report.availability.is_usable());
    let healthy = usable.is_some() && run_dirs.is_ok();
    if json {
        let findings: Vec<Value> = findings.iter().map(Finding::json).collect();
        let content = json!({
            "healthy": healthy,
            "backend": usable.map(|report| report.name),
            "findings": findings,
        });
        print(&json_output::document("doctor", content))?;
    } else {
        let mut out: String = findings.iter().map(Finding::text).collect();
        let _ = match usable.filter(|_| healthy) {
            Some(report) => writeln!(out, "\nThis host can run VMs with {}.", report.name),
            None => writeln!(out, "\nFix the problems above before running VMs."),
        };
        print(&out)?;
    }
    Ok(if healthy { OK } else { NO_BACKEND })
}

/// The limit of open files of this process and of those that it starts.
fn open_files(limit: u64) -> Finding {
    let severity = if limit < OPEN_FILES { Severity::Warning } else { Severity::Ok };
    let remedy = (severity != Severity::Ok).then_some(RAISE_OPEN_FILES);
    Finding::new(severity, "open files", format!("the limit is {limit}"), remedy)
}

/// Whether the memory of VMs gets huge pages if helper processes share it.
fn huge_pages(mode: &str) -> Finding {
    let is_off = matches!(mode, "never" | "deny");
    let what = format!("shared memory has huge pages: {mode}");
    let (severity, remedy) = match is_off {
        true => (Severity::Warning, Some(SHARED_MEMORY)),
        false => (Severity::Ok, None),
    };
    Finding::new(severity, "memory", what, remedy)
}

/// A directory in which VMs create files: its path, or why they cannot.
fn directory(
    about: &str,
    on_error: Severity,
    tried: &Result<String, String>,
    remedy: &str,
) -> Finding {
    match tried {
        Ok(path) => Finding::new(Severity::Ok, about, format!("in {path}"), None),
        Err(error) => Finding::new(on_error, about, error.clone(), Some(remedy)),
    }
}

fn of_backend(report: &BackendReport) -> Vec<Finding> {
    let BackendReport { name, availability, .. } = report;
    let mut findings = Vec::new();
    if availability.is_usable() {
        let version = availability.version.map(|v| format!(" {v}")).unwrap_or_default();
        let program = availability.program.as_deref().unwrap_or("?");
        findings.push(Finding::new(Severity::Ok, name, format!("{program}{version}"), None));
        for note in &availability.warnings {
            let severity = match note.level {
                NoteLevel::Warning => Severity::Warning,
                NoteLevel::Info => Severity::Ok,
            };
            findings.push(Finding::new(severity, name, note.text.clone(), None));
        }
        for MissingFeature { feature, reason, .. } in backends::missing_features(report) {
            let what = format!("no {}: {}", backends::name_of(*feature), reason.what);
            findings.push(Finding::new(Severity::Warning, name, what, Some(&reason.remedy)));
        }
    }
    for reason in &availability.blockers {
        findings.push(Finding::new(
            Severity::Problem,
            name,
            reason.what.clone(),
            Some(&reason.remedy),
        ));
    }
    findings
}

impl Finding {
    fn new(severity: Severity, about: &str, what: String, remedy: Option<&str>) -> Self {
        Self { severity, about: about.into(), what, remedy: remedy.map(String::from) }
    }

    fn text(&self) -> String {
        let Self { severity, about, what, remedy } = self;
        let mut text = format!("{:<8} {about}: {what}\n", severity.word());
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "         hint: {remedy}");
        }
        text
    }

    fn json(&self) -> Value {
        json!({
            "severity": self.severity.word(),
            "about": self.about,
            "what": self.what,
            "remedy": self.remedy,
        })
    }
}

impl Severity {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_limit_too_small_is_warning() {
        assert_eq!(open_files(1024).severity, Severity::Ok);
        let small = open_files(64);
        assert_eq!(small.severity, Severity::Warning);
        assert!(small.text().contains("ulimit -n"), "{}", small.text());
    }

    #[test]
    fn huge_pages_off_is_warning_with_command() {
        for mode in ["always", "within_size", "advise", "force"] {
            assert_eq!(huge_pages(mode).severity, Severity::Ok, "{mode}");
        }
        for mode in ["never", "deny"] {
            let finding = huge_pages(mode);
            assert_eq!(finding.severity, Severity::Warning);
            assert!(finding.text().contains(facts::SHARED_HUGE_PAGES), "{}", finding.text());
        }
    }

    #[test]
    fn problems_have_remedies() {
        let reports = capsa::backend::backends();
        let tried = Err("it can be written by other users".to_owned());
        let mut findings = vec![directory("run directories", Severity::Problem, &tried, RUN_DIRS)];
        findings.extend(reports.iter().flat_map(of_backend));
        assert_eq!(findings[0].severity, Severity::Problem);
        for finding in &findings {
            assert!(
                finding.severity != Severity::Problem || finding.remedy.is_some(),
                "{finding:?}"
            );
            assert!(finding.text().ends_with('\n'));
        }
        for report in reports.iter().filter(|report| report.supports_os) {
            assert!(findings.iter().any(|finding| finding.about == report.name), "{}", report.name);
        }
    }
}
