//! What Capsa makes of a cloud-hypervisor that misbehaves: a typed error that says what happened,
//! or a report, in bounded time, with no process and no directory left behind.

use std::time::Duration;

use super::{Machine, SOON, are_given_up};
use capsa::{EndedBy, Error, LinuxVmBuilder, StopStep, VmStatus};
use capsa_stand_ins::cloud_hypervisor::{Call, Fault};
use capsa_stand_ins::{Broken, Faulty};
use capsa_testkit::nano;
use capsa_testkit::vm::{NanoGuest, PATIENCE};

/// `None`, said aloud, where no guest can run.
fn machine(faults: &[Fault]) -> Option<Machine> {
    machine_with(faults, |builder| builder)
}

fn machine_with(
    faults: &[Fault],
    change: impl FnOnce(LinuxVmBuilder) -> LinuxVmBuilder,
) -> Option<Machine> {
    let guest = NanoGuest::new()?;
    let faulty = Faulty::cloud_hypervisor(faults);
    let builder = guest
        .builder()
        .backend("cloud-hypervisor")
        .accelerator(capsa::Accelerator::Auto)
        .program("cloud-hypervisor", faulty.program())
        .trust_backend();
    Some(Machine::new(change(builder), guest, faulty))
}

#[test]
fn a_socket_that_comes_late_is_waited_for() {
    let late = Duration::from_millis(700);
    let Some(it) = machine(&[Fault::SocketAfter(late)]) else { return };
    it.waits_for_its_socket(late);
}

#[test]
fn a_broken_answer_is_a_failed_start_that_says_so() {
    for (fault, want) in [
        (Fault::Breaks(Broken::Half, Call::Create), "did not create the machine: "),
        (Fault::Breaks(Broken::Half, Call::Boot), "did not boot the guest: "),
        (
            Fault::Breaks(Broken::End, Call::Create),
            "did not create the machine: HTTP response: connection closed",
        ),
        (
            Fault::Breaks(Broken::End, Call::Boot),
            "did not boot the guest: HTTP response: connection closed",
        ),
        (
            Fault::Breaks(Broken::Garbage, Call::Create),
            "did not create the machine: HTTP response: ",
        ),
        (Fault::Breaks(Broken::Garbage, Call::Boot), "did not boot the guest: HTTP response: "),
    ] {
        let Some(it) = machine(&[fault]) else { return };
        let reason = it.failure();
        assert!(reason.starts_with(&format!("cloud-hypervisor {want}")), "{fault:?}: {reason}");
        it.nothing_is_left(SOON);
    }
}

#[test]
fn a_refusal_comes_with_its_causes() {
    for (call, want) in [
        (Call::Create, "create the machine: Error from API: The VM could not be created"),
        (Call::Boot, "boot the guest: Error from API: The VM could not boot"),
    ] {
        let Some(it) = machine(&[Fault::Refuses(call)]) else { return };
        assert_eq!(it.failure(), format!("cloud-hypervisor refused to {want}: {}", Fault::CAUSE));
        it.nothing_is_left(SOON);
    }
}

#[test]
fn a_death_on_the_way_up_comes_with_status_and_last_words() {
    for call in [Call::Create, Call::Boot] {
        let Some(it) = machine(&[Fault::Dies(call, 3)]) else { return };
        let want = format!("cloud-hypervisor exited with status 3: {}", Fault::LAST_WORDS);
        assert_eq!(it.failure(), want);
        it.nothing_is_left(SOON);
    }
}

#[test]
fn a_start_that_hangs_is_given_up() {
    let faults = [
        (Fault::NoSocket, "gave up after 30s, waiting until control is up"),
        (
            Fault::Breaks(Broken::Silence, Call::Create),
            "gave up after 30s, waiting until boot message is answered",
        ),
        (
            Fault::Breaks(Broken::Silence, Call::Boot),
            "gave up after 30s, waiting until boot message is answered",
        ),
    ];
    are_given_up(faults.map(|(fault, want)| (machine(&[fault]), want)));
}

#[test]
fn a_start_that_hangs_can_be_stopped() {
    for fault in [
        Fault::NoSocket,
        Fault::Breaks(Broken::Silence, Call::Create),
        Fault::Breaks(Broken::Silence, Call::Boot),
    ] {
        let Some(it) = machine(&[fault]) else { return };
        it.hangs_until_it_is_stopped();
    }
}

#[test]
fn a_boot_that_was_only_claimed_can_be_ended() {
    let Some(it) = machine(&[Fault::Ignores(Call::Boot)]) else { return };
    it.vm.start().unwrap();
    let mut console = it.vm.console().unwrap();
    let silence = console.wait_for_timeout("NANO", Duration::from_millis(300)).unwrap_err();
    assert!(matches!(silence, Error::Timeout { .. }), "{silence}");
    // Nobody can be asked, so there is no grace to wait for.
    it.vm.stop_with_timeout(PATIENCE).unwrap();
    assert_eq!(it.ended(), (EndedBy::Owner, vec![StopStep::PowerButton, StopStep::Quit]));
    it.nothing_is_left(SOON);
}

