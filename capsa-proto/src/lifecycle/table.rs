//! The lifecycle as data: two tables that can be read on paper.

use super::Timing;
use core::time::Duration;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Planned, nothing runs.
    Created,
    /// Helpers start, one after the other.
    StartingHelpers,
    /// The hypervisor starts; its control channel is awaited.
    StartingHypervisor,
    /// The boot messages are sent, one after the other.
    Booting,
    /// The guest was told to go.
    Running,
    /// The guest was asked to power off.
    ShutdownRequested,
    /// The guest is off; the hypervisor's exit is awaited.
    WaitingForExit,
    /// The hypervisor was told to quit.
    QuitRequested,
    /// The hypervisor was sent SIGKILL.
    KillingHypervisor,
    /// The hypervisor is gone; helpers end by themselves.
    StoppingHelpers,
    /// Helpers were sent SIGKILL.
    KillingHelpers,
    /// Everything is over.
    Ended,
}

/// What can lead from one phase to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trigger {
    /// The owner wants it to run.
    Start,
    /// The owner wants the guest to power off.
    Stop,
    /// The owner wants it gone.
    Kill,
    /// A helper is up, and another is to start.
    NextHelper,
    /// No helper is left to start.
    HelpersReady,
    /// The hypervisor's control channel is up.
    ControlReady,
    /// A boot message was done, and another is to be sent.
    NextMessage,
    /// No boot message is left to send.
    Booted,
    /// A boot message was refused.
    BootRejected,
    /// A program could not be started.
    SpawnFailed,
    /// A helper or the control channel was lost although it is needed.
    DependencyLost,
    /// The guest powered off.
    GuestPoweredOff,
    /// The guest reset, and that ends the machine; or it panicked; or a virtual CPU of it failed.
    GuestCrashed,
    /// The machine has run as long as it may.
    TimeLimit,
    /// The phase has taken as long as it may.
    Timeout,
    /// The hypervisor's process is gone.
    HypervisorExited,
    /// All processes are gone.
    AllExited,
}

/// What a phase does when it is entered.
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
    /// Tell the hypervisor to quit.
    Quit,
    /// SIGKILL to the hypervisor.
    KillHypervisor,
    /// SIGTERM to the helpers that would go on without the hypervisor.
    TerminateHelpers,
    /// SIGKILL to the helpers.
    KillHelpers,
    /// Free everything.
    Release,
}

/// What the outside calls a phase.
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

/// How long a phase may take, and what the log calls that deadline.
pub type Limit = Option<(fn(&Timing) -> Duration, &'static str)>;

/// A row of the phase table.
#[derive(Debug, Clone, Copy)]
pub struct PhaseRow {
    /// The phase.
    pub phase: Phase,
    /// What it does on entry.
    pub entry: EntryAction,
    /// How long it may take.
    pub limit: Limit,
    /// What the outside calls it.
    pub status: StatusKind,
}

const fn row(phase: Phase, entry: EntryAction, limit: Limit, status: StatusKind) -> PhaseRow {
    PhaseRow { phase, entry, limit, status }
}

/// Every phase: what it does on entry, how long it may take, what the outside calls it.
pub const PHASES: [PhaseRow; 12] = {
    use Phase as P;
    use StatusKind as O;
    [
        row(P::Created, EntryAction::Nothing, None, O::Created),
        row(
            P::StartingHelpers,
            EntryAction::SpawnHelper,
            Some((|t| t.helper, "helper is up")),
            O::Starting,
        ),
        row(
            P::StartingHypervisor,
            EntryAction::SpawnHypervisor,
            Some((|t| t.launch, "control is up")),
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
            Some((|t| t.quit, "hypervisor quits")),
            O::Stopping,
        ),
        row(
            P::KillingHypervisor,
            EntryAction::KillHypervisor,
            Some((|t| t.kill, "hypervisor dies")),
            O::Stopping,
        ),
        row(
            P::StoppingHelpers,
            EntryAction::TerminateHelpers,
            Some((|t| t.drain, "helpers end")),
            O::Stopping,
        ),
        row(
            P::KillingHelpers,
            EntryAction::KillHelpers,
            Some((|t| t.kill, "helpers die")),
            O::Stopping,
        ),
        row(P::Ended, EntryAction::Release, None, O::Terminal),
    ]
};

/// Every transition: from, trigger, to. What is not here does not happen.
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

/// Where `trigger` leads from `from`, if anywhere.
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
    fn phase_rows_stand_where_their_number_says() {
        for (n, row) in PHASES.iter().enumerate() {
            assert_eq!(row.phase as usize, n);
        }
    }

    #[test]
    fn no_phase_and_trigger_lead_to_two_places() {
        let pairs: BTreeSet<_> = TRANSITIONS.iter().map(|(f, t, _)| (*f, *t)).collect();
        assert_eq!(pairs.len(), TRANSITIONS.len());
    }

    #[test]
    fn every_phase_with_a_limit_has_a_timeout_and_the_other_way_round() {
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
    fn timeouts_never_form_a_circle() {
        for row in &PHASES {
            let mut at = row.phase;
            for _ in 0..PHASES.len() {
                at = next(at, Trigger::Timeout).unwrap_or(at);
            }
            assert!(matches!(at, Phase::Ended | Phase::Created | Phase::Running), "{at:?}");
        }
    }

    /// Draws the tables as a page. `CAPSA_BLESS=1` writes it anew.
    #[test]
    fn the_diagram_in_the_docs_is_the_table() {
        let mut page = String::from(
            "# The tables\n\nGenerated from [`table`]; a test fails when the two differ.\n\n\
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
            "the table changed: run the test again with CAPSA_BLESS=1"
        );
    }
}
