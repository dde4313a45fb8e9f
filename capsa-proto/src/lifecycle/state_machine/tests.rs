//! One test per rule. `lifecycle/fuzz.rs` checks the invariants with random inputs.

mod diagram;
mod panic_text;
mod pausing;

use super::*;
use crate::console::ConsoleCrash;
use crate::lifecycle::fuzz::plan;
use crate::plan::{CrashReporting, Message, Signal};
use crate::spec::RebootPolicy;
use alloc::string::{String, ToString};
use alloc::vec;

/// With `CAPSA_BLESS=1`, writes a file that a test compares.
fn bless(file: &str, text: &str) {
    if std::env::var_os("CAPSA_BLESS").is_some() {
        std::fs::write(file, text).unwrap();
    }
}

/// A lifecycle with a simulated clock, and the actions that it returned.
struct LifecycleTest {
    lifecycle: Lifecycle,
    now: Instant,
    actions: Vec<Action>,
    /// The message that was sent last.
    sent: Option<Message>,
}

impl LifecycleTest {
    fn new(plan: &LaunchPlan) -> Self {
        Self {
            lifecycle: Lifecycle::new(Arc::new(plan.clone()), Timing::default()),
            now: Instant::ZERO,
            actions: vec![],
            sent: None,
        }
    }

    fn input(&mut self, input: Input) -> &mut Self {
        self.lifecycle.handle_input(self.now, input).unwrap();
        self.run_actions()
    }

    /// Carries out all queued actions; every launch succeeds.
    fn run_actions(&mut self) -> &mut Self {
        while let Some(action) = self.lifecycle.poll_action() {
            if let Action::Send(message) = &action {
                self.sent = Some(message.clone());
            }
            self.actions.push(action);
        }
        self
    }

    /// The reply to the message that was sent last.
    fn reply(&mut self, outcome: ReplyOutcome) -> &mut Self {
        let message = self.sent.clone().expect("a message was sent");
        self.input(Input::Replied(message, outcome))
    }

    fn running(plan: &LaunchPlan) -> Self {
        let mut vm = Self::new(plan);
        vm.input(Input::Start);
        for id in 0..plan.processes.len() {
            vm.input(Input::Ready(ProcessId(id)));
        }
        for _ in &plan.boot {
            vm.reply(ReplyOutcome::Done);
        }
        assert_eq!(*vm.lifecycle.status(), VmStatus::Running);
        vm
    }

    fn time_out(&mut self) -> &mut Self {
        let deadline = self.lifecycle.poll_timeout().expect("there is a deadline");
        self.now = self.now.max(deadline.at);
        self.lifecycle.handle_timeout(self.now);
        self.run_actions()
    }

    fn report(&self) -> StopReport {
        self.lifecycle.report().expect("the VM has ended")
    }
}

const VMM: ProcessId = ProcessId(0);

