//! How a run ended: its exit code, its last words, and both as JSON.

use capsa::{EndedBy, StopReport, StopStep, VmStatus};
use serde_json::{Value, json};

use crate::failure;

/// The exit code for an end that may have had a signal as its reason.
pub(crate) fn exit_code(report: &StopReport, signal: Option<u8>) -> u8 {
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
pub(crate) fn last_words(report: &StopReport) -> String {
    match &report.ended_by {
        EndedBy::StartFailed { .. } => report.to_string(),
        _ if matches!(report.status(), VmStatus::Failed { .. }) => format!("failed: {report}"),
        _ => format!("stopped: {report}"),
    }
}

/// The same for programs.
pub(crate) fn json(report: &StopReport, code: u8) -> Value {
    let steps: Vec<&str> = report.steps.iter().map(|step| step_word(*step)).collect();
    json!({
        "code": code,
        "ended_by": ended_word(&report.ended_by),
        "report": report.to_string(),
        "time_limit": report.time_limit,
        "steps": steps,
    })
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
        StopStep::Asked => "asked",
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
        let lost = || EndedBy::HypervisorLost { what: "it crashed".into() };
        let not_started = || EndedBy::StartFailed { why: "no".into() };
        for (report, signal, want) in [
            (report(EndedBy::GuestPowerOff), None, 0),
            (report(EndedBy::GuestReboot), None, 0),
            (report(EndedBy::GuestPowerOff), Some(15), 143),
            (report(EndedBy::Owner), Some(2), 130),
            (report(EndedBy::Owner), Some(1), 129),
            (report(EndedBy::Owner), None, 137),
            (report(not_started()), None, 5),
            (limited(EndedBy::GuestPowerOff), None, 6),
            (limited(EndedBy::TimeLimit), None, 6),
            (limited(EndedBy::TimeLimit), Some(15), 143),
            (report(EndedBy::GuestPanic), None, 7),
            (report(lost()), None, 8),
            (report(lost()), Some(15), 8),
        ] {
            assert_eq!(exit_code(&report, signal), want, "{report:?} {signal:?}");
            assert_eq!(json(&report, want)["code"], want);
        }
    }

    #[test]
    fn last_words_say_what_happened_in_one_line() {
        let lost = EndedBy::HypervisorLost { what: "qemu exited with status 1".into() };
        for (by, want) in [
            (EndedBy::GuestPowerOff, "stopped: guest powered off"),
            (lost, "failed: qemu exited with status 1"),
            (EndedBy::StartFailed { why: "no qemu".into() }, "start failed: no qemu"),
        ] {
            assert_eq!(last_words(&report(by)), want);
        }
    }
}
