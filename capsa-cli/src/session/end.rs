//! How a run ended: its exit code, its last words, and both as JSON.

use std::io::{self, Write};

use capsa::{EndedBy, StopReport, StopStep, VmStatus, escape_control_line};
use serde_json::{Value, json};

use crate::envelope;
use crate::failure::{self, Failure};
use crate::print::print;
use crate::session::job::{JobEnd, JobReport};
use crate::voice::Voice;

/// Lines of a console that nobody saw, to be shown after a bad end.
const TAIL: usize = 20;

/// The end of a run.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) report: StopReport,
    /// The signal that had it ended.
    pub(crate) signal: Option<u8>,
    /// What became of the command, where there was one.
    pub(crate) job: Option<JobReport>,
}

impl Ending {
    /// The exit code: the command's own status where it ran and nothing else ended the machine.
    pub(crate) fn code(&self) -> u8 {
        let code = exit_code(&self.report, self.signal);
        if self.signal.is_some() || self.report.time_limit {
            return code;
        }
        match self.job_end() {
            Some(JobEnd::Ran(status)) => *status,
            // As for any program whose reader has gone: what was wanted was done.
            Some(JobEnd::Unheard) if code == failure::POWER_CUT => failure::OK,
            Some(JobEnd::Failed(_)) if matches!(code, failure::OK | failure::POWER_CUT) => {
                failure::NO_COMMAND
            }
            _ => code,
        }
    }

    /// All of it, for programs.
    pub(crate) fn json(&self) -> Value {
        let steps: Vec<&str> = self.report.steps.iter().map(|step| step_word(*step)).collect();
        let mut told = json!({
            "code": self.code(),
            "ended_by": ended_word(&self.report.ended_by),
            "report": self.report.to_string(),
            "time_limit": self.report.time_limit,
            "steps": steps,
        });
        if let Some(JobReport { end, output, truncated }) = &self.job {
            let status = if let JobEnd::Ran(status) = end { Some(status) } else { None };
            told["command"] = json!({"status": status, "truncated": truncated});
            if let Some(output) = output {
                told["command"]["output"] = String::from_utf8_lossy(output).into();
            }
        }
        told
    }

    fn job_end(&self) -> Option<&JobEnd> {
        self.job.as_ref().map(|job| &job.end)
    }

    /// Says it: on standard output all of it as JSON, where that is wanted, or else on standard error.
    /// `unseen` is the end of a console that was not shown.
    pub(crate) fn tell(
        &self,
        voice: &Voice,
        unseen: Option<&[u8]>,
        wants_json: bool,
    ) -> Result<(), Failure> {
        if let Some(JobEnd::Failed(why)) = self.job_end()
            && self.signal.is_none()
        {
            voice.fail(why);
            if self.report.time_limit {
                voice.fail("the time limit was reached before the command had ended");
            }
        }
        if self.job.as_ref().is_some_and(|job| job.truncated) {
            voice.fail("the command's output is longer than what is kept: it is not all there");
        }
        if wants_json {
            print(&envelope::document("run", self.json()))?;
        }
        if let Some(unseen) = unseen.filter(|_| self.is_bad() && !voice.is_json()) {
            say_tail(&String::from_utf8_lossy(unseen));
        }
        voice.event("stopped", self.json());
        let words = last_words(&self.report);
        if self.is_done() && !self.is_bad() {
            voice.detail(&words);
        } else if !self.is_bad() || self.signal.is_some() {
            voice.say(&words);
        } else if !voice.is_json() {
            voice.fail(&words);
        }
        Ok(())
    }

    /// Nobody wanted it to end this way. A command's status is its own affair.
    fn is_bad(&self) -> bool {
        let is_known = [failure::OK, failure::TIME_LIMIT].contains(&self.code());
        self.signal.is_none() && !is_known && !self.is_done()
    }

    /// The command did what was wanted of it.
    fn is_done(&self) -> bool {
        matches!(self.job_end(), Some(JobEnd::Ran(_) | JobEnd::Unheard))
    }
}

/// The exit code for an end that may have had a signal as its reason.
fn exit_code(report: &StopReport, signal: Option<u8>) -> u8 {
    match (&report.ended_by, signal) {
        _ if report.steps.contains(&StopStep::GaveUp) => failure::HYPERVISOR,
        (EndedBy::HelperLost { .. } | EndedBy::HypervisorLost { .. }, _) => failure::HYPERVISOR,
        (EndedBy::StartFailed { .. }, None) => failure::START,
        (EndedBy::GuestPanic, None) => failure::PANIC,
        (_, Some(signal)) => failure::SIGNAL + signal,
        _ if report.time_limit => failure::TIME_LIMIT,
        (EndedBy::GuestPowerOff | EndedBy::GuestReboot, None) => failure::OK,
        (EndedBy::Owner, None) => failure::POWER_CUT,
        _ => failure::HYPERVISOR,
    }
}

