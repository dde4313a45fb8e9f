//! One test per promise. The laws under random inputs are next door, in the fuzz body.

use super::*;
use crate::lifecycle::fuzz::plan;
use alloc::string::ToString;
use alloc::vec;

/// A machine, a fake clock, and everything it wanted done.
struct Pair {
    lifecycle: Lifecycle,
    now: Instant,
    done: Vec<Action>,
}

impl Pair {
    fn new(plan: &LaunchPlan) -> Self {
        Self {
            lifecycle: Lifecycle::new(plan, Timing::default()),
            now: Instant::ZERO,
            done: vec![],
        }
    }

    fn say(&mut self, input: Input) -> &mut Self {
        self.lifecycle.handle_input(self.now, input).unwrap();
        self.settle()
    }

    /// Carries out actions the way a healthy world would.
    fn settle(&mut self) -> &mut Self {
        while let Some(action) = self.lifecycle.poll_action() {
            self.done.push(action.clone());
            if let Action::Spawn(id) = action {
                self.lifecycle.handle_input(self.now, Input::Spawned(id)).unwrap();
            }
        }
        self
    }

    fn running(plan: &LaunchPlan) -> Self {
        let mut pair = Self::new(plan);
        pair.say(Input::Start);
        for id in 0..plan.processes.len() {
            pair.say(Input::Ready(ProcessId(id)));
        }
        for _ in &plan.boot {
            pair.say(Input::Replied(ReplyOutcome::Done));
        }
        assert_eq!(*pair.lifecycle.status(), VmStatus::Running);
        pair
    }

    fn time_out(&mut self) -> &mut Self {
        let deadline = self.lifecycle.poll_timeout().expect("a deadline to wait for");
        self.now = self.now.max(deadline.at);
        self.say(Input::Timeout)
    }

    fn report(&self) -> StopReport {
        self.lifecycle.report().expect("it ended")
    }
}

const VMM: ProcessId = ProcessId(0);

