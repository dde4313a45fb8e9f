//! What Capsa makes of a vfkit that misbehaves: a typed error that says what happened, or a report,
//! in bounded time, with no process and no directory left behind.

use std::fs;
use std::time::{Duration, Instant};

use super::{Machine, SOON, are_given_up};
use capsa::{
    Accelerator, Capsa, DiskImage, EndedBy, Error, LinuxBootConfig, LinuxVmBuilder, Overflow,
    RebootPolicy, StopStep, VmStatus,
};
use capsa_stand_ins::vfkit::{Call, Fault};
use capsa_stand_ins::{Broken, Faulty};
use capsa_testkit::nano::{self, Nano};
use capsa_testkit::vm::{NanoGuest, PATIENCE, eventually};

/// `None`, said aloud, where no guest can run.
fn machine(faults: &[Fault]) -> Option<Machine> {
    machine_with(Nano::default(), faults, |builder| builder)
}

fn machine_with(
    nano: Nano,
    faults: &[Fault],
    change: impl FnOnce(LinuxVmBuilder) -> LinuxVmBuilder,
) -> Option<Machine> {
    let guest = match nano.power_button {
        true => NanoGuest::new()?,
        false => NanoGuest::without_power_button()?,
    };
    let initrd = guest.dir().join("initrd");
    fs::write(&initrd, "nothing").unwrap();
    let faulty = Faulty::vfkit(faults);
    let builder = Capsa::vm(LinuxBootConfig::new(guest.kernel()).initrd(initrd))
        .backend("vfkit")
        .accelerator(Accelerator::Auto)
        .program("vfkit", faulty.program())
        .trust_backend()
        .memory_mb(64)
        .no_network()
        .console_enabled();
    Some(Machine::new(change(builder), guest, faulty))
}

#[test]
fn a_service_that_comes_late_is_waited_for() {
    let late = Duration::from_millis(700);
    let Some(it) = machine(&[Fault::SocketAfter(late)]) else { return };
    it.waits_for_its_socket(late);
}

#[test]
fn a_death_on_the_way_up_comes_with_status_and_last_words() {
    for (fault, want) in [
        (Fault::DiesAtStart(1), format!("status 1: {}", Fault::LAST_WORDS)),
        (Fault::Dies(Call::State, 3), format!("status 3: {}", Fault::LAST_WORDS)),
        // vfkit watches over its start by itself.
        (
            Fault::StartTimesOut(Duration::from_millis(300)),
            "timeout waiting for VM state".to_owned(),
        ),
    ] {
        let Some(it) = machine(&[fault]) else { return };
        let why = it.failure();
        assert!(why.starts_with("vfkit exited with status"), "{fault:?}: {why}");
        assert!(why.ends_with(&want), "{fault:?}: {why}");
        it.nothing_is_left(SOON);
    }
}

#[test]
fn an_answer_that_comes_late_and_in_pieces_is_waited_for() {
    let slow = Fault::Breaks(Broken::Slow, Call::State);
    let Some(it) = machine(&[slow]) else { return };
    let mut console = it.listening();
    console.write(&[nano::POWER_OFF]).unwrap();
    assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![]));
    it.nothing_is_left(SOON);
}

#[test]
fn one_that_is_killed_at_any_moment_leaves_nothing() {
    for millis in [0, 1, 3, 8, 20, 50, 100, 150, 200, 300, 500] {
        let Some(it) = machine(&[]) else { return };
        let starting = {
            let vm = it.vm.clone();
            std::thread::spawn(move || vm.start())
        };
        eventually("it runs", || it.vm.hypervisor_pid().is_some());
        std::thread::sleep(Duration::from_millis(millis));
        let pid = it.vm.hypervisor_pid().unwrap().cast_signed();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        let reason = match (starting.join().unwrap(), it.ended().0) {
            (Err(Error::StartFailed(_)), EndedBy::StartFailed { reason }) => reason,
            (Ok(()), EndedBy::HypervisorLost { reason }) => reason,
            other => panic!("after {millis} ms: {other:?}"),
        };
        assert!(reason.starts_with("vfkit was killed by signal 9"), "after {millis} ms: {reason}");
        it.nothing_is_left(SOON);
    }
}