#[test]
fn start_announces_starting_then_running() {
    let vm = LifecycleTest::running(&plan(0));
    let announced: Vec<_> = vm
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::Announce(status) => Some(status.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(announced, [VmStatus::Starting, VmStatus::Running]);
}

#[test]
fn helpers_start_in_order_before_hypervisor() {
    let mut vm = LifecycleTest::new(&plan(2));
    vm.input(Input::Start);
    assert!(vm.actions.contains(&Action::Launch(ProcessId(0))));
    assert!(!vm.actions.contains(&Action::Launch(ProcessId(1))));
    vm.input(Input::Ready(ProcessId(0)));
    assert!(vm.actions.contains(&Action::Launch(ProcessId(1))));
    assert!(!vm.actions.contains(&Action::Launch(ProcessId(2))));
    vm.input(Input::Ready(ProcessId(1)));
    assert!(vm.actions.contains(&Action::Launch(ProcessId(2))));
}

#[test]
fn start_twice_is_rejected() {
    let mut vm = LifecycleTest::running(&plan(0));
    assert_eq!(vm.lifecycle.handle_input(vm.now, Input::Start), Err(InvalidState::AlreadyStarted));
}

#[test]
fn kill_before_start_is_rejected() {
    let mut vm = LifecycleTest::new(&plan(0));
    assert_eq!(vm.lifecycle.handle_input(vm.now, Input::Kill), Err(InvalidState::NotStarted));
}

/// A hypervisor that answers nothing and exits only after SIGKILL, as one stopped by SIGSTOP.
fn stop_unresponsive(power_off: bool, grace: Duration) -> (LifecycleTest, Duration) {
    let mut vm = LifecycleTest::running(&plan(1));
    vm.input(Input::Stop { grace });
    if power_off {
        vm.input(Input::Guest(GuestEvent::PoweredOff));
    }
    let begin = vm.now;
    while !vm.actions.contains(&Action::Signal(ProcessId(1), Signal::Kill)) {
        vm.time_out();
    }
    let killed = Exit::new(None, Some(9));
    vm.input(Input::HypervisorExited(killed));
    while !vm.actions.contains(&Action::Signal(ProcessId(0), Signal::Kill)) {
        vm.time_out();
    }
    vm.input(Input::HelperExited(ProcessId(0), Exit::with_code(0)));
    let took = vm.now.since(begin);
    (vm, took)
}

#[test]
fn stop_unresponsive_ends_5s_after_grace() {
    let after = Duration::from_secs(5);
    for power_off in [false, true] {
        for seconds in [0, 5, 60] {
            let grace = Duration::from_secs(seconds);
            let (vm, took) = stop_unresponsive(power_off, grace);
            assert!(took <= grace + after, "{power_off} {grace:?}: {took:?}");
            let limits = vm.report().limits;
            assert_eq!((limits.grace, limits.quit + limits.helpers), (grace, after));
        }
    }
}

#[test]
fn stop_while_hypervisor_exits_shortens_its_limit() {
    let mut vm = LifecycleTest::running(&plan(0));
    vm.input(Input::Guest(GuestEvent::PoweredOff));
    vm.input(Input::Stop { grace: Duration::from_secs(1) });
    let deadline = vm.lifecycle.poll_timeout().unwrap().at;
    assert_eq!(deadline.since(vm.now), Duration::from_secs(4));
}

#[test]
fn stop_guest_powers_off_needs_power_button_only() {
    let mut vm = LifecycleTest::running(&plan(0));
    vm.input(Input::Stop { grace: Duration::from_secs(1) });
    vm.reply(ReplyOutcome::Done).input(Input::Guest(GuestEvent::PoweredOff));
    vm.input(Input::HypervisorExited(Exit::with_code(0)));
    let report = vm.report();
    assert_eq!(report.ended_by, EndedBy::GuestPowerOff);
    assert_eq!(report.steps, [StopStep::PowerButton]);
    assert_eq!(report.to_string(), "guest powered off, as asked");
    assert_eq!(*vm.lifecycle.status(), VmStatus::Stopped { exit_code: Some(0) });
}

#[test]
fn stop_ignored_climbs_whole_stop_ladder() {
    let mut vm = LifecycleTest::running(&plan(0));
    vm.input(Input::Stop { grace: Duration::from_secs(1) });
    vm.time_out();
    assert_eq!(vm.now, Instant::from_micros(1_000_000));
    vm.time_out();
    assert_eq!(vm.actions.last(), Some(&Action::Signal(VMM, Signal::Kill)));
    vm.input(Input::HypervisorExited(Exit {
        killed_by: None,
        code: None,
        signal: Some(9),
        stderr_tail: String::new(),
    }));
    let report = vm.report();
    assert_eq!(report.ended_by, EndedBy::Owner);
    assert_eq!(report.steps, [StopStep::PowerButton, StopStep::Quit, StopStep::Killed]);
    assert!(report.to_string().starts_with("power cut"), "{report}");
    assert_eq!(*vm.lifecycle.status(), VmStatus::Stopped { exit_code: None });
}

#[test]
fn kill_in_grace_period_is_reported_as_kill() {
    let mut vm = LifecycleTest::running(&plan(0));
    vm.input(Input::Stop { grace: Duration::from_secs(10) }).input(Input::Kill);
    vm.input(Input::HypervisorExited(Exit {
        killed_by: None,
        code: None,
        signal: Some(9),
        stderr_tail: String::new(),
    }));
    assert_eq!(vm.report().to_string(), "killed");
}

#[test]
fn stop_presses_power_button_again_in_grace_period() {
    let mut vm = LifecycleTest::running(&plan(0));
    vm.input(Input::Stop { grace: Duration::from_secs(12) });
    let presses = |vm: &LifecycleTest| {
        let ask = Message::qmp("ask", "system_powerdown");
        vm.actions.iter().filter(|a| **a == Action::Send(ask.clone())).count()
    };
    assert_eq!(presses(&vm), 1);
    for again in 2..=3 {
        vm.reply(ReplyOutcome::Done).time_out();
        assert_eq!(presses(&vm), again);
    }
    assert_eq!(vm.now, Instant::from_micros(10_000_000));
    vm.reply(ReplyOutcome::Done).time_out();
    assert_eq!(vm.now, Instant::from_micros(12_000_000));
    assert_eq!((presses(&vm), vm.lifecycle.phase()), (3, Phase::QuitRequested));
}

#[test]
fn stop_reply_lost_uses_hypervisor_exit_as_cause() {
    let cut_off = || {
        let mut vm = LifecycleTest::running(&plan(0));
        vm.input(Input::Stop { grace: Duration::from_secs(30) });
        vm.reply(ReplyOutcome::Lost("connection closed".into()));
        vm
    };
    let mut off = cut_off();
    off.input(Input::HypervisorExited(Exit::with_code(0)));
    let report = off.report();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::GuestPowerOff, vec![StopStep::PowerButton])
    );

    let mut crashed = cut_off();
    crashed.input(Input::HypervisorExited(Exit::with_code(4)));
    assert!(matches!(crashed.report().ended_by, EndedBy::HypervisorLost { .. }));

    let mut stays = cut_off();
    let soon = stays.now + Duration::from_secs(1);
    stays.time_out().input(Input::HypervisorExited(Exit::with_code(0)));
    assert!(stays.now < soon, "the grace period is skipped");
    let report = stays.report();
    assert_eq!(report.ended_by, EndedBy::Owner);
    assert_eq!(report.steps, [StopStep::PowerButton, StopStep::Quit]);
}

