//! A vfkit that misbehaves, and guests that print lines that vfkit's backend treats as a crash.

use std::fs;
use std::time::Duration;

use capsa::console::Overflow;
use capsa::internal::BuilderForTests as _;
use capsa::{
    Accelerator, Capsa, DiskImage, EndedBy, Error, LinuxBootConfig, LinuxVmBuilder, RebootPolicy,
    StopStep, VmStatus,
};
use capsa_stand_ins::vfkit::{VfkitCall, VfkitFault};
use capsa_stand_ins::{BrokenReply, FaultyStandIn};
use capsa_testkit::nano::{self, Nano};
use capsa_testkit::vm::{PATIENCE, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{
    Change, Claims, FaultyVm, HEEDS_BUTTON, IGNORES_BUTTON, Ladder, Limit, NEVER, SHORT, Text,
    guest, test_claims,
};
use BrokenReply::{End, Garbage, Half, Huge, Silence, Slow};
use StopStep::{Killed, PowerButton, Quit};

/// Longer than the backend waits for output after a line that looks like a crash.
const AFTER_CRASH: Duration = Duration::from_millis(600);

static CLAIMS: Claims<VfkitFault> = Claims {
    vm,
    socket_after: VfkitFault::SocketAfter,
    failed_starts: &[
        (
            VfkitFault::ExitsAtStart(1),
            Text::Exact("vfkit exited with status 1: ", VfkitFault::STDERR_LINE),
        ),
        (
            VfkitFault::Exits(VfkitCall::State, 3),
            Text::Exact("vfkit exited with status 3: ", VfkitFault::STDERR_LINE),
        ),
        // vfkit has a time limit of its own for its start.
        (
            VfkitFault::StartTimesOut(Duration::from_millis(300)),
            Text::Around("vfkit exited with status", "timeout waiting for VM state"),
        ),
        (VfkitFault::Error, Text::Contains("the VM is in the state Error")),
        (VfkitFault::Rejects(VfkitCall::State), Text::Around("", VfkitFault::CAUSE)),
    ],
    hanging_starts: &[
        (VfkitFault::NoSocket, Limit::Launch),
        (VfkitFault::NeverRuns, Limit::Boot),
        (VfkitFault::BreaksReply(Silence, VfkitCall::State), Limit::Boot),
        // The backend repeats a request whose reply it cannot parse.
        (VfkitFault::BreaksReply(Half, VfkitCall::State), Limit::Boot),
        (VfkitFault::BreaksReply(End, VfkitCall::State), Limit::Boot),
        (VfkitFault::BreaksReply(Garbage, VfkitCall::State), Limit::Boot),
        (VfkitFault::BreaksReply(Huge, VfkitCall::State), Limit::Boot),
    ],
    stop_ladders: &[
        Ladder::new(&[VfkitFault::Ignores(VfkitCall::Stop)], SHORT, &[PowerButton, Quit]),
        // A VMM that refuses the power button gets no grace period.
        Ladder::new(&[VfkitFault::Rejects(VfkitCall::Stop)], NEVER, &[PowerButton, Quit]),
        Ladder { guest: IGNORES_BUTTON, ..Ladder::new(&[], SHORT, &[PowerButton, Quit]) },
        Ladder {
            guest: IGNORES_BUTTON,
            ..Ladder::new(&[VfkitFault::IgnoresSigterm], SHORT, &[PowerButton, Quit, Killed])
        },
        Ladder::new(&[VfkitFault::OutlivesVm], SHORT, &[PowerButton, Quit, Killed]),
        Ladder {
            dies: true,
            ..Ladder::new(&[VfkitFault::Exits(VfkitCall::Stop, 4)], NEVER, &[PowerButton])
        },
    ],
    ignores_sigterm: VfkitFault::IgnoresSigterm,
};

test_claims!(CLAIMS);

fn vm(nano: Nano, faults: &[VfkitFault], change: Change<'_>) -> Option<FaultyVm> {
    let guest = guest(nano)?;
    let initrd = guest.dir().join("initrd");
    fs::write(&initrd, "nothing").unwrap();
    let faulty = FaultyStandIn::vfkit(faults);
    let builder = Capsa::vm(LinuxBootConfig::new(guest.kernel()).initrd(initrd))
        .backend("vfkit")
        .accelerator(Accelerator::Auto)
        .program("vfkit", faulty.program())
        .trust_backend()
        .memory_mb(64)
        .no_network()
        .console_enabled();
    FaultyVm::new(builder, change, guest, faulty)
}

fn faulty(faults: &[VfkitFault]) -> Option<FaultyVm> {
    vm(HEEDS_BUTTON, faults, &|vm| vm)
}

#[test]
fn reply_slow_and_in_pieces_is_awaited() {
    let Some(it) = faulty(&[VfkitFault::BreaksReply(Slow, VfkitCall::State)]) else { return };
    let mut console = it.ready();
    console.write(&[nano::POWER_OFF]).unwrap();
    assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![]));
    it.leaves_nothing();
}

#[test]
fn kill_at_any_moment_leaves_nothing() {
    let mut kills = Vec::new();
    for millis in [0, 1, 3, 8, 20, 50, 100, 150, 200, 300, 500] {
        let Some(it) = faulty(&[]) else { return };
        kills.push(std::thread::spawn(move || kill_while_starting(it, millis)));
    }
    for kill in kills {
        kill.join().unwrap();
    }
}

