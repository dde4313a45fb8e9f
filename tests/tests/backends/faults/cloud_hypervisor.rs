//! A cloud-hypervisor that misbehaves.

use capsa::{Accelerator, EndedBy, Error, StopStep, VmStatus};
use capsa_stand_ins::cloud_hypervisor::{Call, Fault};
use capsa_stand_ins::{Broken, Faulty};
use capsa_testkit::nano::{self, Nano};
use capsa_testkit::vm::PATIENCE;

use super::{
    Change, Claims, FaultyVm, HEEDS_BUTTON, Ladder, Limit, NEVER, SHORT, Text, guest, test_claims,
};
use Broken::{End, Garbage, Half, Silence};
use StopStep::{Killed, PowerButton, Quit};

static CLAIMS: Claims<Fault> = Claims {
    vm,
    socket_after: Fault::SocketAfter,
    failed_starts: &[
        (
            Fault::Breaks(Half, Call::Create),
            Text::Around("cloud-hypervisor did not create the VM: ", ""),
        ),
        (
            Fault::Breaks(Half, Call::Boot),
            Text::Around("cloud-hypervisor did not boot the guest: ", ""),
        ),
        (
            Fault::Breaks(End, Call::Create),
            Text::Around(
                "cloud-hypervisor did not create the VM: HTTP response: connection closed",
                "",
            ),
        ),
        (
            Fault::Breaks(End, Call::Boot),
            Text::Around(
                "cloud-hypervisor did not boot the guest: HTTP response: connection closed",
                "",
            ),
        ),
        (
            Fault::Breaks(Garbage, Call::Create),
            Text::Around("cloud-hypervisor did not create the VM: HTTP response: ", ""),
        ),
        (
            Fault::Breaks(Garbage, Call::Boot),
            Text::Around("cloud-hypervisor did not boot the guest: HTTP response: ", ""),
        ),
        (
            Fault::Refuses(Call::Create),
            Text::Exact(
                "cloud-hypervisor refused to create the VM: Error from API: The VM could not be \
                 created: ",
                Fault::CAUSE,
            ),
        ),
        (
            Fault::Refuses(Call::Boot),
            Text::Exact(
                "cloud-hypervisor refused to boot the guest: Error from API: The VM could not boot: ",
                Fault::CAUSE,
            ),
        ),
        (
            Fault::Dies(Call::Create, 3),
            Text::Exact("cloud-hypervisor exited with status 3: ", Fault::LAST_WORDS),
        ),
        (
            Fault::Dies(Call::Boot, 3),
            Text::Exact("cloud-hypervisor exited with status 3: ", Fault::LAST_WORDS),
        ),
    ],
    hanging_starts: &[
        (Fault::NoSocket, Limit::Launch),
        (Fault::Breaks(Silence, Call::Create), Limit::Boot),
        (Fault::Breaks(Silence, Call::Boot), Limit::Boot),
    ],
    stop_ladders: &[
        Ladder::new(&[Fault::Ignores(Call::PowerButton)], SHORT, &[PowerButton, Quit]),
        // A VMM that refuses the power button gets no grace period.
        Ladder::new(&[Fault::Refuses(Call::PowerButton)], NEVER, &[PowerButton, Quit]),
        Ladder::new(
            &[Fault::Breaks(Garbage, Call::PowerButton), Fault::Ignores(Call::PowerButton)],
            NEVER,
            &[PowerButton, Quit],
        ),
        Ladder {
            dies: true,
            ..Ladder::new(&[Fault::Dies(Call::PowerButton, 4)], NEVER, &[PowerButton])
        },
        Ladder::new(
            &[Fault::Ignores(Call::PowerButton), Fault::Ignores(Call::Quit)],
            SHORT,
            &[PowerButton, Quit, Killed],
        ),
        Ladder::new(
            &[Fault::Ignores(Call::PowerButton), Fault::Breaks(Half, Call::Quit)],
            SHORT,
            &[PowerButton, Quit],
        ),
        Ladder::new(
            &[Fault::Ignores(Call::PowerButton), Fault::Dies(Call::Quit, 5)],
            SHORT,
            &[PowerButton, Quit],
        ),
        // The exchange that hangs blocks the next one, as the single thread of the real one does.
        Ladder::new(
            &[Fault::Ignores(Call::PowerButton), Fault::Breaks(Silence, Call::PowerButton)],
            SHORT,
            &[PowerButton, Quit, Killed],
        ),
    ],
    ignores_sigterm: Fault::IgnoresSigterm,
};