#[test]
fn each_step_of_the_ladder_that_fails_leads_to_the_next() {
    use StopStep::{Killed, PowerButton, Quit};
    let grace = Duration::from_millis(300);
    for (faults, grace, want) in [
        (&[Fault::Ignores(Call::PowerButton)][..], grace, &[PowerButton, Quit][..]),
        // One that refuses needs no grace.
        (&[Fault::Refuses(Call::PowerButton)], PATIENCE, &[PowerButton, Quit]),
        (
            &[Fault::Breaks(Broken::Garbage, Call::PowerButton), Fault::Ignores(Call::PowerButton)],
            PATIENCE,
            &[PowerButton, Quit],
        ),
        (&[Fault::Dies(Call::PowerButton, 4)], PATIENCE, &[PowerButton]),
        (
            &[Fault::Ignores(Call::PowerButton), Fault::Ignores(Call::Quit)],
            grace,
            &[PowerButton, Quit, Killed],
        ),
        (
            &[Fault::Ignores(Call::PowerButton), Fault::Breaks(Broken::Half, Call::Quit)],
            grace,
            &[PowerButton, Quit],
        ),
        (
            &[Fault::Ignores(Call::PowerButton), Fault::Dies(Call::Quit, 5)],
            grace,
            &[PowerButton, Quit],
        ),
        // The exchange that hangs holds back the next, as the real one's single thread would.
        (
            &[Fault::Ignores(Call::PowerButton), Fault::Breaks(Broken::Silence, Call::PowerButton)],
            grace,
            &[PowerButton, Quit, Killed],
        ),
    ] {
        let Some(it) = machine(faults) else { return };
        it.climbs(grace, want, matches!(faults, [Fault::Dies(..)]));
    }
}

#[test]
fn a_sigterm_that_is_ignored_changes_nothing() {
    let Some(it) = machine(&[Fault::IgnoresSigterm]) else { return };
    it.survives_a_sigterm();
}

#[test]
fn events_that_make_no_sense_end_the_machine_for_a_reboot_would_go_unseen() {
    for fault in [Fault::EventGarbage, Fault::EventEndless] {
        let Some(it) = machine(&[fault]) else { return };
        // It may be noticed while it starts or right after.
        let started = it.vm.start();
        let (ended_by, _) = it.ended();
        let (EndedBy::HypervisorLost { reason } | EndedBy::StartFailed { reason }) = &ended_by
        else {
            panic!("{fault:?}: {ended_by:?} {started:?}")
        };
        assert!(
            reason.contains("cloud-hypervisor tells events that make no sense"),
            "{fault:?}: {reason}"
        );
        assert!(matches!(it.vm.status(), VmStatus::Failed { .. }));
        it.nothing_is_left(SOON);
    }
}

#[test]
fn an_event_that_never_ends_is_no_obstacle_to_the_end() {
    let Some(it) = machine(&[Fault::EventHalf]) else { return };
    let mut console = it.listening();
    console.write(b"alive").unwrap();
    console.wait_for_timeout("alive", PATIENCE).unwrap();
    console.write(&[nano::POWER_OFF]).unwrap();
    assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![]));
    it.nothing_is_left(SOON);
}

#[test]
fn a_cpu_that_failed_is_no_power_off_whether_or_not_the_process_stays() {
    for fault in [Fault::CpuFails, Fault::CpuFailsAndStays] {
        let Some(it) = machine(&[fault]) else { return };
        it.listening().write(&[nano::POWER_OFF]).unwrap();
        let (ended_by, _) = it.ended();
        let reason = "cloud-hypervisor cannot go on with a virtual CPU".into();
        assert_eq!(ended_by, EndedBy::HypervisorLost { reason }, "{fault:?}");
        let stderr = it.vm.stop_report().unwrap().exit.unwrap().stderr_tail;
        assert!(stderr.contains(Fault::CPU_FAILED), "{stderr}");
        it.nothing_is_left(SOON);
    }
}

#[test]
fn an_end_without_an_event_is_told_by_its_status() {
    for (status, failed) in [(0, false), (9, true)] {
        let Some(it) = machine(&[Fault::EndsSilently(status)]) else { return };
        it.listening().write(&[nano::POWER_OFF]).unwrap();
        let (ended_by, steps) = it.ended();
        assert_eq!(steps, []);
        match ended_by {
            EndedBy::GuestPowerOff => assert!(!failed),
            EndedBy::HypervisorLost { reason } => {
                assert!(failed && reason.contains("status 9"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(matches!(it.vm.status(), VmStatus::Failed { .. }), failed);
        it.nothing_is_left(SOON);
    }
}