/// One line about it, without who says it.
fn last_words(report: &StopReport) -> String {
    match &report.ended_by {
        EndedBy::StartFailed { .. } => report.to_string(),
        _ if matches!(report.status(), VmStatus::Failed { .. }) => format!("failed: {report}"),
        _ => format!("stopped: {report}"),
    }
}

/// The last of a console that nobody saw.
fn say_tail(console: &str) {
    let lines: Vec<&str> = console.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL)..];
    let mut text = String::new();
    if !last.is_empty() {
        text.push_str("capsa: the console last said:\n");
    }
    for line in last {
        text.push_str("  | ");
        text.push_str(&escape_control_line(line.trim_end()));
        text.push('\n');
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

fn ended_word(by: &EndedBy) -> &'static str {
    match by {
        EndedBy::GuestPowerOff => "guest-power-off",
        EndedBy::GuestReboot => "guest-reboot",
        EndedBy::GuestPanic => "guest-panic",
        EndedBy::Owner => "owner",
        EndedBy::TimeLimit => "time-limit",
        EndedBy::StartFailed { .. } => "start-failed",
        EndedBy::HelperLost { .. } => "helper-lost",
        EndedBy::HypervisorLost { .. } => "hypervisor-lost",
        _ => "other",
    }
}

fn step_word(step: StopStep) -> &'static str {
    match step {
        StopStep::PowerButton => "asked",
        StopStep::Quit => "quit",
        StopStep::Killed => "killed",
        StopStep::GaveUp => "gave-up",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ended_by: EndedBy) -> StopReport {
        StopReport { ended_by, time_limit: false, steps: Vec::new(), exit: None }
    }

    #[test]
    fn exit_codes() {
        let limited = |by| StopReport { time_limit: true, ..report(by) };
        let lost = || EndedBy::HypervisorLost { reason: "it crashed".into() };
        let not_started = || EndedBy::StartFailed { reason: "no".into() };
        for (report, signal, want) in [
            (report(EndedBy::GuestPowerOff), None, 0),
            (report(EndedBy::GuestReboot), None, 0),
            (report(EndedBy::GuestPowerOff), Some(15), 143),
            (report(EndedBy::Owner), Some(2), 130),
            (report(EndedBy::Owner), Some(1), 129),
            (report(EndedBy::Owner), None, 137),
            (report(not_started()), None, 113),
            (limited(EndedBy::GuestPowerOff), None, 114),
            (limited(EndedBy::TimeLimit), None, 114),
            (limited(EndedBy::TimeLimit), Some(15), 143),
            (report(EndedBy::GuestPanic), None, 115),
            (report(lost()), None, 116),
            (report(lost()), Some(15), 116),
        ] {
            let ending = Ending { report, signal, job: None };
            assert_eq!(ending.code(), want, "{ending:?}");
            assert_eq!(ending.json()["code"], want);
        }
    }

    #[test]
    fn a_commands_status_counts_unless_something_else_ended_the_machine() {
        let ran = || JobEnd::Ran(7);
        let failed = || JobEnd::Failed("no shell".into());
        let limited = || StopReport { time_limit: true, ..report(EndedBy::GuestPowerOff) };
        for (report, signal, job, want) in [
            (report(EndedBy::GuestPowerOff), None, ran(), 7),
            // The guest did not heed the power button: the command ran all the same.
            (report(EndedBy::Owner), None, ran(), 7),
            (report(EndedBy::GuestPowerOff), Some(15), ran(), 143),
            (limited(), None, ran(), 114),
            (report(EndedBy::GuestPowerOff), None, failed(), 117),
            (report(EndedBy::Owner), None, failed(), 117),
            (report(EndedBy::GuestPanic), None, failed(), 115),
            (limited(), None, failed(), 114),
            (report(EndedBy::GuestPowerOff), None, JobEnd::Unheard, 0),
            (report(EndedBy::Owner), None, JobEnd::Unheard, 0),
            (report(EndedBy::GuestPanic), None, JobEnd::Unheard, 115),
        ] {
            let job = JobReport { end: job, output: None, truncated: false };
            let ending = Ending { report, signal, job: Some(job) };
            assert_eq!(ending.code(), want, "{ending:?}");
        }
    }

    #[test]
    fn last_words_say_what_happened_in_one_line() {
        let lost = EndedBy::HypervisorLost { reason: "qemu exited with status 1".into() };
        for (by, want) in [
            (EndedBy::GuestPowerOff, "stopped: guest powered off"),
            (lost, "failed: qemu exited with status 1"),
            (EndedBy::StartFailed { reason: "no qemu".into() }, "start failed: no qemu"),
        ] {
            assert_eq!(last_words(&report(by)), want);
        }
    }
}
