//! The event loops of the examples drive a simulated guest, the nano guest and Linux.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::loops::*;
use capsa::embed::{Ended, Outcome, Vm, VmEvent};
use capsa::testing::{self, GuestReply, ScriptedGuest};
use capsa::{Accelerator, EndedBy, StopStep};
use capsa_conformance::Subject;
use capsa_testkit::vm::{self, NanoGuest, PATIENCE};
use capsa_testkit::{fake, nano, run_isolated, skip};

type OnEvent = Box<dyn FnMut(&mut Vm, VmEvent) + Send>;
type Run = fn(Vm, OnEvent) -> io::Result<Vm>;

/// The output of `uname`, of a real or a simulated Linux.
const RELEASE: &str = "uname -r: 6.";

const ASKED: &[StopStep] = &[StopStep::PowerButton];

const LOOPS: &[(&str, Run)] = &[
    ("poll", loop_poll::run),
    ("mio", loop_mio::run),
    ("tokio on one thread", loop_tokio::run_on_one),
    ("tokio on many threads", loop_tokio::run_on_many),
    ("smol", loop_smol::run_on_smol),
    ("async-io", loop_smol::run_on_async_io),
    ("calloop", loop_calloop::run),
    ("io_uring", loop_io_uring::run),
    ("many VMs", run_among_others),
];

/// The loop with the real guest; the others use simulated guests.
fn run_among_others(vm: Vm, on_event: OnEvent) -> io::Result<Vm> {
    let mut members: Vec<loop_many::Member> = vec![(vm, on_event)];
    for _ in 0..3 {
        let mut vm = guest::simulated().unwrap();
        let (on_event, _lines) = as_root(&mut vm);
        members.push((vm, on_event));
    }
    loop_many::run(&mut members)?;
    Ok(members.swap_remove(0).0)
}

/// Drives such a VM with every loop, and checks how it ended.
fn on_each_loop(
    new_vm: impl Fn() -> Vm,
    conversation: impl Fn(&mut Vm) -> (OnEvent, Receiver<String>),
    expected: &str,
    steps: &[StopStep],
) {
    for (name, run) in LOOPS {
        if *name == "io_uring"
            && let Err(error) = compio_driver::Proactor::new()
        {
            skip(format!("no io_uring here: {error}"));
            continue;
        }
        let mut vm = new_vm();
        let (on_event, lines) = conversation(&mut vm);
        let vm = run(vm, on_event).unwrap_or_else(|error| panic!("{name}: {error}"));
        let lines: Vec<String> = lines.iter().collect();
        let report = vm.stop_report().unwrap();
        let how = (report.ended_by, report.steps.as_slice());
        assert_eq!(how, (EndedBy::GuestPowerOff, steps), "{name}: {lines:?}");
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{name}: {lines:?}");
    }
}

/// The event handler of the examples, and the lines that it logs.
fn as_root(vm: &mut Vm) -> (OnEvent, Receiver<String>) {
    let (sender, lines) = channel();
    let log = move |line| drop(sender.send(line));
    (Box::new(guest::event_handler(vm, log).unwrap()), lines)
}

/// The same with a guest that has no shell and echoes its input.
fn with_nano(vm: &mut Vm) -> (OnEvent, Receiver<String>) {
    with_nano_until(vm, |vm| vm.stop().unwrap())
}

/// For a guest that does not find its power button: the console makes it power off.
fn with_nano_without_button(vm: &mut Vm) -> (OnEvent, Receiver<String>) {
    with_nano_until(vm, |vm| assert_eq!(vm.write(&[nano::POWER_OFF]).unwrap(), 1))
}