#[test]
fn second_stop_only_shortens_grace_period() {
    let mut vm = LifecycleTest::running(&plan(0));
    vm.input(Input::Stop { grace: Duration::from_secs(10) });
    vm.input(Input::Stop { grace: Duration::from_secs(1) });
    vm.input(Input::Stop { grace: Duration::from_secs(60) });
    assert_eq!(vm.lifecycle.poll_timeout().unwrap().at, Instant::from_micros(1_000_000));
}

#[test]
fn stop_while_starting_kills_at_once() {
    let mut vm = LifecycleTest::new(&plan(0));
    vm.input(Input::Start).input(Input::Stop { grace: Duration::from_secs(9) });
    assert_eq!(vm.actions.last(), Some(&Action::Signal(VMM, Signal::Kill)));
}

#[test]
fn kill_removes_queued_spawn() {
    let mut lifecycle = Lifecycle::new(Arc::new(plan(1)), Timing::default());
    lifecycle.handle_input(Instant::ZERO, Input::Start).unwrap();
    lifecycle.handle_input(Instant::ZERO, Input::Kill).unwrap();
    let actions: Vec<_> = core::iter::from_fn(|| lifecycle.poll_action()).collect();
    assert!(!actions.iter().any(|a| matches!(a, Action::Launch(_))), "{actions:?}");
    assert_eq!(actions.last(), Some(&Action::Release));
}

#[test]
fn exit_removes_queued_signals_to_process() {
    let mut vm = LifecycleTest::new(&plan(2));
    vm.input(Input::Start).input(Input::Ready(ProcessId(0)));
    // Both helpers exit before the driver takes an action.
    for id in [ProcessId(1), ProcessId(0)] {
        let exited = Input::HelperExited(id, Exit::with_code(1));
        vm.lifecycle.handle_input(vm.now, exited).unwrap();
    }
    vm.run_actions();
    let is_signal = |action: &Action| matches!(action, Action::Signal(..));
    assert!(!vm.actions.iter().any(is_signal), "{:?}", vm.actions);
    assert_eq!(vm.actions.last(), Some(&Action::Release));
}

