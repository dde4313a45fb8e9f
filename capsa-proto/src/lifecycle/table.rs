//! The lifecycle as data: a table of phases and a table of transitions.

use super::Timing;
use core::time::Duration;

/// A state of the lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Planned; no process runs.
    Created,
    /// Helpers start, one after the other.
    StartingHelpers,
    /// The hypervisor starts; its control channel is not connected yet.
    StartingHypervisor,
    /// The boot messages are sent, one after the other.
    Booting,
    /// The guest was started.
    Running,
    /// The guest was asked to power off.
    ShutdownRequested,
    /// The guest is off; the hypervisor has not exited yet.
    WaitingForExit,
    /// The hypervisor received the quit command.
    QuitRequested,
    /// The hypervisor was sent SIGKILL.
    KillingHypervisor,
    /// The hypervisor has exited; helpers exit by themselves or after SIGTERM.
    StoppingHelpers,
    /// Helpers were sent SIGKILL.
    KillingHelpers,
    /// The lifecycle has ended.
    Ended,
}

/// The cause of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trigger {
    /// The owner starts the VM.
    Start,
    /// The owner stops the VM.
    Stop,
    /// The owner kills the VM.
    Kill,
    /// A helper is ready, and another one must start.
    NextHelper,
    /// All helpers are ready.
    HelpersReady,
    /// The hypervisor's control channel is connected.
    ControlReady,
    /// A boot message succeeded, and another one must be sent.
    NextMessage,
    /// All boot messages succeeded.
    Booted,
    /// The hypervisor rejected a boot message.
    BootRejected,
    /// A program could not be started.
    SpawnFailed,
    /// A helper exited, or the control channel failed, while the VM needed it.
    DependencyLost,
    /// The guest powered off.
    GuestPoweredOff,
    /// The guest reset and its reboot policy ends the VM, or it panicked, or a vCPU failed.
    GuestCrashed,
    /// The VM reached its time limit.
    TimeLimit,
    /// The phase reached its limit.
    Timeout,
    /// The hypervisor exited.
    HypervisorExited,
    /// All processes have exited.
    AllExited,
}

/// The action on entry to a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryAction {
    /// Nothing.
    Nothing,
    /// Start the next helper.
    SpawnHelper,
    /// Start the hypervisor.
    SpawnHypervisor,
    /// Send the next boot message.
    SendBoot,
    /// Ask the guest to power off.
    RequestShutdown,
    /// Send the quit command to the hypervisor.
    Quit,
    /// Send SIGKILL to the hypervisor.
    KillHypervisor,
    /// Send SIGTERM to the helpers that do not exit with the hypervisor.
    TerminateHelpers,
    /// Send SIGKILL to the helpers.
    KillHelpers,
    /// Release all resources.
    Release,
}

/// The status of a VM in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusKind {
    /// [`super::VmStatus::Created`].
    Created,
    /// [`super::VmStatus::Starting`].
    Starting,
    /// [`super::VmStatus::Running`].
    Running,
    /// [`super::VmStatus::Stopping`].
    Stopping,
    /// [`super::VmStatus::Stopped`] or [`super::VmStatus::Failed`].
    Terminal,
}