fn kill_while_starting(it: FaultyVm, millis: u64) {
    let starting = {
        let vm = it.vm.clone();
        std::thread::spawn(move || vm.start())
    };
    eventually("the VMM runs", || it.vm.hypervisor_pid().is_some());
    std::thread::sleep(Duration::from_millis(millis));
    let pid = it.vm.hypervisor_pid().unwrap().cast_signed();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let reason = match (starting.join().unwrap(), it.ended().0) {
        (Err(Error::StartFailed(_)), EndedBy::StartFailed { error }) => error.to_string(),
        (Ok(()), EndedBy::HypervisorLost { reason }) => reason,
        other => panic!("after {millis} ms: {other:?}"),
    };
    assert!(reason.starts_with("vfkit was killed by signal 9"), "after {millis} ms: {reason}");
    it.leaves_nothing();
}

#[test]
fn start_disk_not_cloneable_names_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.raw");
    fs::write(&image, [0; 4096]).unwrap();
    let disk = |builder: LinuxVmBuilder| builder.disk(DiskImage::new(&image).ephemeral());
    let Some(it) = vm(HEEDS_BUTTON, &[], &disk) else { return };
    fs::remove_file(&image).unwrap();
    let reason = it.start_error();
    assert!(reason.contains(&format!("cannot clone {}", image.display())), "{reason}");
    it.leaves_nothing();
}

#[test]
fn stop_reply_broken_is_ignored() {
    for broken in [Half, Silence, End, Garbage, Huge, Slow] {
        let Some(it) = faulty(&[VfkitFault::BreaksReply(broken, VfkitCall::Stop)]) else { return };
        let _console = it.ready();
        it.stop(NEVER);
        assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![PowerButton]), "{broken:?}");
        it.leaves_nothing();
    }
}

#[test]
fn error_state_while_running_names_vfkits_error() {
    let Some(it) = faulty(&[VfkitFault::EndsInError]) else { return };
    it.ready().write(&[nano::POWER_OFF]).unwrap();
    let (ended_by, steps) = it.ended();
    let EndedBy::HypervisorLost { reason } = &ended_by else { panic!("{ended_by:?}") };
    assert!(reason.contains("vfkit exited with status 1"), "{reason}");
    assert!(reason.contains("hypervisor virtualization error"), "{reason}");
    assert_eq!(steps, []);
    it.leaves_nothing();
}

/// The nano guest echoes such a line, as a hostile guest may print it.
#[test]
fn crash_text_ends_vm_only_as_last_output() {
    let restart = "\r\n[    1.500000] reboot: Restarting system\r\n";
    let panic = "\r\n[    1.500000] Kernel panic - not syncing: x\r\n[    1.600000] CPU: 0\r\n";
    let mut checks = Vec::new();
    for (text, want) in [(restart, EndedBy::GuestReboot), (panic, EndedBy::GuestPanic)] {
        for faults in [
            &[][..],
            &[VfkitFault::BreaksReply(Silence, VfkitCall::HardStop)],
            &[VfkitFault::BreaksReply(Half, VfkitCall::HardStop)],
        ] {
            let Some(it) = faulty(faults) else { return };
            let want = want.clone();
            checks.push(std::thread::spawn(move || {
                let mut console = it.ready();
                console.write(format!("{text}# ").as_bytes()).unwrap();
                console.wait_for_timeout("# ", PATIENCE).unwrap();
                std::thread::sleep(AFTER_CRASH);
                assert_eq!(it.vm.status(), VmStatus::Running, "more output followed {text:?}");
                console.write(text.as_bytes()).unwrap();
                assert_eq!(it.ended(), (want, vec![Quit]), "{faults:?}");
                it.leaves_nothing();
            }));
        }
    }
    for check in checks {
        check.join().unwrap();
    }
}

#[test]
fn crashed_guest_that_cannot_be_stopped_is_killed() {
    let quit = |vm: LinuxVmBuilder| vm.timing(|timing| timing.quit = SHORT);
    let Some(it) = vm(HEEDS_BUTTON, &[VfkitFault::Ignores(VfkitCall::HardStop)], &quit) else {
        return;
    };
    it.ready().write(b"\r\nreboot: Restarting system\r\n").unwrap();
    assert_eq!(it.ended(), (EndedBy::GuestReboot, vec![Quit, Killed]));
    it.leaves_nothing();
}

#[test]
fn crash_text_of_restarting_guest_ends_nothing() {
    let restart = |builder: LinuxVmBuilder| builder.on_reboot(RebootPolicy::Restart);
    let Some(it) = vm(HEEDS_BUTTON, &[], &restart) else { return };
    let mut console = it.ready();
    console.write(b"\r\nKernel panic - not syncing: x\r\nreboot: Restarting system\r\n").unwrap();
    std::thread::sleep(AFTER_CRASH);
    assert_eq!(it.vm.status(), VmStatus::Running);
    console.write(&[nano::POWER_OFF]).unwrap();
    assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![]));
    it.leaves_nothing();
}

#[test]
fn console_unread_delays_no_stop() {
    let powered_off = (EndedBy::GuestPowerOff, vec![PowerButton]);
    // The scrollback is full, so the terminal is full, so the guest is paused in its output and does
    // not see the power button.
    let paused = (EndedBy::Owner, vec![PowerButton, Quit]);
    for (overflow, grace, want) in
        [(Overflow::DropOldest, NEVER, powered_off), (Overflow::Pause, SHORT, paused)]
    {
        let full = |builder: LinuxVmBuilder| builder.scrollback(1024, overflow);
        let Some(it) = vm(HEEDS_BUTTON, &[], &full) else { return };
        let mut console = it.ready();
        // More output than all buffers hold. The reader reads the beginning and then stops reading.
        console.write(&[nano::FLOOD]).unwrap();
        console.wait_for_timeout("ABCDEFGH", PATIENCE).unwrap();
        it.stop(grace);
        assert_eq!(it.ended(), want, "{overflow:?}");
        it.leaves_nothing();
    }
}