#[test]
fn boot_message_rejected_reports_hypervisor_error() {
    let mut vm = LifecycleTest::new(&plan(0));
    vm.input(Input::Start).input(Input::Ready(VMM));
    vm.reply(ReplyOutcome::Rejected("no such kernel".into()));
    vm.input(Input::HypervisorExited(Exit::with_code(1)));
    let VmStatus::Failed { message } = vm.lifecycle.status() else { panic!("not failed") };
    assert_eq!(message, "start failed: vmm failed to negotiate: no such kernel");
}

#[test]
fn boot_reply_lost_uses_hypervisor_exit_as_cause() {
    let lost = |vm: &mut LifecycleTest| {
        vm.input(Input::Start).input(Input::Ready(VMM));
        vm.reply(ReplyOutcome::Lost("connection closed".into()));
    };
    let mut vm = LifecycleTest::new(&plan(0));
    lost(&mut vm);
    vm.input(Input::HypervisorExited(Exit {
        killed_by: None,
        code: Some(1),
        signal: None,
        stderr_tail: "bad disk\n".into(),
    }));
    let VmStatus::Failed { message } = vm.lifecycle.status() else { panic!("not failed") };
    assert_eq!(message, "start failed: vmm exited with status 1: bad disk");

    let mut vm = LifecycleTest::new(&plan(0));
    lost(&mut vm);
    vm.time_out();
    vm.input(Input::HypervisorExited(Exit {
        killed_by: None,
        code: None,
        signal: Some(9),
        stderr_tail: String::new(),
    }));
    let VmStatus::Failed { message } = vm.lifecycle.status() else { panic!("not failed") };
    assert_eq!(message, "start failed: vmm failed to negotiate: connection closed");
}

#[test]
fn early_hypervisor_exit_reports_stderr() {
    let mut vm = LifecycleTest::new(&plan(0));
    vm.input(Input::Start);
    vm.input(Input::HypervisorExited(Exit {
        killed_by: None,
        code: Some(1),
        signal: None,
        stderr_tail: "bad option\n".into(),
    }));
    let VmStatus::Failed { message } = vm.lifecycle.status() else { panic!("not failed") };
    assert_eq!(message, "start failed: vmm exited with status 1: bad option");
}

#[test]
fn hypervisor_killed_is_not_power_off() {
    let mut vm = LifecycleTest::running(&plan(0));
    vm.input(Input::HypervisorExited(Exit {
        killed_by: None,
        code: None,
        signal: Some(11),
        stderr_tail: String::new(),
    }));
    assert!(matches!(vm.report().ended_by, EndedBy::HypervisorLost { .. }));
    assert!(matches!(vm.lifecycle.status(), VmStatus::Failed { .. }));
}

#[test]
fn vcpu_failure_is_not_power_off() {
    let mut plan = plan(0);
    plan.crash_reporting = CrashReporting::EventThenExit;
    let mut vm = LifecycleTest::running(&plan);
    vm.input(Input::Guest(GuestEvent::CpuFailed));
    // The hypervisor may keep running with a guest that hangs.
    assert_eq!(vm.lifecycle.phase(), Phase::QuitRequested);
    vm.input(Input::Guest(GuestEvent::PoweredOff))
        .input(Input::HypervisorExited(Exit::with_code(0)));
    let reason = "vmm reported a vCPU failure".into();
    assert_eq!(vm.report().ended_by, EndedBy::HypervisorLost { reason });
    assert!(matches!(vm.lifecycle.status(), VmStatus::Failed { .. }));
}