test_claims!(CLAIMS);

fn vm(nano: Nano, faults: &[Fault], change: Change<'_>) -> Option<FaultyVm> {
    let guest = guest(nano)?;
    let faulty = Faulty::cloud_hypervisor(faults);
    let builder = guest
        .builder()
        .backend("cloud-hypervisor")
        .accelerator(Accelerator::Auto)
        .program("cloud-hypervisor", faulty.program())
        .trust_backend();
    FaultyVm::new(builder, change, guest, faulty)
}

fn faulty(fault: Fault) -> Option<FaultyVm> {
    vm(HEEDS_BUTTON, &[fault], &|vm| vm)
}

#[test]
fn boot_reported_but_not_done_can_be_stopped() {
    let Some(it) = faulty(Fault::Ignores(Call::Boot)) else { return };
    it.vm.start().unwrap();
    let mut console = it.vm.console().unwrap();
    let silence = console.wait_for_timeout("NANO", SHORT).unwrap_err();
    assert!(matches!(silence, Error::Timeout { .. }), "{silence}");
    // The power button reaches no guest, so no grace period begins.
    it.stop(NEVER);
    assert_eq!(it.ended(), (EndedBy::Owner, vec![PowerButton, Quit]));
    it.leaves_nothing();
}

/// An event that is not understood may have been a reboot.
#[test]
fn event_invalid_ends_vm() {
    for fault in [Fault::EventGarbage, Fault::EventEndless] {
        let Some(it) = faulty(fault) else { return };
        // The event arrives while the VM starts, or right after.
        let started = it.vm.start();
        let (ended_by, _) = it.ended();
        let (EndedBy::HypervisorLost { reason } | EndedBy::StartFailed { reason }) = &ended_by
        else {
            panic!("{fault:?}: {ended_by:?} {started:?}")
        };
        let want = "cloud-hypervisor tells events that make no sense";
        assert!(reason.contains(want), "{fault:?}: {reason}");
        assert!(matches!(it.vm.status(), VmStatus::Failed { .. }));
        it.leaves_nothing();
    }
}

#[test]
fn event_incomplete_delays_nothing() {
    let Some(it) = faulty(Fault::EventHalf) else { return };
    let mut console = it.ready();
    console.write(b"alive").unwrap();
    console.wait_for_timeout("alive", PATIENCE).unwrap();
    console.write(&[nano::POWER_OFF]).unwrap();
    assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![]));
    it.leaves_nothing();
}

#[test]
fn vcpu_failure_is_not_a_power_off() {
    for fault in [Fault::CpuFails, Fault::CpuFailsAndStays] {
        let Some(it) = faulty(fault) else { return };
        it.ready().write(&[nano::POWER_OFF]).unwrap();
        let (ended_by, _) = it.ended();
        let reason = "cloud-hypervisor cannot go on with a virtual CPU".into();
        assert_eq!(ended_by, EndedBy::HypervisorLost { reason }, "{fault:?}");
        let stderr = it.vm.stop_report().unwrap().exit.unwrap().stderr_tail;
        assert!(stderr.contains(Fault::CPU_FAILED), "{stderr}");
        it.leaves_nothing();
    }
}

#[test]
fn exit_without_event_is_judged_by_status() {
    for (status, failed) in [(0, false), (9, true)] {
        let Some(it) = faulty(Fault::EndsSilently(status)) else { return };
        it.ready().write(&[nano::POWER_OFF]).unwrap();
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
        it.leaves_nothing();
    }
}
