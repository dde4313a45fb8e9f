//! A guest that is paused and resumed.

use super::*;

const STOP: Input = Input::Stop { grace: Duration::from_secs(1) };

fn sent(test: &mut LifecycleTest) -> Vec<&'static str> {
    let sent = test.actions.drain(..).filter_map(|action| match action {
        Action::Send(message) => Some(message.purpose),
        _ => None,
    });
    sent.collect()
}

fn paused(plan: &LaunchPlan) -> LifecycleTest {
    let mut test = LifecycleTest::running(plan);
    test.input(Input::Pause).reply(ReplyOutcome::Done);
    assert_eq!(*test.lifecycle.status(), VmStatus::Paused);
    test.actions.clear();
    test
}

#[test]
fn pause_and_resume_follow_replies() {
    let mut test = paused(&plan(0));
    test.input(Input::Pause);
    assert_eq!(sent(&mut test), [""; 0], "the guest is paused already");
    test.input(Input::Resume).input(Input::Resume);
    assert_eq!(sent(&mut test), ["resume the guest"]);
    assert_eq!(*test.lifecycle.status(), VmStatus::Paused);
    test.reply(ReplyOutcome::Done);
    assert_eq!(*test.lifecycle.status(), VmStatus::Running);
}

#[test]
fn pause_follows_events_of_hypervisor() {
    let mut test = LifecycleTest::running(&plan(0));
    for (event, status) in [
        (GuestEvent::Paused, VmStatus::Paused),
        (GuestEvent::Resumed, VmStatus::Running),
        (GuestEvent::Paused, VmStatus::Paused),
    ] {
        test.input(Input::Guest(event));
        assert_eq!(*test.lifecycle.status(), status);
    }
}

#[test]
fn resume_overtakes_pause_without_reply() {
    let plan = plan(0);
    let mut test = LifecycleTest::running(&plan);
    test.actions.clear();
    test.input(Input::Pause).input(Input::Resume);
    assert_eq!(sent(&mut test), ["pause the guest", "resume the guest"]);
    for (message, status) in [(plan.pause, VmStatus::Paused), (plan.resume, VmStatus::Running)] {
        test.input(Input::Replied(message, ReplyOutcome::Done));
        assert_eq!(*test.lifecycle.status(), status);
    }
    assert!(!test.lifecycle.is_pausing());
}

#[test]
fn pause_without_running_vm_is_rejected() {
    let mut lifecycle = Lifecycle::new(Arc::new(plan(0)), Timing::default());
    for _ in 0..2 {
        for input in [Input::Pause, Input::Resume] {
            let refused = lifecycle.handle_input(Instant::ZERO, input);
            assert_eq!(refused, Err(InvalidState::NotRunning));
        }
        let _ = lifecycle.handle_input(Instant::ZERO, Input::Start);
    }
}

#[test]
fn pause_rejected_or_unanswered_is_announced() {
    let mut test = LifecycleTest::running(&plan(0));
    test.actions.clear();
    test.input(Input::Pause).reply(ReplyOutcome::Rejected("no".into()));
    let rejection = |why: &str| Action::AnnounceRejection(PauseRequest::Pause, why.into());
    assert_eq!(test.actions.last(), Some(&rejection("no")));
    test.input(Input::Pause).time_out();
    assert_eq!(test.actions.last(), Some(&rejection("no reply within 30s")));
    assert_eq!(*test.lifecycle.status(), VmStatus::Running);
    // A late reply is still true.
    test.reply(ReplyOutcome::Done);
    assert_eq!(*test.lifecycle.status(), VmStatus::Paused);
    assert_eq!(test.lifecycle.poll_timeout(), None);
}

#[test]
fn stop_of_paused_vm_resumes_guest_first() {
    let mut test = paused(&plan(0));
    test.input(STOP);
    assert_eq!(sent(&mut test), ["resume the guest", "ask"]);
    test.input(Input::Guest(GuestEvent::PoweredOff));
    test.input(Input::HypervisorExited(Exit::with_code(0)));
    assert_eq!(test.report().ended_by, EndedBy::GuestPowerOff);
    // The pause has no reply yet.
    let mut test = LifecycleTest::running(&plan(0));
    test.actions.clear();
    test.input(Input::Pause).input(STOP);
    assert_eq!(sent(&mut test), ["pause the guest", "resume the guest", "ask"]);
}

#[test]
fn kill_of_paused_vm_does_not_resume() {
    let mut test = paused(&plan(0));
    test.input(Input::Kill);
    assert_eq!(sent(&mut test), [""; 0]);
    assert_eq!(*test.lifecycle.status(), VmStatus::Stopping);
}

#[test]
fn time_limit_includes_pauses() {
    let limit = Duration::from_secs(60);
    let plan = LaunchPlan { time_limit: Some(limit), ..plan(0) };
    let mut test = paused(&plan);
    test.now = Instant::ZERO + limit / 2;
    test.input(Input::Resume)
        .reply(ReplyOutcome::Done)
        .input(Input::Pause)
        .reply(ReplyOutcome::Done);
    test.actions.clear();
    assert_eq!(test.lifecycle.poll_timeout().unwrap().at, Instant::ZERO + limit);
    test.time_out();
    assert_eq!(sent(&mut test), ["resume the guest", "ask"]);
}