#[test]
fn start_announces_starting_then_running() {
    let pair = Pair::running(&plan(0));
    let announced: Vec<_> = pair
        .done
        .iter()
        .filter_map(|a| match a {
            Action::Announce(status) => Some(status.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(announced, [VmStatus::Starting, VmStatus::Running]);
}

#[test]
fn helpers_start_one_after_the_other_before_the_hypervisor() {
    let mut pair = Pair::new(&plan(2));
    pair.say(Input::Start);
    assert!(pair.done.contains(&Action::Spawn(ProcessId(0))));
    assert!(!pair.done.contains(&Action::Spawn(ProcessId(1))));
    pair.say(Input::Ready(ProcessId(0)));
    assert!(pair.done.contains(&Action::Spawn(ProcessId(1))));
    assert!(!pair.done.contains(&Action::Spawn(ProcessId(2))));
    pair.say(Input::Ready(ProcessId(1)));
    assert!(pair.done.contains(&Action::Spawn(ProcessId(2))));
}

#[test]
fn a_second_start_is_refused() {
    let mut pair = Pair::running(&plan(0));
    assert_eq!(
        pair.lifecycle.handle_input(pair.now, Input::Start),
        Err(InvalidState::AlreadyStarted)
    );
}

#[test]
fn stop_before_start_is_refused() {
    let mut pair = Pair::new(&plan(0));
    assert_eq!(pair.lifecycle.handle_input(pair.now, Input::Kill), Err(InvalidState::NotStarted));
}

#[test]
fn a_guest_that_obeys_needs_only_the_asking() {
    let mut pair = Pair::running(&plan(0));
    pair.say(Input::Stop { grace: Duration::from_secs(1) });
    pair.say(Input::Replied(ReplyOutcome::Done)).say(Input::GuestPoweredOff);
    pair.say(Input::Exited(VMM, Exit::with_code(0)));
    let report = pair.report();
    assert_eq!(report.ended_by, EndedBy::GuestPowerOff);
    assert_eq!(report.steps, [StopStep::PowerButton]);
    assert_eq!(report.to_string(), "guest powered off, as asked");
    assert_eq!(*pair.lifecycle.status(), VmStatus::Stopped { exit_code: Some(0) });
}

#[test]
fn a_deaf_guest_takes_every_rung_of_the_ladder() {
    let mut pair = Pair::running(&plan(0));
    pair.say(Input::Stop { grace: Duration::from_secs(1) });
    pair.time_out();
    assert_eq!(pair.now, Instant::from_micros(1_000_000));
    pair.time_out();
    assert_eq!(pair.done.last(), Some(&Action::Signal(VMM, Signal::Kill)));
    pair.say(Input::Exited(VMM, Exit { code: None, signal: Some(9), stderr_tail: String::new() }));
    let report = pair.report();
    assert_eq!(report.ended_by, EndedBy::Owner);
    assert_eq!(report.steps, [StopStep::PowerButton, StopStep::Quit, StopStep::Killed]);
    assert!(report.to_string().starts_with("power cut"), "{report}");
    assert_eq!(*pair.lifecycle.status(), VmStatus::Stopped { exit_code: None });
}

#[test]
fn a_kill_within_the_grace_does_not_blame_the_guest() {
    let mut pair = Pair::running(&plan(0));
    pair.say(Input::Stop { grace: Duration::from_secs(10) }).say(Input::Kill);
    pair.say(Input::Exited(VMM, Exit { code: None, signal: Some(9), stderr_tail: String::new() }));
    assert_eq!(pair.report().to_string(), "killed");
}

#[test]
fn a_guest_that_did_not_hear_is_asked_again_within_its_grace() {
    let mut pair = Pair::running(&plan(0));
    pair.say(Input::Stop { grace: Duration::from_secs(12) });
    let asked = |pair: &Pair| {
        let ask = Message::qmp("ask", "system_powerdown");
        pair.done.iter().filter(|a| **a == Action::Control(ask.clone())).count()
    };
    assert_eq!(asked(&pair), 1);
    for again in 2..=3 {
        pair.say(Input::Replied(ReplyOutcome::Done)).time_out();
        assert_eq!(asked(&pair), again);
    }
    assert_eq!(pair.now, Instant::from_micros(10_000_000));
    pair.say(Input::Replied(ReplyOutcome::Done)).time_out();
    assert_eq!(pair.now, Instant::from_micros(12_000_000));
    assert_eq!((asked(&pair), pair.lifecycle.phase()), (3, Phase::QuitRequested));
}

#[test]
fn an_asking_that_was_cut_off_is_explained_by_the_end_that_follows() {
    let cut_off = || {
        let mut pair = Pair::running(&plan(0));
        pair.say(Input::Stop { grace: Duration::from_secs(30) });
        pair.say(Input::Replied(ReplyOutcome::Lost("it hung up".into())));
        pair
    };
    let mut off = cut_off();
    off.say(Input::Exited(VMM, Exit::with_code(0)));
    let report = off.report();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::GuestPowerOff, vec![StopStep::PowerButton])
    );

    let mut crashed = cut_off();
    crashed.say(Input::Exited(VMM, Exit::with_code(4)));
    assert!(matches!(crashed.report().ended_by, EndedBy::HypervisorLost { .. }));

    let mut stays = cut_off();
    let soon = stays.now + Duration::from_secs(1);
    stays.time_out().say(Input::Exited(VMM, Exit::with_code(0)));
    assert!(stays.now < soon, "it needs no grace");
    let report = stays.report();
    assert_eq!(report.ended_by, EndedBy::Owner);
    assert_eq!(report.steps, [StopStep::PowerButton, StopStep::Quit]);
}

#[test]
fn a_second_stop_shortens_the_grace_and_never_lengthens_it() {
    let mut pair = Pair::running(&plan(0));
    pair.say(Input::Stop { grace: Duration::from_secs(10) });
    pair.say(Input::Stop { grace: Duration::from_secs(1) });
    pair.say(Input::Stop { grace: Duration::from_secs(60) });
    assert_eq!(pair.lifecycle.poll_timeout().unwrap().at, Instant::from_micros(1_000_000));
}

#[test]
fn stop_while_starting_kills_at_once() {
    let mut pair = Pair::new(&plan(0));
    pair.say(Input::Start).say(Input::Stop { grace: Duration::from_secs(9) });
    assert_eq!(pair.done.last(), Some(&Action::Signal(VMM, Signal::Kill)));
}

#[test]
fn a_spawn_that_was_not_carried_out_is_withdrawn() {
    let mut lifecycle = Lifecycle::new(&plan(1), Timing::default());
    lifecycle.handle_input(Instant::ZERO, Input::Start).unwrap();
    lifecycle.handle_input(Instant::ZERO, Input::Kill).unwrap();
    let actions: Vec<_> = core::iter::from_fn(|| lifecycle.poll_action()).collect();
    assert!(!actions.iter().any(|a| matches!(a, Action::Spawn(_))), "{actions:?}");
    assert_eq!(actions.last(), Some(&Action::Release));
}

#[test]
fn a_refused_boot_message_fails_with_the_hypervisors_words() {
    let mut pair = Pair::new(&plan(0));
    pair.say(Input::Start).say(Input::Ready(VMM));
    pair.say(Input::Replied(ReplyOutcome::Rejected("no such kernel".into())));
    pair.say(Input::Exited(VMM, Exit::with_code(1)));
    let VmStatus::Failed { message } = pair.lifecycle.status() else { panic!("not failed") };
    assert_eq!(message, "start failed: vmm refused to agree: no such kernel");
}

#[test]
fn a_boot_message_without_answer_is_explained_by_the_end_that_follows() {
    let lost = |pair: &mut Pair| {
        pair.say(Input::Start).say(Input::Ready(VMM));
        pair.say(Input::Replied(ReplyOutcome::Lost("it hung up".into())));
    };
    let mut pair = Pair::new(&plan(0));
    lost(&mut pair);
    pair.say(Input::Exited(
        VMM,
        Exit { code: Some(1), signal: None, stderr_tail: "bad disk\n".into() },
    ));
    let VmStatus::Failed { message } = pair.lifecycle.status() else { panic!("not failed") };
    assert_eq!(message, "start failed: vmm exited with status 1: bad disk");

    let mut pair = Pair::new(&plan(0));
    lost(&mut pair);
    pair.time_out();
    pair.say(Input::Exited(VMM, Exit { code: None, signal: Some(9), stderr_tail: String::new() }));
    let VmStatus::Failed { message } = pair.lifecycle.status() else { panic!("not failed") };
    assert_eq!(message, "start failed: vmm did not agree: it hung up");
}

#[test]
fn a_hypervisor_that_dies_early_fails_with_what_it_said() {
    let mut pair = Pair::new(&plan(0));
    pair.say(Input::Start);
    pair.say(Input::Exited(
        VMM,
        Exit { code: Some(1), signal: None, stderr_tail: "bad option\n".into() },
    ));
    let VmStatus::Failed { message } = pair.lifecycle.status() else { panic!("not failed") };
    assert_eq!(message, "start failed: vmm exited with status 1: bad option");
}

#[test]
fn a_crash_is_not_taken_for_a_power_off() {
    let mut pair = Pair::running(&plan(0));
    pair.say(Input::Exited(VMM, Exit { code: None, signal: Some(11), stderr_tail: String::new() }));
    assert!(matches!(pair.report().ended_by, EndedBy::HypervisorLost { .. }));
    assert!(matches!(pair.lifecycle.status(), VmStatus::Failed { .. }));
}

#[test]
fn a_cpu_that_failed_is_no_power_off_whatever_follows() {
    let mut plan = plan(0);
    plan.crash_reporting = CrashReporting::EventThenExit;
    let mut pair = Pair::running(&plan);
    pair.say(Input::CpuFailed);
    // It may stay, with a guest that does nothing.
    assert_eq!(pair.lifecycle.phase(), Phase::QuitRequested);
    pair.say(Input::GuestPoweredOff).say(Input::Exited(VMM, Exit::with_code(0)));
    let reason = "vmm cannot go on with a virtual CPU".into();
    assert_eq!(pair.report().ended_by, EndedBy::HypervisorLost { reason });
    assert!(matches!(pair.lifecycle.status(), VmStatus::Failed { .. }));
}

#[test]
fn a_reset_after_a_panic_on_the_console_is_a_panic() {
    let mut pair = Pair::running(&plan(0));
    pair.say(Input::GuestPanicked { certain: false });
    assert_eq!(*pair.lifecycle.status(), VmStatus::Running, "text alone ends nothing");
    pair.say(Input::GuestReset).say(Input::Exited(VMM, Exit::with_code(0)));
    assert_eq!(pair.report().ended_by, EndedBy::GuestPanic);
}

#[test]
fn a_reboot_is_announced_where_that_was_asked_for() {
    let mut plan = plan(0);
    plan.on_reboot = RebootPolicy::Restart;
    plan.reset_debounce = Duration::from_millis(250);
    let mut pair = Pair::running(&plan);
    pair.say(Input::GuestReset);
    assert_eq!(pair.done.last(), Some(&Action::AnnounceReboot));
    assert_eq!(*pair.lifecycle.status(), VmStatus::Running);
    let announced =
        |pair: &Pair| pair.done.iter().filter(|action| **action == Action::AnnounceReboot).count();
    pair.now = pair.now + Duration::from_millis(40);
    pair.say(Input::GuestReset);
    assert_eq!(announced(&pair), 1, "the firmware's own reset is no reboot");
    pair.now = pair.now + Duration::from_secs(1);
    pair.say(Input::GuestReset);
    assert_eq!(announced(&pair), 2);
}

#[test]
fn a_panic_of_an_earlier_life_does_not_explain_the_end_of_a_later_one() {
    let mut plan = plan(0);
    plan.on_reboot = RebootPolicy::Restart;
    let mut pair = Pair::running(&plan);
    // It boots again, and this hypervisor does not tell.
    pair.say(Input::GuestPanicked { certain: false });
    pair.say(Input::Exited(VMM, Exit::with_code(0)));
    assert_eq!(pair.report().ended_by, EndedBy::GuestPowerOff);
}

#[test]
fn a_hypervisor_that_leaves_by_itself_is_not_told_to_quit() {
    let mut plan = plan(0);
    plan.crash_reporting = CrashReporting::EventThenExit;
    for input in [Input::GuestReset, Input::GuestPanicked { certain: true }] {
        let mut pair = Pair::running(&plan);
        pair.say(input);
        assert_eq!(pair.lifecycle.phase(), Phase::WaitingForExit);
        assert!(!pair.done.contains(&Action::Control(Message::qmp("quit", "quit"))));
        // One that stays all the same is killed.
        pair.time_out();
        assert_eq!(pair.lifecycle.phase(), Phase::KillingHypervisor);
    }
}

#[test]
fn a_kernels_last_words_are_believed_where_the_hypervisor_tells_nothing() {
    use ConsoleCrash::{Panic, Restart};
    let cut = Message::qmp("cut the power", "cut");
    let heard = CrashReporting::ConsoleOnly { power_off: cut.clone() };
    for (fall, on_reboot, word, want) in [
        (&heard, RebootPolicy::Auto, Restart, Some(EndedBy::GuestReboot)),
        (&heard, RebootPolicy::Auto, Panic, Some(EndedBy::GuestPanic)),
        (&heard, RebootPolicy::Restart, Restart, None),
        (&heard, RebootPolicy::Restart, Panic, None),
        // One that tells needs no witness, least of all a guest.
        (&CrashReporting::Event, RebootPolicy::Auto, Restart, None),
        (&CrashReporting::EventThenExit, RebootPolicy::End, Panic, None),
    ] {
        let case = format!("{fall:?} {on_reboot:?} {word:?}");
        let plan = LaunchPlan { crash_reporting: fall.clone(), on_reboot, ..plan(0) };
        let mut pair = Pair::running(&plan);
        pair.say(Input::ConsoleCrash(word));
        let announced = pair.done.contains(&Action::AnnounceReboot);
        assert_eq!(
            announced,
            *fall == heard && on_reboot == RebootPolicy::Restart && word == Restart
        );
        assert_eq!(pair.done.contains(&Action::Control(cut.clone())), want.is_some(), "{case}");
        match want {
            Some(want) => {
                pair.say(Input::Exited(VMM, Exit::with_code(0)));
                assert_eq!(pair.report().ended_by, want, "{case}");
            }
            None => assert_eq!(*pair.lifecycle.status(), VmStatus::Running, "{case}"),
        }
    }
}

#[test]
fn words_that_were_not_the_last_explain_no_end() {
    let cut = Message::qmp("cut the power", "cut");
    let plan = LaunchPlan {
        crash_reporting: CrashReporting::ConsoleOnly { power_off: cut.clone() },
        ..plan(0)
    };
    let mut pair = Pair::running(&plan);
    pair.say(Input::GuestPanicked { certain: false });
    // A grace that runs out is no fall: that guest is told to quit as any other.
    pair.say(Input::Stop { grace: Duration::ZERO }).time_out();
    assert!(!pair.done.contains(&Action::Control(cut)));
    pair.say(Input::Exited(VMM, Exit::with_code(0)));
    assert_eq!(pair.report().ended_by, EndedBy::Owner);
}

#[test]
fn the_time_limit_climbs_the_ladder_and_says_so() {
    let mut plan = plan(0);
    plan.time_limit = Some(Duration::from_secs(3));
    let mut pair = Pair::running(&plan);
    pair.time_out().time_out();
    pair.say(Input::Exited(VMM, Exit::with_code(0)));
    let report = pair.report();
    assert_eq!(report.ended_by, EndedBy::TimeLimit);
    assert_eq!(report.to_string(), "power cut, time limit reached");
}

#[test]
fn a_helper_that_dies_is_blamed_only_if_the_hypervisor_stays() {
    let mut stays = Pair::running(&plan(1));
    stays.say(Input::Exited(ProcessId(0), Exit::with_code(1))).time_out();
    stays.say(Input::Exited(ProcessId(1), Exit::with_code(0)));
    assert!(matches!(stays.report().ended_by, EndedBy::HelperLost { .. }));

    let mut leaves = Pair::running(&plan(1));
    leaves.say(Input::Exited(ProcessId(0), Exit::with_code(0)));
    let killed = Exit { code: None, signal: Some(9), stderr_tail: String::new() };
    leaves.say(Input::Exited(ProcessId(1), killed));
    assert!(matches!(leaves.report().ended_by, EndedBy::HypervisorLost { .. }));
}

#[test]
fn a_machine_that_came_to_run_did_not_fail_to_start() {
    let mut pair = Pair::new(&plan(0));
    pair.say(Input::Start).say(Input::Ready(VMM)).say(Input::EventsLost("nonsense".into()));
    for _ in &plan(0).boot {
        pair.say(Input::Replied(ReplyOutcome::Done));
    }
    assert_eq!(*pair.lifecycle.status(), VmStatus::Running);
    while pair.lifecycle.report().is_none() {
        pair.time_out();
    }
    let EndedBy::HypervisorLost { reason } = pair.report().ended_by else {
        panic!("{:?}", pair.report())
    };
    assert!(reason.contains("nonsense"), "{reason}");
}

#[test]
fn a_helper_that_does_not_come_up_is_named() {
    let plan = plan(2);
    for n in 0..2 {
        let mut pair = Pair::new(&plan);
        pair.say(Input::Start);
        for up in 0..n {
            pair.say(Input::Ready(ProcessId(up)));
        }
        while pair.lifecycle.report().is_none() {
            pair.time_out();
        }
        let EndedBy::StartFailed { reason } = pair.report().ended_by else { panic!() };
        assert!(reason.contains(&format!("until {} is up", plan.processes[n].name)), "{reason}");
    }
}

#[test]
fn after_a_kill_timeouts_alone_lead_to_the_end() {
    for helpers in 0..3 {
        for progress in 0..8 {
            let plan = plan(helpers);
            let mut pair = Pair::new(&plan);
            pair.say(Input::Start);
            for n in 0..progress {
                pair.say(if n <= helpers {
                    Input::Ready(ProcessId(n))
                } else {
                    Input::Replied(ReplyOutcome::Done)
                });
            }
            pair.say(Input::Kill);
            for _ in 0..5 {
                if pair.lifecycle.report().is_none() {
                    pair.time_out();
                }
            }
            assert_eq!(pair.done.last(), Some(&Action::Release), "{helpers} {progress}");
            assert!(
                matches!(pair.lifecycle.status(), VmStatus::Failed { .. }),
                "it gave up, and says so"
            );
        }
    }
}

#[test]
fn a_helper_that_fails_early_is_blamed_though_the_hypervisor_leaves_for_it() {
    // virtiofsd 1.14 makes its socket, is refused its sandbox, and is gone when QEMU connects.
    let mut pair = Pair::new(&plan(1));
    pair.say(Input::Start).say(Input::Ready(ProcessId(0)));
    let stderr_tail = "Error entering sandbox".to_string();
    pair.say(Input::Exited(ProcessId(0), Exit { stderr_tail, ..Exit::with_code(1) }));
    pair.say(Input::Exited(ProcessId(1), Exit::with_code(1)));
    let report = pair.report();
    assert!(matches!(report.ended_by, EndedBy::StartFailed { .. }), "{report}");
    assert!(report.to_string().contains("Error entering sandbox"), "{report}");
}
