//! A cloud-hypervisor that misbehaves.

use capsa::internal::BuilderForTests as _;
use capsa::{Accelerator, EndedBy, Error, StopStep, VmStatus};
use capsa_stand_ins::cloud_hypervisor::{ChvCall, ChvFault};
use capsa_stand_ins::{BrokenReply, FaultyStandIn};
use capsa_testkit::nano::{self, Nano};
use capsa_testkit::vm::PATIENCE;

use super::{
    Change, Claims, FaultyVm, HEEDS_BUTTON, Ladder, Limit, NEVER, SHORT, Text, guest, test_claims,
};
use BrokenReply::{End, Garbage, Half, Silence};
use StopStep::{Killed, PowerButton, Quit};

static CLAIMS: Claims<ChvFault> = Claims {
    vm,
    socket_after: ChvFault::SocketAfter,
    failed_starts: &[
        (
            ChvFault::BreaksReply(Half, ChvCall::Create),
            Text::Around("cloud-hypervisor failed to create the VM: ", ""),
        ),
        (
            ChvFault::BreaksReply(Half, ChvCall::Boot),
            Text::Around("cloud-hypervisor failed to boot the guest: ", ""),
        ),
        (
            ChvFault::BreaksReply(End, ChvCall::Create),
            Text::Around(
                "cloud-hypervisor failed to create the VM: HTTP response: connection closed",
                "",
            ),
        ),
        (
            ChvFault::BreaksReply(End, ChvCall::Boot),
            Text::Around(
                "cloud-hypervisor failed to boot the guest: HTTP response: connection closed",
                "",
            ),
        ),
        (
            ChvFault::BreaksReply(Garbage, ChvCall::Create),
            Text::Around("cloud-hypervisor failed to create the VM: HTTP response: ", ""),
        ),
        (
            ChvFault::BreaksReply(Garbage, ChvCall::Boot),
            Text::Around("cloud-hypervisor failed to boot the guest: HTTP response: ", ""),
        ),
        (
            ChvFault::Rejects(ChvCall::Create),
            Text::Exact(
                "cloud-hypervisor failed to create the VM: Error from API: The VM could not be \
                 created: ",
                ChvFault::CAUSE,
            ),
        ),
        (
            ChvFault::Rejects(ChvCall::Boot),
            Text::Exact(
                "cloud-hypervisor failed to boot the guest: Error from API: The VM could not boot: ",
                ChvFault::CAUSE,
            ),
        ),
        (
            ChvFault::Exits(ChvCall::Create, 3),
            Text::Exact("cloud-hypervisor exited with status 3: ", ChvFault::STDERR_LINE),
        ),
        (
            ChvFault::Exits(ChvCall::Boot, 3),
            Text::Exact("cloud-hypervisor exited with status 3: ", ChvFault::STDERR_LINE),
        ),
    ],
    hanging_starts: &[
        (ChvFault::NoSocket, Limit::Boot),
        (ChvFault::BreaksReply(Silence, ChvCall::Create), Limit::Boot),
        (ChvFault::BreaksReply(Silence, ChvCall::Boot), Limit::Boot),
    ],
    stop_ladders: &[
        Ladder::new(&[ChvFault::Ignores(ChvCall::PowerButton)], SHORT, &[PowerButton, Quit]),
        // A VMM that refuses the power button gets no grace period.
        Ladder::new(&[ChvFault::Rejects(ChvCall::PowerButton)], NEVER, &[PowerButton, Quit]),
        Ladder::new(
            &[
                ChvFault::BreaksReply(Garbage, ChvCall::PowerButton),
                ChvFault::Ignores(ChvCall::PowerButton),
            ],
            NEVER,
            &[PowerButton, Quit],
        ),
        Ladder {
            dies: true,
            ..Ladder::new(&[ChvFault::Exits(ChvCall::PowerButton, 4)], NEVER, &[PowerButton])
        },
        Ladder::new(
            &[ChvFault::Ignores(ChvCall::PowerButton), ChvFault::Ignores(ChvCall::Quit)],
            SHORT,
            &[PowerButton, Quit, Killed],
        ),
        Ladder::new(
            &[ChvFault::Ignores(ChvCall::PowerButton), ChvFault::BreaksReply(Half, ChvCall::Quit)],
            SHORT,
            &[PowerButton, Quit],
        ),
        Ladder::new(
            &[ChvFault::Ignores(ChvCall::PowerButton), ChvFault::Exits(ChvCall::Quit, 5)],
            SHORT,
            &[PowerButton, Quit],
        ),
        // An exchange that hangs blocks the next one: the real one has a single API thread.
        Ladder::new(
            &[
                ChvFault::Ignores(ChvCall::PowerButton),
                ChvFault::BreaksReply(Silence, ChvCall::PowerButton),
            ],
            SHORT,
            &[PowerButton, Quit, Killed],
        ),
    ],
    ignores_sigterm: ChvFault::IgnoresSigterm,
};

