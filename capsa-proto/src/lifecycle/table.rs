//! The lifecycle as data: two tables that can be read on paper.

use super::Timing;
use core::time::Duration;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Planned, nothing runs.
    Created,
    /// Helpers start, one after the other.
    Helpers,
    /// The hypervisor starts; its control channel is awaited.
    Launching,
    /// The boot messages are sent, one after the other.
    Booting,
    /// The guest was told to go.
    Running,
    /// The guest was asked to power off.
    Asking,
    /// The guest is off; the hypervisor's exit is awaited.
    Leaving,
    /// The hypervisor was told to quit.
    Quitting,
    /// The hypervisor was sent SIGKILL.
    Killing,
    /// The hypervisor is gone; helpers end by themselves.
    Draining,
    /// Helpers were sent SIGKILL.
    Sweeping,
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
    HelpersUp,
    /// The hypervisor's control channel is up.
    ControlUp,
    /// A boot message was done, and another is to be sent.
    NextMessage,
    /// No boot message is left to send.
    Booted,
    /// A boot message was refused.
    BootRefused,
    /// A program could not be started.
    SpawnFailed,
    /// A helper or the control channel was lost although it is needed.
    PartLost,
    /// The guest powered off.
    GuestOff,
    /// The guest reset, and that ends the machine; or it panicked; or a virtual CPU of it failed.
    GuestFell,
    /// The machine has run as long as it may.
    TimeLimit,
    /// The phase has taken as long as it may.
    Timeout,
    /// The hypervisor's process is gone.
    HypervisorGone,
    /// All processes are gone.
    AllGone,
}

/// What a phase does when it is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Nothing,
    /// Start the next helper.
    SpawnHelper,
    /// Start the hypervisor.
    SpawnHypervisor,
    /// Send the next boot message.
    SendBoot,
    /// Ask the guest to power off.
    Ask,
    /// Tell the hypervisor to quit.
    Quit,
    /// SIGKILL to the hypervisor.
    KillHypervisor,
    /// SIGTERM to the helpers that would go on without the hypervisor.
    DismissHelpers,
    /// SIGKILL to the helpers.
    KillHelpers,
    /// Free everything.
    Release,
}

/// What the outside calls a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
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
    pub entry: Entry,
    /// How long it may take.
    pub limit: Limit,
    /// What the outside calls it.
    pub outside: Outside,
}

const fn row(phase: Phase, entry: Entry, limit: Limit, outside: Outside) -> PhaseRow {
    PhaseRow { phase, entry, limit, outside }
}

/// Every phase: what it does on entry, how long it may take, what the outside calls it.
pub const PHASES: [PhaseRow; 12] = {
    use Outside as O;
    use Phase as P;
    [
        row(P::Created, Entry::Nothing, None, O::Created),
        row(P::Helpers, Entry::SpawnHelper, Some((|t| t.helper, "helper is up")), O::Starting),
        row(
            P::Launching,
            Entry::SpawnHypervisor,
            Some((|t| t.launch, "control is up")),
            O::Starting,
        ),
        row(
            P::Booting,
            Entry::SendBoot,
            Some((|t| t.boot, "boot message is answered")),
            O::Starting,
        ),
        row(P::Running, Entry::Nothing, None, O::Running),
        row(P::Asking, Entry::Ask, Some((|t| t.grace, "grace period")), O::Stopping),
        row(P::Leaving, Entry::Nothing, Some((|t| t.quit, "hypervisor exits")), O::Stopping),
        row(P::Quitting, Entry::Quit, Some((|t| t.quit, "hypervisor quits")), O::Stopping),
        row(P::Killing, Entry::KillHypervisor, Some((|t| t.kill, "hypervisor dies")), O::Stopping),
        row(P::Draining, Entry::DismissHelpers, Some((|t| t.drain, "helpers end")), O::Stopping),
        row(P::Sweeping, Entry::KillHelpers, Some((|t| t.kill, "helpers die")), O::Stopping),
        row(P::Ended, Entry::Release, None, O::Terminal),
    ]
};

