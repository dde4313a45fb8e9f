//! Draws `diagram.md` by running the lifecycle: from every phase that it reaches, it passes every
//! input, for every kind of plan, and notes what happens.

use super::super::*;
use crate::console::ConsoleCrash;
use crate::lifecycle::fuzz::plan;
use crate::plan::{CrashReporting, Signal, StopAction};
use crate::spec::RebootPolicy;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec;
use core::fmt::Write as _;

/// The phases that follow an input in a phase.
type Transitions = BTreeMap<(Phase, String), BTreeSet<Phase>>;
/// What a phase does on entry.
type EntryActions = BTreeMap<Phase, BTreeSet<String>>;

fn plans() -> Vec<LaunchPlan> {
    let mut plans = vec![plan(0), plan(1), plan(2)];
    for on_reboot in [RebootPolicy::End, RebootPolicy::Restart] {
        let power_off = Message::qmp("power off", "poweroff");
        for crash_reporting in [
            CrashReporting::Event,
            CrashReporting::EventThenExit,
            CrashReporting::ConsoleOnly { power_off },
        ] {
            let time_limit = Some(Duration::from_secs(60));
            plans.push(LaunchPlan { on_reboot, crash_reporting, time_limit, ..plan(1) });
        }
    }
    plans.push(LaunchPlan { power_button: None, boot: vec![], ..plan(0) });
    plans.push(LaunchPlan { quit: StopAction::Signal(Signal::Term), ..plan(0) });
    plans
}

fn inputs(plan: &LaunchPlan) -> Vec<Input> {
    use GuestEvent::{CpuFailed, ExternalQuit, Panicked, Paused, PoweredOff, Reset, Resumed};
    let mut inputs = vec![
        Input::Start,
        Input::Stop { grace: Duration::from_secs(1) },
        Input::Kill,
        Input::Pause,
        Input::Resume,
        Input::ControlLost,
        Input::EventsLost(String::new()),
        Input::ConsolePanic,
        Input::ConsoleNoPanic,
        Input::ConsoleCrash(ConsoleCrash::Panic),
        Input::ConsoleCrash(ConsoleCrash::Restart),
        Input::HypervisorExited(Exit::with_code(0)),
        Input::HypervisorExited(Exit::with_code(1)),
    ];
    let events = [PoweredOff, Reset, Panicked, ExternalQuit, Paused, Resumed, CpuFailed];
    inputs.extend(events.map(Input::Guest));
    inputs.extend(LifecycleTimer::ALL.map(Input::Expired));
    for id in (0..plan.processes.len()).map(ProcessId) {
        inputs.push(Input::Ready(id));
        inputs.push(Input::LaunchFailed(id, crate::lifecycle::Cause::new("no")));
        if id != plan.hypervisor() {
            inputs.extend([0, 1].map(|code| Input::HelperExited(id, Exit::with_code(code))));
        }
    }
    for message in plan.boot.iter().chain(&plan.power_button).chain([&plan.pause, &plan.resume]) {
        for outcome in [
            ReplyOutcome::Done,
            ReplyOutcome::Retry,
            ReplyOutcome::Rejected(String::new()),
            ReplyOutcome::Lost(String::new()),
        ] {
            inputs.push(Input::Replied(message.clone(), outcome));
        }
    }
    inputs
}

/// A process exits, or fails to launch, only if it was launched.
fn is_possible(lifecycle: &Lifecycle, input: &Input) -> bool {
    let alive = |id: ProcessId| lifecycle.processes[id.0] == ProcessState::Alive;
    match input {
        Input::HypervisorExited(_) => alive(lifecycle.hypervisor()),
        Input::HelperExited(id, _) => alive(*id),
        Input::LaunchFailed(id, _) => {
            let starting = [Phase::StartingHelpers, Phase::StartingHypervisor];
            alive(*id) && lifecycle.launching == Some(*id) && starting.contains(&lifecycle.phase)
        }
        _ => true,
    }
}

fn input_name(input: &Input) -> String {
    match input {
        Input::Stop { .. } => "Stop".into(),
        Input::LaunchFailed(..) => "LaunchFailed".into(),
        Input::Ready(_) => "Ready".into(),
        Input::HypervisorExited(_) => "HypervisorExited".into(),
        Input::HelperExited(..) => "HelperExited".into(),
        Input::EventsLost(_) => "EventsLost".into(),
        Input::Replied(_, ReplyOutcome::Rejected(_)) => "Replied(Rejected)".into(),
        Input::Replied(_, ReplyOutcome::Lost(_)) => "Replied(Lost)".into(),
        Input::Replied(_, outcome) => format!("Replied({outcome:?})"),
        other => format!("{other:?}"),
    }
}