test_claims!(CLAIMS);

fn vm(nano: Nano, faults: &[ChvFault], change: Change<'_>) -> Option<FaultyVm> {
    let guest = guest(nano)?;
    let faulty = FaultyStandIn::cloud_hypervisor(faults);
    let builder = guest
        .builder()
        .backend("cloud-hypervisor")
        .accelerator(Accelerator::Auto)
        .program("cloud-hypervisor", faulty.program())
        .trust_backend();
    FaultyVm::new(builder, change, guest, faulty)
}

fn faulty(fault: ChvFault) -> Option<FaultyVm> {
    vm(HEEDS_BUTTON, &[fault], &|vm| vm)
}

#[test]
fn boot_reported_but_not_done_can_be_stopped() {
    let Some(it) = faulty(ChvFault::Ignores(ChvCall::Boot)) else { return };
    it.vm.start().unwrap();
    let mut console = it.vm.console().unwrap();
    let silence = console.wait_for_timeout("NANO", SHORT).unwrap_err();
    assert!(matches!(silence, Error::Timeout { .. }), "{silence}");
    // The power button reaches no guest, so no grace period begins.
    it.stop(NEVER);
    assert_eq!(it.ended(), (EndedBy::Owner, vec![PowerButton, Quit]));
    it.leaves_nothing();
}

/// An event that cannot be parsed may have been a reboot.
#[test]
fn event_invalid_ends_vm() {
    for fault in [ChvFault::EventGarbage, ChvFault::EventEndless] {
        let Some(it) = faulty(fault) else { return };
        // The event arrives while the VM starts, or right after.
        let started = it.vm.start();
        let (ended_by, _) = it.ended();
        let reason = match ended_by {
            EndedBy::HypervisorLost { reason } => reason,
            EndedBy::StartFailed { error } => error.to_string(),
            other => panic!("{fault:?}: {other:?} {started:?}"),
        };
        let want = "cloud-hypervisor sent invalid events";
        assert!(reason.contains(want), "{fault:?}: {reason}");
        assert!(matches!(it.vm.status(), VmStatus::Failed { .. }));
        it.leaves_nothing();
    }
}

#[test]
fn event_incomplete_delays_nothing() {
    let Some(it) = faulty(ChvFault::EventHalf) else { return };
    let mut console = it.ready();
    console.write(b"alive").unwrap();
    console.wait_for_timeout("alive", PATIENCE).unwrap();
    console.write(&[nano::POWER_OFF]).unwrap();
    assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![]));
    it.leaves_nothing();
}

#[test]
fn vcpu_failure_is_not_a_power_off() {
    for fault in [ChvFault::CpuFails, ChvFault::CpuFailsAndStays] {
        let Some(it) = faulty(fault) else { return };
        it.ready().write(&[nano::POWER_OFF]).unwrap();
        let (ended_by, _) = it.ended();
        let reason = "cloud-hypervisor reported a vCPU failure".into();
        assert_eq!(ended_by, EndedBy::HypervisorLost { reason }, "{fault:?}");
        let stderr = it.vm.stop_report().unwrap().exit.unwrap().stderr_tail;
        assert!(stderr.contains(ChvFault::CPU_FAILED), "{stderr}");
        it.leaves_nothing();
    }
}

#[test]
fn exit_without_event_is_judged_by_status() {
    for (status, failed) in [(0, false), (9, true)] {
        let Some(it) = faulty(ChvFault::EndsSilently(status)) else { return };
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