/// Every transition: from, trigger, to. What is not here does not happen.
pub const TRANSITIONS: &[(Phase, Trigger, Phase)] = {
    use Phase as P;
    use Trigger as T;
    &[
        (P::Created, T::Start, P::Helpers),
        //
        (P::Helpers, T::NextHelper, P::Helpers),
        (P::Helpers, T::HelpersUp, P::Launching),
        (P::Helpers, T::SpawnFailed, P::Sweeping),
        (P::Helpers, T::PartLost, P::Sweeping),
        (P::Helpers, T::Timeout, P::Sweeping),
        (P::Helpers, T::Stop, P::Sweeping),
        (P::Helpers, T::Kill, P::Sweeping),
        //
        (P::Launching, T::ControlUp, P::Booting),
        (P::Launching, T::SpawnFailed, P::Sweeping),
        (P::Launching, T::PartLost, P::Killing),
        (P::Launching, T::Timeout, P::Killing),
        (P::Launching, T::Stop, P::Killing),
        (P::Launching, T::Kill, P::Killing),
        (P::Launching, T::HypervisorGone, P::Draining),
        //
        (P::Booting, T::NextMessage, P::Booting),
        (P::Booting, T::Booted, P::Running),
        (P::Booting, T::BootRefused, P::Killing),
        (P::Booting, T::PartLost, P::Killing),
        (P::Booting, T::Timeout, P::Killing),
        (P::Booting, T::Stop, P::Killing),
        (P::Booting, T::Kill, P::Killing),
        (P::Booting, T::GuestOff, P::Leaving),
        (P::Booting, T::GuestFell, P::Quitting),
        (P::Booting, T::HypervisorGone, P::Draining),
        //
        (P::Running, T::Stop, P::Asking),
        (P::Running, T::TimeLimit, P::Asking),
        (P::Running, T::Kill, P::Killing),
        (P::Running, T::GuestOff, P::Leaving),
        (P::Running, T::GuestFell, P::Quitting),
        (P::Running, T::PartLost, P::Quitting),
        (P::Running, T::HypervisorGone, P::Draining),
        //
        (P::Asking, T::Timeout, P::Quitting),
        (P::Asking, T::Kill, P::Killing),
        (P::Asking, T::GuestOff, P::Leaving),
        (P::Asking, T::GuestFell, P::Quitting),
        (P::Asking, T::PartLost, P::Quitting),
        (P::Asking, T::HypervisorGone, P::Draining),
        //
        (P::Leaving, T::Timeout, P::Killing),
        (P::Leaving, T::Kill, P::Killing),
        (P::Leaving, T::HypervisorGone, P::Draining),
        //
        (P::Quitting, T::Timeout, P::Killing),
        (P::Quitting, T::Kill, P::Killing),
        (P::Quitting, T::HypervisorGone, P::Draining),
        //
        (P::Killing, T::Timeout, P::Sweeping),
        (P::Killing, T::HypervisorGone, P::Draining),
        //
        (P::Draining, T::Timeout, P::Sweeping),
        (P::Draining, T::Kill, P::Sweeping),
        (P::Draining, T::AllGone, P::Ended),
        //
        (P::Sweeping, T::Timeout, P::Ended),
        (P::Sweeping, T::AllGone, P::Ended),
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
             | phase | on entry | limit | outside |\n| --- | --- | --- | --- |\n",
        );
        for row in &PHASES {
            let limit = row.limit.map_or_else(String::new, |(limit, why)| {
                format!("{why} within {:?}", limit(&Timing::default()))
            });
            let _ = writeln!(
                page,
                "| {:?} | {:?} | {limit} | {:?} |",
                row.phase, row.entry, row.outside
            );
        }
        page.push_str("\n```text\n");
        for row in &PHASES {
            let mut rows: std::vec::Vec<_> =
                TRANSITIONS.iter().filter(|(from, ..)| *from == row.phase).collect();
            rows.sort_by_key(|(_, _, to)| *to);
            for (n, (from, trigger, to)) in rows.iter().enumerate() {
                let from = if n == 0 { format!("{from:?}") } else { String::new() };
                let _ = writeln!(page, "{from:<10} ── {:<15} ─▶ {to:?}", format!("{trigger:?}"));
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