#[test]
fn a_disk_that_cannot_be_cloned_fails_the_start_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.raw");
    fs::write(&image, [0; 4096]).unwrap();
    let disk = |builder: LinuxVmBuilder| builder.disk(DiskImage::new(&image).ephemeral());
    let Some(it) = machine_with(Nano::default(), &[], disk) else { return };
    fs::remove_file(&image).unwrap();
    let why = it.failure();
    assert!(why.contains(&format!("cannot clone {}", image.display())), "{why}");
    it.nothing_is_left(SOON);
}

#[test]
fn a_machine_in_error_fails_the_start() {
    let Some(it) = machine(&[Fault::Error]) else { return };
    let why = it.failure();
    assert!(why.contains("the virtual machine is in the state Error"), "{why}");
    it.nothing_is_left(SOON);
}

#[test]
fn a_state_that_is_refused_fails_the_start_with_its_reason() {
    let Some(it) = machine(&[Fault::Refuses(Call::State)]) else { return };
    let why = it.failure();
    assert!(why.ends_with(Fault::CAUSE), "{why}");
    it.nothing_is_left(SOON);
}

#[test]
fn a_start_that_hangs_is_given_up() {
    let unanswered = "gave up after 30s, waiting until boot message is answered";
    let faults = [
        (Fault::NoSocket, "gave up after 30s, waiting until control is up"),
        (Fault::NeverRuns, unanswered),
        (Fault::Breaks(Broken::Silence, Call::State), unanswered),
        // Whoever cannot be understood is asked again.
        (Fault::Breaks(Broken::Half, Call::State), unanswered),
        (Fault::Breaks(Broken::End, Call::State), unanswered),
        (Fault::Breaks(Broken::Garbage, Call::State), unanswered),
        (Fault::Breaks(Broken::Huge, Call::State), unanswered),
    ];
    are_given_up(faults.map(|(fault, want)| (machine(&[fault]), want)));
}

#[test]
fn a_start_that_hangs_can_be_stopped() {
    for fault in [Fault::NoSocket, Fault::NeverRuns, Fault::Breaks(Broken::Silence, Call::State)] {
        let Some(it) = machine(&[fault]) else { return };
        it.hangs_until_it_is_stopped();
    }
}

#[test]
fn an_answer_to_stop_that_breaks_is_no_matter_where_the_guest_was_told() {
    for fault in [
        Fault::Breaks(Broken::Half, Call::Stop),
        Fault::Breaks(Broken::Silence, Call::Stop),
        Fault::Breaks(Broken::End, Call::Stop),
        Fault::Breaks(Broken::Garbage, Call::Stop),
        Fault::Breaks(Broken::Huge, Call::Stop),
        Fault::Breaks(Broken::Slow, Call::Stop),
    ] {
        let Some(it) = machine(&[fault]) else { return };
        let _console = it.listening();
        it.vm.stop_with_timeout(PATIENCE).unwrap();
        assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![StopStep::PowerButton]), "{fault:?}");
        it.nothing_is_left(SOON);
    }
}

#[test]
fn each_step_of_the_ladder_that_fails_leads_to_the_next() {
    use StopStep::{Killed, PowerButton, Quit};
    let grace = Duration::from_millis(300);
    let heeding = Nano::default();
    let deaf = Nano { power_button: false };
    for (nano, faults, grace, want) in [
        (heeding, &[Fault::Ignores(Call::Stop)][..], grace, &[PowerButton, Quit][..]),
        // One that refuses needs no grace.
        (heeding, &[Fault::Refuses(Call::Stop)], PATIENCE, &[PowerButton, Quit]),
        (deaf, &[], grace, &[PowerButton, Quit]),
        (deaf, &[Fault::IgnoresSigterm], grace, &[PowerButton, Quit, Killed]),
        (heeding, &[Fault::OutlivesItsMachine], grace, &[PowerButton, Quit, Killed]),
        (heeding, &[Fault::Dies(Call::Stop, 4)], PATIENCE, &[PowerButton]),
    ] {
        let Some(it) = machine_with(nano, faults, |it| it) else { return };
        it.climbs(grace, want, matches!(faults, [Fault::Dies(..)]));
    }
}

#[test]
fn a_sigterm_that_is_ignored_changes_nothing() {
    let Some(it) = machine(&[Fault::IgnoresSigterm]) else { return };
    it.survives_a_sigterm();
}