/// The time limit of a phase, and the reason of that deadline.
pub type Limit = Option<(fn(&Timing) -> Duration, &'static str)>;

/// A row of the phase table.
#[derive(Debug, Clone, Copy)]
pub struct PhaseRow {
    /// The phase.
    pub phase: Phase,
    /// The action on entry.
    pub entry: EntryAction,
    /// The time limit of the phase.
    pub limit: Limit,
    /// The status that users see.
    pub status: StatusKind,
}

const fn row(phase: Phase, entry: EntryAction, limit: Limit, status: StatusKind) -> PhaseRow {
    PhaseRow { phase, entry, limit, status }
}

/// All phases, in the order of [`Phase`].
pub const PHASES: [PhaseRow; 12] = {
    use Phase as P;
    use StatusKind as O;
    [
        row(P::Created, EntryAction::Nothing, None, O::Created),
        row(
            P::StartingHelpers,
            EntryAction::SpawnHelper,
            Some((|t| t.helper, "helper is ready")),
            O::Starting,
        ),
        row(
            P::StartingHypervisor,
            EntryAction::SpawnHypervisor,
            Some((|t| t.launch, "control channel is connected")),
            O::Starting,
        ),
        row(
            P::Booting,
            EntryAction::SendBoot,
            Some((|t| t.boot, "boot message is answered")),
            O::Starting,
        ),
        row(P::Running, EntryAction::Nothing, None, O::Running),
        row(
            P::ShutdownRequested,
            EntryAction::RequestShutdown,
            Some((|t| t.grace, "grace period")),
            O::Stopping,
        ),
        row(
            P::WaitingForExit,
            EntryAction::Nothing,
            Some((|t| t.quit, "hypervisor exits")),
            O::Stopping,
        ),
        row(
            P::QuitRequested,
            EntryAction::Quit,
            Some((|t| t.quit, "hypervisor exits after the quit command")),
            O::Stopping,
        ),
        row(
            P::KillingHypervisor,
            EntryAction::KillHypervisor,
            Some((|t| t.kill, "hypervisor exits after SIGKILL")),
            O::Stopping,
        ),
        row(
            P::StoppingHelpers,
            EntryAction::TerminateHelpers,
            Some((|t| t.drain, "helpers exit")),
            O::Stopping,
        ),
        row(
            P::KillingHelpers,
            EntryAction::KillHelpers,
            Some((|t| t.kill, "helpers exit after SIGKILL")),
            O::Stopping,
        ),
        row(P::Ended, EntryAction::Release, None, O::Terminal),
    ]
};

/// All transitions: from, trigger, to. A trigger without a row has no effect.
pub const TRANSITIONS: &[(Phase, Trigger, Phase)] = {
    use Phase as P;
    use Trigger as T;
    &[
        (P::Created, T::Start, P::StartingHelpers),
        //
        (P::StartingHelpers, T::NextHelper, P::StartingHelpers),
        (P::StartingHelpers, T::HelpersReady, P::StartingHypervisor),
        (P::StartingHelpers, T::SpawnFailed, P::KillingHelpers),
        (P::StartingHelpers, T::DependencyLost, P::KillingHelpers),
        (P::StartingHelpers, T::Timeout, P::KillingHelpers),
        (P::StartingHelpers, T::Stop, P::KillingHelpers),
        (P::StartingHelpers, T::Kill, P::KillingHelpers),
        //
        (P::StartingHypervisor, T::ControlReady, P::Booting),
        (P::StartingHypervisor, T::SpawnFailed, P::KillingHelpers),
        (P::StartingHypervisor, T::DependencyLost, P::KillingHypervisor),
        (P::StartingHypervisor, T::Timeout, P::KillingHypervisor),
        (P::StartingHypervisor, T::Stop, P::KillingHypervisor),
        (P::StartingHypervisor, T::Kill, P::KillingHypervisor),
        (P::StartingHypervisor, T::HypervisorExited, P::StoppingHelpers),
        //
        (P::Booting, T::NextMessage, P::Booting),
        (P::Booting, T::Booted, P::Running),
        (P::Booting, T::BootRejected, P::KillingHypervisor),
        (P::Booting, T::DependencyLost, P::KillingHypervisor),
        (P::Booting, T::Timeout, P::KillingHypervisor),
        (P::Booting, T::Stop, P::KillingHypervisor),
        (P::Booting, T::Kill, P::KillingHypervisor),
        (P::Booting, T::GuestPoweredOff, P::WaitingForExit),
        (P::Booting, T::GuestCrashed, P::QuitRequested),
        (P::Booting, T::HypervisorExited, P::StoppingHelpers),
        //
        (P::Running, T::Stop, P::ShutdownRequested),
        (P::Running, T::TimeLimit, P::ShutdownRequested),
        (P::Running, T::Kill, P::KillingHypervisor),
        (P::Running, T::GuestPoweredOff, P::WaitingForExit),
        (P::Running, T::GuestCrashed, P::QuitRequested),
        (P::Running, T::DependencyLost, P::QuitRequested),
        (P::Running, T::HypervisorExited, P::StoppingHelpers),
        //
        (P::ShutdownRequested, T::Timeout, P::QuitRequested),
        (P::ShutdownRequested, T::Kill, P::KillingHypervisor),
        (P::ShutdownRequested, T::GuestPoweredOff, P::WaitingForExit),
        (P::ShutdownRequested, T::GuestCrashed, P::QuitRequested),
        (P::ShutdownRequested, T::DependencyLost, P::QuitRequested),
        (P::ShutdownRequested, T::HypervisorExited, P::StoppingHelpers),
        //
        (P::WaitingForExit, T::Timeout, P::KillingHypervisor),
        (P::WaitingForExit, T::Kill, P::KillingHypervisor),
        (P::WaitingForExit, T::HypervisorExited, P::StoppingHelpers),
        //
        (P::QuitRequested, T::Timeout, P::KillingHypervisor),
        (P::QuitRequested, T::Kill, P::KillingHypervisor),
        (P::QuitRequested, T::HypervisorExited, P::StoppingHelpers),
        //
        (P::KillingHypervisor, T::Timeout, P::KillingHelpers),
        (P::KillingHypervisor, T::HypervisorExited, P::StoppingHelpers),
        //
        (P::StoppingHelpers, T::Timeout, P::KillingHelpers),
        (P::StoppingHelpers, T::Kill, P::KillingHelpers),
        (P::StoppingHelpers, T::AllExited, P::Ended),
        //
        (P::KillingHelpers, T::Timeout, P::Ended),
        (P::KillingHelpers, T::AllExited, P::Ended),
    ]
};

/// The row of a phase.
pub fn phase(phase: Phase) -> &'static PhaseRow {
    &PHASES[phase as usize]
}