#[test]
fn reset_with_restart_policy_announces_reboot() {
    let mut plan = plan(0);
    plan.on_reboot = RebootPolicy::Restart;
    plan.reset_debounce = Duration::from_millis(250);
    let mut vm = LifecycleTest::running(&plan);
    vm.input(Input::Guest(GuestEvent::Reset));
    assert_eq!(vm.actions.last(), Some(&Action::AnnounceReboot));
    assert_eq!(*vm.lifecycle.status(), VmStatus::Running);
    let announced = |vm: &LifecycleTest| {
        vm.actions.iter().filter(|action| **action == Action::AnnounceReboot).count()
    };
    vm.now = vm.now + Duration::from_millis(40);
    vm.input(Input::Guest(GuestEvent::Reset));
    assert_eq!(announced(&vm), 1, "a reset by the firmware is not a reboot");
    vm.now = vm.now + Duration::from_secs(1);
    vm.input(Input::Guest(GuestEvent::Reset));
    assert_eq!(announced(&vm), 2);
}

#[test]
fn event_then_exit_sends_no_quit_command() {
    let mut plan = plan(0);
    plan.crash_reporting = CrashReporting::EventThenExit;
    for input in [Input::Guest(GuestEvent::Reset), Input::Guest(GuestEvent::Panicked)] {
        let mut vm = LifecycleTest::running(&plan);
        vm.input(input);
        assert_eq!(vm.lifecycle.phase(), Phase::WaitingForExit);
        assert!(!vm.actions.contains(&Action::Send(Message::qmp("quit", "quit"))));
        // A hypervisor that does not exit is killed.
        vm.time_out();
        assert_eq!(vm.lifecycle.phase(), Phase::KillingHypervisor);
    }
}

#[test]
fn console_crash_is_used_with_console_only_reporting() {
    use ConsoleCrash::{Panic, Restart};
    let cut = Message::qmp("cut the power", "cut");
    let console_only = CrashReporting::ConsoleOnly { power_off: cut.clone() };
    for (reporting, on_reboot, crash, want) in [
        (&console_only, RebootPolicy::Auto, Restart, Some(EndedBy::GuestReboot)),
        (&console_only, RebootPolicy::Auto, Panic, Some(EndedBy::GuestPanic)),
        (&console_only, RebootPolicy::Restart, Restart, None),
        (&console_only, RebootPolicy::Restart, Panic, None),
        // With events of the hypervisor, the console is ignored.
        (&CrashReporting::Event, RebootPolicy::Auto, Restart, None),
        (&CrashReporting::EventThenExit, RebootPolicy::End, Panic, None),
    ] {
        let case = format!("{reporting:?} {on_reboot:?} {crash:?}");
        let plan = LaunchPlan { crash_reporting: reporting.clone(), on_reboot, ..plan(0) };
        let mut vm = LifecycleTest::running(&plan);
        vm.input(Input::ConsoleCrash(crash));
        let announced = vm.actions.contains(&Action::AnnounceReboot);
        assert_eq!(
            announced,
            *reporting == console_only && on_reboot == RebootPolicy::Restart && crash == Restart
        );
        assert_eq!(vm.actions.contains(&Action::Send(cut.clone())), want.is_some(), "{case}");
        match want {
            Some(want) => {
                vm.input(Input::HypervisorExited(Exit::with_code(0)));
                assert_eq!(vm.report().ended_by, want, "{case}");
            }
            None => assert_eq!(*vm.lifecycle.status(), VmStatus::Running, "{case}"),
        }
    }
}

#[test]
fn console_panic_without_crash_is_not_cause() {
    let cut = Message::qmp("cut the power", "cut");
    let plan = LaunchPlan {
        crash_reporting: CrashReporting::ConsoleOnly { power_off: cut.clone() },
        ..plan(0)
    };
    let mut vm = LifecycleTest::running(&plan);
    vm.input(Input::ConsolePanic);
    // An expired grace period is not a guest crash: the ordinary quit command is sent.
    vm.input(Input::Stop { grace: Duration::ZERO }).time_out();
    assert!(!vm.actions.contains(&Action::Send(cut)));
    vm.input(Input::HypervisorExited(Exit::with_code(0)));
    assert_eq!(vm.report().ended_by, EndedBy::Owner);
}