fn action_name(plan: &LaunchPlan, action: &Action) -> Option<String> {
    let signal = |signal: Signal| if signal == Signal::Kill { "SIGKILL" } else { "SIGTERM" };
    Some(match action {
        Action::Launch(id) if *id == plan.hypervisor() => "launch the hypervisor".into(),
        Action::Launch(_) => "launch the next helper".into(),
        Action::Send(message) if plan.boot.contains(message) => "send the next boot message".into(),
        Action::Send(message) if plan.power_button.as_ref() == Some(message) => {
            "press the power button".into()
        }
        Action::Send(message) if plan.quit == StopAction::Control(message.clone()) => {
            "send the quit command".into()
        }
        Action::Send(message) if *message == plan.resume => "resume a paused guest".into(),
        Action::Send(_) => "power the guest off".into(),
        Action::Signal(id, s) if *id == plan.hypervisor() => {
            format!("send {} to the hypervisor", signal(*s))
        }
        Action::Signal(_, s) => format!("send {} to helpers", signal(*s)),
        Action::Release => "release all resources".into(),
        Action::CheckReady(_)
        | Action::Announce(_)
        | Action::AnnounceReboot
        | Action::AnnounceRejection(..) => return None,
    })
}

fn explore(plan: LaunchPlan, transitions: &mut Transitions, entries: &mut EntryActions) {
    let inputs = inputs(&plan);
    let plan = Arc::new(plan);
    let mut seen = BTreeSet::new();
    let mut left = vec![Lifecycle::new(Arc::clone(&plan), Timing::default())];
    while let Some(before) = left.pop() {
        let processes: Vec<_> = before.processes.iter().map(|state| *state as u8).collect();
        let key = (before.phase, processes, before.boot_steps, before.likely_cause.is_some());
        if !seen.insert(key) {
            continue;
        }
        for input in inputs.iter().filter(|input| is_possible(&before, input)) {
            let mut after = before.clone();
            if after.handle_input(Instant::ZERO, input.clone()).is_err() {
                continue;
            }
            let actions: Vec<_> = core::iter::from_fn(|| after.poll_action()).collect();
            if after.phase != before.phase {
                let targets = transitions.entry((before.phase, input_name(input))).or_default();
                targets.insert(after.phase);
                let names = actions.iter().filter_map(|action| action_name(&plan, action));
                entries.entry(after.phase).or_default().extend(names);
            }
            left.push(after);
        }
    }
}

/// Renders the lifecycle as Markdown. `CAPSA_BLESS=1` writes the file.
#[test]
fn diagram_file_matches_state_machine() {
    let (mut transitions, mut entries) = (Transitions::new(), EntryActions::new());
    for plan in plans() {
        explore(plan, &mut transitions, &mut entries);
    }
    let mut page = String::from(
        "# Phases\n\nDrawn by running the state machine with every input; a test compares it.\n\n\
         | phase | on entry | limit | status |\n| --- | --- | --- | --- |\n",
    );
    for phase in Phase::ALL {
        let limit = phase.limit(&Timing::default());
        let limit =
            limit.map_or_else(String::new, |(limit, why)| format!("{why} within {limit:?}"));
        let status = phase.status().map_or("Stopped or Failed".into(), |s| format!("{s:?}"));
        let entry = entries.remove(&phase).unwrap_or_default();
        let entry = entry.into_iter().collect::<Vec<_>>().join("; ");
        let _ = writeln!(page, "| {phase:?} | {entry} | {limit} | {status} |");
    }
    page.push_str(
        "\nWhere two phases follow, the plan or what happened before decides.\n\n```text\n",
    );
    for phase in Phase::ALL {
        let mut name = format!("{phase:?}");
        let mut rows: Vec<_> = transitions.iter().filter(|((from, _), _)| *from == phase).collect();
        rows.sort_by_key(|((_, input), to)| ((*to).clone(), input.clone()));
        for ((_, input), to) in rows {
            let to = to.iter().map(|to| format!("{to:?}")).collect::<Vec<_>>().join(" or ");
            let _ = writeln!(page, "{name:<18} ── {input:<21} ─▶ {to}");
            name.clear();
        }
    }
    page.push_str("```\n");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/lifecycle/diagram.md");
    super::bless(file, &page);
    assert_eq!(
        page,
        include_str!("../../diagram.md"),
        "diagram.md is out of date: run the test with CAPSA_BLESS=1"
    );
}

#[test]
fn every_limit_has_an_effect() {
    for phase in Phase::ALL {
        let mut lifecycle = Lifecycle::new(Arc::new(plan(1)), Timing::default());
        lifecycle.launching = Some(ProcessId(0));
        lifecycle.processes[1] = ProcessState::Alive;
        lifecycle.phase = phase;
        lifecycle.handle_input(Instant::ZERO, Input::Expired(LifecycleTimer::Phase)).unwrap();
        let has_limit = phase.limit(&Timing::default()).is_some();
        assert_eq!(lifecycle.phase != phase, has_limit, "{phase:?}");
    }
}