/// The phase that `trigger` leads to from `from`; `None` if it has no effect there.
pub fn next(from: Phase, trigger: Trigger) -> Option<Phase> {
    TRANSITIONS.iter().find(|(f, t, _)| (*f, *t) == (from, trigger)).map(|(_, _, to)| *to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;
    use core::fmt::Write as _;
    use std::collections::BTreeSet;

    #[test]
    fn phases_are_in_enum_order() {
        for (n, row) in PHASES.iter().enumerate() {
            assert_eq!(row.phase as usize, n);
        }
    }

    #[test]
    fn transitions_are_unambiguous() {
        let pairs: BTreeSet<_> = TRANSITIONS.iter().map(|(f, t, _)| (*f, *t)).collect();
        assert_eq!(pairs.len(), TRANSITIONS.len());
    }

    #[test]
    fn phase_has_limit_iff_it_has_timeout() {
        for row in &PHASES {
            assert_eq!(
                row.limit.is_some(),
                next(row.phase, Trigger::Timeout).is_some(),
                "{:?}",
                row.phase
            );
        }
    }

    #[test]
    fn timeouts_form_no_cycle() {
        for row in &PHASES {
            let mut at = row.phase;
            for _ in 0..PHASES.len() {
                at = next(at, Trigger::Timeout).unwrap_or(at);
            }
            assert!(matches!(at, Phase::Ended | Phase::Created | Phase::Running), "{at:?}");
        }
    }

    /// Renders the tables as Markdown. `CAPSA_BLESS=1` writes the file.
    #[test]
    fn diagram_file_matches_tables() {
        let mut page = String::from(
            "# The tables\n\nGenerated from [`table`]; a test fails if they differ.\n\n\
             | phase | on entry | limit | status |\n| --- | --- | --- | --- |\n",
        );
        for row in &PHASES {
            let limit = row.limit.map_or_else(String::new, |(limit, why)| {
                format!("{why} within {:?}", limit(&Timing::default()))
            });
            let _ = writeln!(
                page,
                "| {:?} | {:?} | {limit} | {:?} |",
                row.phase, row.entry, row.status
            );
        }
        page.push_str("\n```text\n");
        for row in &PHASES {
            let mut rows: std::vec::Vec<_> =
                TRANSITIONS.iter().filter(|(from, ..)| *from == row.phase).collect();
            rows.sort_by_key(|(_, _, to)| *to);
            for (n, (from, trigger, to)) in rows.iter().enumerate() {
                let from = if n == 0 { format!("{from:?}") } else { String::new() };
                let _ = writeln!(page, "{from:<18} ── {:<16} ─▶ {to:?}", format!("{trigger:?}"));
            }
        }
        page.push_str("```\n");
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/lifecycle/diagram.md");
        if std::env::var_os("CAPSA_BLESS").is_some() {
            std::fs::write(file, &page).unwrap();
        }
        assert_eq!(
            page,
            include_str!("diagram.md"),
            "diagram.md is out of date: run the test with CAPSA_BLESS=1"
        );
    }
}