#[test]
fn a_machine_that_breaks_while_it_runs_is_lost_with_the_words_of_vfkit() {
    let Some(it) = machine(&[Fault::EndsInError]) else { return };
    it.listening().write(&[nano::POWER_OFF]).unwrap();
    let (ended_by, steps) = it.ended();
    let EndedBy::HypervisorLost { reason } = &ended_by else { panic!("{ended_by:?}") };
    assert!(reason.contains("vfkit exited with status 1"), "{reason}");
    assert!(reason.contains("hypervisor virtualization error"), "{reason}");
    assert_eq!(steps, []);
    it.nothing_is_left(SOON);
}

/// The nano guest says what it is told, as a guest may that lies.
#[test]
fn a_guest_that_says_that_it_fell_is_taken_at_its_word_and_a_reader_of_logs_is_not() {
    let restart = "\r\n[    1.5] reboot: Restarting system\r\n";
    let panic = "\r\n[    1.5] Kernel panic - not syncing: x\r\n[    1.6] CPU: 0\r\n";
    for (text, want) in [(restart, EndedBy::GuestReboot), (panic, EndedBy::GuestPanic)] {
        for faults in [
            &[][..],
            &[Fault::Breaks(Broken::Silence, Call::HardStop)],
            &[Fault::Breaks(Broken::Half, Call::HardStop)],
        ] {
            let Some(it) = machine(faults) else { return };
            let mut console = it.listening();
            console.write(format!("{text}# ").as_bytes()).unwrap();
            console.wait_for_timeout("# ", PATIENCE).unwrap();
            std::thread::sleep(Duration::from_millis(600));
            assert_eq!(it.vm.status(), VmStatus::Running, "somebody goes on: {text:?}");
            console.write(text.as_bytes()).unwrap();
            assert_eq!(it.ended(), (want.clone(), vec![StopStep::Quit]), "{faults:?}");
            it.nothing_is_left(SOON);
        }
    }
}

#[test]
fn a_fallen_guest_whose_power_cannot_be_cut_is_killed() {
    let Some(it) = machine(&[Fault::Ignores(Call::HardStop)]) else { return };
    it.listening().write(b"\r\nreboot: Restarting system\r\n").unwrap();
    assert_eq!(it.ended(), (EndedBy::GuestReboot, vec![StopStep::Quit, StopStep::Killed]));
    it.nothing_is_left(SOON);
}

#[test]
fn a_guest_that_is_to_boot_again_may_say_what_it_likes() {
    let restart = |builder: LinuxVmBuilder| builder.on_reboot(RebootPolicy::Restart);
    let it = machine_with(Nano::default(), &[], restart);
    let Some(it) = it else { return };
    let mut console = it.listening();
    console.write(b"\r\nKernel panic - not syncing: x\r\nreboot: Restarting system\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(it.vm.status(), VmStatus::Running);
    console.write(&[nano::POWER_OFF]).unwrap();
    assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![]));
    it.nothing_is_left(SOON);
}

#[test]
fn nobody_reading_the_console_holds_up_neither_start_nor_stop() {
    let heard = (EndedBy::GuestPowerOff, vec![StopStep::PowerButton]);
    // The log is full, so the terminal is, so the guest waits: it does not get to see its button.
    let stuck = (EndedBy::Owner, vec![StopStep::PowerButton, StopStep::Quit]);
    for (overflow, want) in [(Overflow::DropOldest, heard), (Overflow::Pause, stuck)] {
        let full = |builder: LinuxVmBuilder| builder.scrollback(1024, overflow);
        let it = machine_with(Nano::default(), &[], full);
        let Some(it) = it else { return };
        it.vm.start().unwrap();
        let mut console = it.vm.console().unwrap();
        console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
        // A reader that never reads again, and a guest that says more than fits anywhere.
        console.write(&[nano::FLOOD]).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let begin = Instant::now();
        it.vm.stop_with_timeout(Duration::from_millis(500)).unwrap();
        assert_eq!(it.ended(), want, "{overflow:?}");
        assert!(begin.elapsed() < SOON, "{overflow:?}: {:?}", begin.elapsed());
        it.nothing_is_left(SOON);
    }
}
