//! The outcome of a run: its exit code and its final report, as text and as JSON.

use std::time::Duration;

use capsa::console::escape_control_line;
use capsa::{EndedBy, StopReport, StopStep, VmStatus};
use serde_json::{Value, json};

use crate::failure::{self, CliError};
use crate::json_output;
use crate::print::{print_message, print_within};
use crate::reporter::Reporter;
use crate::session::job::{JobEnd, JobReport};

/// Lines of a console that was not shown, printed after a failure.
const TAIL_LINES: usize = 20;

/// How a run ended.
#[derive(Debug)]
pub(crate) struct RunOutcome {
    pub(crate) report: StopReport,
    /// The signal that stopped it.
    pub(crate) signal: Option<u8>,
    /// The result of the command, if there was one.
    pub(crate) job: Option<JobReport>,
}

impl RunOutcome {
    /// The exit code: the command's status if it ran, unless a signal, the time limit or a failure
    /// ended the VM.
    pub(crate) fn code(&self) -> u8 {
        let code = exit_code(&self.report, self.signal);
        if self.signal.is_some() || self.report.time_limit {
            return code;
        }
        match self.job_end() {
            Some(JobEnd::Exited(status)) => *status,
            // A closed standard output is no error, as for other programs.
            Some(JobEnd::OutputClosed) if code == failure::POWER_CUT => failure::OK,
            Some(JobEnd::Failed(_)) if matches!(code, failure::OK | failure::POWER_CUT) => {
                failure::NO_COMMAND
            }
            _ => code,
        }
    }

    /// The content of `--json` and of the control socket's final report.
    pub(crate) fn json(&self) -> Value {
        let steps: Vec<&str> = self.report.steps.iter().map(|step| step_word(*step)).collect();
        let mut outcome = json!({
            "code": self.code(),
            "ended_by": ended_by_word(&self.report.ended_by),
            "report": self.report.to_string(),
            "time_limit": self.report.time_limit,
            "steps": steps,
        });
        if let Some(JobReport { end, output, error_output, truncated }) = &self.job {
            let status = if let JobEnd::Exited(status) = end { Some(status) } else { None };
            outcome["command"] = json!({"status": status, "truncated": truncated});
            if let Some(output) = output {
                outcome["command"]["output"] = String::from_utf8_lossy(output).into();
            }
            if let Some(output) = error_output {
                outcome["command"]["error_output"] = String::from_utf8_lossy(output).into();
            }
        }
        outcome
    }

    fn job_end(&self) -> Option<&JobEnd> {
        self.job.as_ref().map(|job| &job.end)
    }

    /// Prints the outcome on standard error, and as JSON on standard output if `json` has the time for which
    /// standard output may accept nothing. `console_tail` is the end of a console that was not shown.
    pub(crate) fn report(
        &self,
        reporter: &Reporter,
        console_tail: Option<&[u8]>,
        json: Option<Option<Duration>>,
    ) -> Result<(), CliError> {
        if let Some(JobEnd::Failed(reason)) = self.job_end()
            && self.signal.is_none()
        {
            reporter.error(reason);
            if self.report.time_limit {
                reporter.error("the time limit was reached before the command finished");
            }
        }
        if self.job.as_ref().is_some_and(|job| job.truncated) {
            reporter.error("the command's output is incomplete: it exceeds what capsa keeps");
        }
        if let Some(stall) = json
            && !print_within(&json_output::document("run", self.json()), stall)?
        {
            reporter
                .warn("the JSON report is not written: standard output accepted none for too long");
        }
        let needs_tail = self.is_failure() || self.code() == failure::TIME_LIMIT;
        if let Some(tail) = console_tail.filter(|_| needs_tail && !reporter.is_json()) {
            print_tail(&String::from_utf8_lossy(tail));
        }
        reporter.event("stopped", self.json());
        let line = final_line(&self.report);
        if self.command_ran() && !self.is_failure() {
            reporter.detail(&line);
        } else if !self.is_failure() || self.signal.is_some() {
            reporter.info(&line);
        } else if !reporter.is_json() {
            reporter.error(&line);
        }
        Ok(())
    }

    /// Whether the VM failed. A command's own exit status does not count.
    pub(crate) fn is_failure(&self) -> bool {
        let is_expected = [failure::OK, failure::TIME_LIMIT].contains(&self.code());
        self.signal.is_none() && !is_expected && !self.command_ran()
    }

    /// Whether the command ran to its end, or until standard output was closed.
    fn command_ran(&self) -> bool {
        matches!(self.job_end(), Some(JobEnd::Exited(_) | JobEnd::OutputClosed))
    }
}

