//! `capsa doctor`: whether this host can run machines, and what to do where not.

use std::fmt::Write as _;

use capsa::{BackendReport, MissingFeature, NoteLevel, ephemeral, run_dir};
use serde_json::{Value, json};

use crate::failure::{Failure, NO_BACKEND, OK};
use crate::print::print;
use crate::{envelope, list};

const RUN_DIRS: &str = "set CAPSA_RUN_DIR to a short path that is yours alone, or can be made";
const OVERLAYS: &str = "set TMPDIR to a directory with room for what guests write; until then no disk \
                        can be ephemeral";

/// How good one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Machines run, but not as one would wish.
    Poor,
    /// Something cannot be had. Another backend may make up for it.
    Bad,
}

#[derive(Debug)]
struct Finding {
    verdict: Verdict,
    about: String,
    what: String,
    remedy: Option<String>,
}

/// Checks, and prints what it found.
pub(crate) fn doctor(json: bool) -> Result<u8, Failure> {
    let reports = capsa::backends();
    let base = run_dir::base();
    let run_dirs = run_dir::check(&base).map(|()| base.display().to_string());
    let run_dirs = run_dirs.map_err(|error| error.to_string());
    let overlays = ephemeral::check().map(|dir| dir.display().to_string());
    let overlays = overlays.map_err(|error| error.to_string());
    let mut findings = vec![
        place("run directories", Verdict::Bad, &run_dirs, RUN_DIRS),
        place("throw-away disks", Verdict::Poor, &overlays, OVERLAYS),
    ];
    findings.extend(reports.iter().flat_map(of_backend));
    let usable = reports.iter().find(|report| report.availability.is_usable());
    let healthy = usable.is_some() && run_dirs.is_ok();
    if json {
        let findings: Vec<Value> = findings.iter().map(Finding::json).collect();
        let content = json!({
            "healthy": healthy,
            "backend": usable.map(|report| report.name),
            "findings": findings,
        });
        print(&envelope::document("doctor", content))?;
    } else {
        let mut out: String = findings.iter().map(Finding::text).collect();
        let _ = match usable.filter(|_| healthy) {
            Some(report) => writeln!(out, "\nMachines can run here, on {}.", report.name),
            None => writeln!(out, "\nNo machine can run here until this is mended."),
        };
        print(&out)?;
    }
    Ok(if healthy { OK } else { NO_BACKEND })
}

/// A place where machines make files: where it is, or why none can be made there.
fn place(about: &str, otherwise: Verdict, tried: &Result<String, String>, remedy: &str) -> Finding {
    match tried {
        Ok(place) => Finding::new(Verdict::Good, about, format!("in {place}"), None),
        Err(error) => Finding::new(otherwise, about, error.clone(), Some(remedy)),
    }
}

fn of_backend(report: &BackendReport) -> Vec<Finding> {
    let BackendReport { name, availability, .. } = report;
    let mut findings = Vec::new();
    if availability.is_usable() {
        let version = availability.version.map(|v| format!(" {v}")).unwrap_or_default();
        let program = availability.program.as_deref().unwrap_or("?");
        findings.push(Finding::new(Verdict::Good, name, format!("{program}{version}"), None));
        for note in &availability.warnings {
            let verdict = match note.level {
                NoteLevel::Warning => Verdict::Poor,
                NoteLevel::Info => Verdict::Good,
            };
            findings.push(Finding::new(verdict, name, note.text.clone(), None));
        }
        for MissingFeature { feature, reason } in list::missing_features(report) {
            let what = format!("no {}: {}", list::name_of(*feature), reason.what);
            findings.push(Finding::new(Verdict::Poor, name, what, Some(&reason.remedy)));
        }
    }
    for reason in &availability.blockers {
        findings.push(Finding::new(Verdict::Bad, name, reason.what.clone(), Some(&reason.remedy)));
    }
    findings
}

impl Finding {
    fn new(verdict: Verdict, about: &str, what: String, remedy: Option<&str>) -> Self {
        Self { verdict, about: about.into(), what, remedy: remedy.map(String::from) }
    }

    fn text(&self) -> String {
        let Self { verdict, about, what, remedy } = self;
        let mut text = format!("{:<8} {about}: {what}\n", verdict.word());
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "         to do: {remedy}");
        }
        text
    }

    fn json(&self) -> Value {
        json!({
            "verdict": self.verdict.word(),
            "about": self.about,
            "what": self.what,
            "remedy": self.remedy,
        })
    }
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Poor => "warning",
            Self::Bad => "problem",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bad_says_what_to_do() {
        let reports = capsa::backends();
        let tried = Err("it is open to others".to_owned());
        let mut findings = vec![place("run directories", Verdict::Bad, &tried, RUN_DIRS)];
        findings.extend(reports.iter().flat_map(of_backend));
        assert_eq!(findings[0].verdict, Verdict::Bad);
        for finding in &findings {
            assert!(finding.verdict != Verdict::Bad || finding.remedy.is_some(), "{finding:?}");
            assert!(finding.text().ends_with('\n'));
        }
        for report in &reports {
            assert!(findings.iter().any(|finding| finding.about == report.name), "{}", report.name);
        }
    }
}