#[test]
fn time_limit_climbs_stop_ladder_and_is_reported() {
    let mut plan = plan(0);
    plan.time_limit = Some(Duration::from_secs(3));
    let mut vm = LifecycleTest::running(&plan);
    vm.time_out().time_out();
    vm.input(Input::HypervisorExited(Exit::with_code(0)));
    let report = vm.report();
    assert_eq!(report.ended_by, EndedBy::TimeLimit);
    assert_eq!(report.to_string(), "power cut, time limit reached");
}

#[test]
fn helper_exit_is_cause_only_if_hypervisor_stays() {
    let mut stays = LifecycleTest::running(&plan(1));
    stays.input(Input::HelperExited(ProcessId(0), Exit::with_code(1))).time_out();
    stays.input(Input::HypervisorExited(Exit::with_code(0)));
    assert!(matches!(stays.report().ended_by, EndedBy::HelperLost { .. }));

    let mut exits = LifecycleTest::running(&plan(1));
    exits.input(Input::HelperExited(ProcessId(0), Exit::with_code(0)));
    let killed = Exit::new(None, Some(9));
    exits.input(Input::HypervisorExited(killed));
    assert!(matches!(exits.report().ended_by, EndedBy::HypervisorLost { .. }));
}

#[test]
fn events_lost_before_running_is_not_start_failure() {
    let mut vm = LifecycleTest::new(&plan(0));
    vm.input(Input::Start).input(Input::Ready(VMM)).input(Input::EventsLost("invalid JSON".into()));
    for _ in &plan(0).boot {
        vm.reply(ReplyOutcome::Done);
    }
    assert_eq!(*vm.lifecycle.status(), VmStatus::Running);
    while vm.lifecycle.report().is_none() {
        vm.time_out();
    }
    let EndedBy::HypervisorLost { reason } = vm.report().ended_by else {
        panic!("{:?}", vm.report())
    };
    assert!(reason.contains("invalid JSON"), "{reason}");
}

#[test]
fn helper_timeout_error_names_helper() {
    let plan = plan(2);
    for n in 0..2 {
        let mut vm = LifecycleTest::new(&plan);
        vm.input(Input::Start);
        for up in 0..n {
            vm.input(Input::Ready(ProcessId(up)));
        }
        while vm.lifecycle.report().is_none() {
            vm.time_out();
        }
        let EndedBy::StartFailed { error } = vm.report().ended_by else { panic!() };
        let reason = error.to_string();
        assert!(reason.contains(&format!("until {} is ready", plan.processes[n].name)), "{reason}");
    }
}

#[test]
fn kill_ends_by_timeouts_alone() {
    for helpers in 0..3 {
        for progress in 0..8 {
            let plan = plan(helpers);
            let mut vm = LifecycleTest::new(&plan);
            vm.input(Input::Start);
            for n in 0..progress {
                if n <= helpers {
                    vm.input(Input::Ready(ProcessId(n)));
                } else if vm.sent.is_some() {
                    vm.reply(ReplyOutcome::Done);
                }
            }
            vm.input(Input::Kill);
            for _ in 0..5 {
                if vm.lifecycle.report().is_none() {
                    vm.time_out();
                }
            }
            assert_eq!(vm.actions.last(), Some(&Action::Release), "{helpers} {progress}");
            assert!(
                matches!(vm.lifecycle.status(), VmStatus::Failed { .. }),
                "the report says that a process is left"
            );
        }
    }
}

#[test]
fn early_helper_failure_is_cause_of_failed_start() {
    // virtiofsd 1.14 creates its socket, cannot enter its sandbox, and exits before QEMU connects.
    let mut vm = LifecycleTest::new(&plan(1));
    vm.input(Input::Start).input(Input::Ready(ProcessId(0)));
    let stderr_tail = "Error entering sandbox".to_string();
    vm.input(Input::HelperExited(ProcessId(0), Exit { stderr_tail, ..Exit::with_code(1) }));
    vm.input(Input::HypervisorExited(Exit::with_code(1)));
    let report = vm.report();
    assert!(matches!(report.ended_by, EndedBy::StartFailed { .. }), "{report}");
    assert!(report.to_string().contains("Error entering sandbox"), "{report}");
}