/// The exit code of a run that a signal may have stopped.
fn exit_code(report: &StopReport, signal: Option<u8>) -> u8 {
    match (&report.ended_by, signal) {
        _ if report.steps.contains(&StopStep::GaveUp) => failure::HYPERVISOR,
        (EndedBy::HelperLost { .. } | EndedBy::HypervisorLost { .. }, _) => failure::HYPERVISOR,
        (EndedBy::StartFailed { .. }, None) if !report.time_limit => failure::START,
        (EndedBy::GuestPanic, None) => failure::PANIC,
        (_, Some(signal)) => failure::SIGNAL + signal,
        _ if report.time_limit => failure::TIME_LIMIT,
        (EndedBy::GuestPowerOff | EndedBy::GuestReboot, None) => failure::OK,
        (EndedBy::Owner, None) => failure::POWER_CUT,
        _ => failure::HYPERVISOR,
    }
}

/// The last line that a run prints, without the `capsa: ` prefix.
fn final_line(report: &StopReport) -> String {
    match &report.ended_by {
        EndedBy::StartFailed { .. } => report.to_string(),
        _ if matches!(report.status(), VmStatus::Failed { .. }) => format!("failed: {report}"),
        _ => format!("stopped: {report}"),
    }
}

/// Prints the last lines of a console that was not shown.
fn print_tail(console: &str) {
    let lines: Vec<&str> = console.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    let mut text = String::new();
    if !last.is_empty() {
        text.push_str("capsa: last console output:\n");
    }
    for line in last {
        text.push_str("  | ");
        text.push_str(&escape_control_line(line.trim_end()));
        text.push('\n');
    }
    print_message(&text);
}

fn ended_by_word(by: &EndedBy) -> &'static str {
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
        StopStep::PowerButton => "power-button",
        StopStep::Quit => "quit",
        StopStep::Killed => "killed",
        StopStep::GaveUp => "gave-up",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa::StartError;

    fn report(ended_by: EndedBy) -> StopReport {
        StopReport::new(ended_by)
    }

    fn limited(ended_by: EndedBy) -> StopReport {
        let mut report = report(ended_by);
        report.time_limit = true;
        report
    }

    fn start_failed(reason: &str) -> EndedBy {
        EndedBy::StartFailed { error: StartError::Ended { how: reason.into() } }
    }

    #[test]
    fn exit_code_of_each_end() {
        let lost = || EndedBy::HypervisorLost { reason: "qemu crashed".into() };
        let not_started = || start_failed("no");
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
            let outcome = RunOutcome { report, signal, job: None };
            assert_eq!(outcome.code(), want, "{outcome:?}");
            assert_eq!(outcome.json()["code"], want);
        }
    }

    #[test]
    fn exit_code_is_command_status_unless_vm_failed() {
        let exited = || JobEnd::Exited(7);
        let failed = || JobEnd::Failed("no shell".into());
        for (report, signal, job, want) in [
            (report(EndedBy::GuestPowerOff), None, exited(), 7),
            // The guest ignored the power button after the command.
            (report(EndedBy::Owner), None, exited(), 7),
            (report(EndedBy::GuestPowerOff), Some(15), exited(), 143),
            (limited(EndedBy::GuestPowerOff), None, exited(), 114),
            (report(EndedBy::GuestPowerOff), None, failed(), 117),
            (report(EndedBy::Owner), None, failed(), 117),
            (report(EndedBy::GuestPanic), None, failed(), 115),
            (limited(EndedBy::GuestPowerOff), None, failed(), 114),
            (report(EndedBy::GuestPowerOff), None, JobEnd::OutputClosed, 0),
            (report(EndedBy::Owner), None, JobEnd::OutputClosed, 0),
            (report(EndedBy::GuestPanic), None, JobEnd::OutputClosed, 115),
        ] {
            let job = JobReport { end: job, output: None, error_output: None, truncated: false };
            let outcome = RunOutcome { report, signal, job: Some(job) };
            assert_eq!(outcome.code(), want, "{outcome:?}");
        }
    }

    #[test]
    fn final_line_names_the_reason() {
        let lost = EndedBy::HypervisorLost { reason: "qemu exited with status 1".into() };
        for (by, want) in [
            (EndedBy::GuestPowerOff, "stopped: guest powered off"),
            (lost, "failed: qemu exited with status 1"),
            (start_failed("no qemu"), "start failed: no qemu"),
        ] {
            assert_eq!(final_line(&report(by)), want);
        }
    }
}