fn with_nano_until(vm: &mut Vm, end: fn(&mut Vm)) -> (OnEvent, Receiver<String>) {
    let (sender, lines) = channel();
    vm.start().unwrap();
    let reader = vm.add_reader();
    let prompt = std::str::from_utf8(nano::READY).unwrap();
    let up = vm.wait_for_any(reader, &[prompt], Some(PATIENCE)).unwrap();
    let mut echo = None;
    let on_event = move |vm: &mut Vm, event| {
        let VmEvent::Ended(wait) = event else { return };
        let ended = vm.take_ended(wait);
        assert!(matches!(&ended, Some(Ended::Expect(Outcome::Matched { .. }))), "{ended:?}");
        if wait == up {
            assert_eq!(vm.write(b"hello").unwrap(), 5);
            echo = Some(vm.wait_for_any(reader, &["hello"], Some(PATIENCE)).unwrap());
        } else if Some(wait) == echo {
            sender.send("hello".to_owned()).unwrap();
            end(vm);
        }
    };
    (Box::new(on_event), lines)
}

#[test]
fn loops_drive_simulated_guest() {
    on_each_loop(|| guest::simulated().unwrap(), as_root, RELEASE, ASKED);
}

#[test]
fn loops_drive_nano_guest() {
    let Some(guest) = NanoGuest::new() else { return };
    on_each_loop(|| guest.builder().build_embedded().unwrap(), with_nano, "hello", ASKED);
}

#[test]
fn loops_drive_real_cloud_hypervisor() {
    let guest = NanoGuest::for_any(nano::Nano::default());
    let subject = match Subject::cloud_hypervisor() {
        Ok(subject) if subject.runs_nano => subject,
        Ok(_) => return skip("the nano guest is one of x86-64"),
        Err(why) => return skip(why),
    };
    let builder = || subject.on_backend(guest.builder()).memory_mb(subject.traits.nano_memory_mb);
    for read_budget in [1, usize::MAX] {
        let new_vm = || builder().read_budget(read_budget).build_embedded().unwrap();
        on_each_loop(new_vm, with_nano_without_button, "hello", &[]);
    }
}

#[test]
fn loops_with_read_budget_one_finish() {
    let guest = ScriptedGuest::new().login("root", None).shell("# ");
    let guest = guest.on("uname -r", GuestReply::output("6.1.0\n"));
    let played = || testing::vm(guest.clone()).read_budget(1).build_embedded().unwrap();
    on_each_loop(played, as_root, RELEASE, ASKED);
}

#[test]
fn loops_with_read_budget_one_over_http_finish() {
    let guest = NanoGuest::for_any(nano::Nano::default());
    let subject = match Subject::cloud_hypervisor_stand_in() {
        Ok(subject) => subject,
        Err(why) => return skip(why),
    };
    let builder = || subject.on_backend(guest.builder()).accelerator(Accelerator::Auto);
    let new_vm = || builder().read_budget(1).build_embedded().unwrap();
    on_each_loop(new_vm, with_nano, "hello", ASKED);
}

#[test]
fn loops_drive_linux() {
    let Some(guest) = vm::linux_guest() else { return };
    on_each_loop(|| vm::linux(&guest).build_embedded().unwrap(), as_root, RELEASE, ASKED);
}

#[test]
fn loop_many_drives_200_vms_in_one_thread() {
    run_isolated!();
    let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let before = threads();
    let mut members: Vec<loop_many::Member> = Vec::new();
    for _ in 0..200 {
        let mut vm = fake::vm("up console=ready serve").build_embedded().unwrap();
        vm.start().unwrap();
        let reader = vm.add_reader();
        let ready = vm.wait_for_any(reader, &["ready"], Some(PATIENCE)).unwrap();
        let on_event = move |vm: &mut Vm, event| {
            if event == VmEvent::Ended(ready) {
                vm.stop_with_timeout(Duration::from_millis(1)).unwrap();
            }
        };
        members.push((vm, Box::new(on_event)));
    }
    loop_many::run(&mut members).unwrap();
    assert_eq!(threads(), before);
    for (vm, _) in &members {
        assert_eq!(vm.stop_report().unwrap().steps[0], StopStep::PowerButton);
        assert_eq!(vm.scrollback().end(), 5);
    }
}
