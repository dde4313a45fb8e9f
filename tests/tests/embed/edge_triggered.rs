//! Edge-triggered event loops and tiny read budgets: nothing hangs, and nothing is lost.

use std::io;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::loops::*;
use capsa::console::Overflow;
use capsa::embed::{Ended, Outcome, TokioVm, Vm, VmEvent};
use capsa::{LinuxVmBuilder, RebootPolicy};
use capsa_testkit::fake;
use capsa_testkit::run_isolated;
use capsa_testkit::skip;
use capsa_testkit::vm::PATIENCE;

type OnEvent = Box<dyn FnMut(&mut Vm, VmEvent) + Send>;
type Run = fn(Vm, OnEvent) -> io::Result<Vm>;

/// Edge-triggered loops, and for comparison a level-triggered one and one that polls again.
const LOOPS: &[(&str, Run)] = &[
    ("mio", loop_mio::run),
    ("tokio on one thread", loop_tokio::run_on_one),
    ("tokio on many threads", loop_tokio::run_on_many),
    ("poll", loop_poll::run),
    ("io_uring", loop_io_uring::run),
];

/// Drives such a VM to its end with every loop.
fn on_each_loop(begin: impl Fn() -> (Vm, OnEvent), end: impl Fn(&str, Vm)) {
    for (name, run) in LOOPS {
        if *name == "io_uring"
            && let Err(error) = compio_driver::Proactor::new()
        {
            skip(format!("no io_uring here: {error}"));
            continue;
        }
        let (mut vm, on_event) = begin();
        vm.start().unwrap();
        end(name, run(vm, on_event).unwrap());
    }
}

#[test]
fn edge_10000_echoes_one_byte_per_call() {
    const ROUNDS: usize = 10_000;
    run_isolated!();
    // One byte per call: after the first byte of a reply, no edge reports the second.
    let begin = || {
        let orders = fake::vm("up echo console=. serve").read_budget(1);
        let mut vm = orders.build_embedded().unwrap();
        let reader = vm.add_reader();
        let mut rounds = 0;
        let on_event: OnEvent = Box::new(move |vm, event| {
            if event != VmEvent::ConsoleData {
                return;
            }
            let dots = vm.take(reader).iter().filter(|byte| **byte == b'.').count();
            for _ in 0..dots {
                rounds += 1;
                match rounds {
                    ROUNDS => vm.kill().unwrap(),
                    _ => assert_eq!(vm.write(b"ping.").unwrap(), 5),
                }
            }
        });
        (vm, on_event)
    };
    on_each_loop(begin, |name, vm| {
        let length = vm.scrollback().end();
        assert_eq!(length, 1 + 5 * (ROUNDS as u64 - 1), "{name}");
    });
}

#[test]
fn edge_bulk_output_16_bytes_per_call() {
    const BYTES: usize = 320_000;
    run_isolated!();
    arrives_whole(BYTES, BYTES / 16, |builder| builder.read_budget(16));
}

#[test]
fn edge_paused_guest_resumes_with_reader() {
    const BYTES: usize = 200_000;
    run_isolated!();
    // The descriptor is removed from the poller and added again, thousands of times, while the loop
    // outside waits for edges of the poller.
    arrives_whole(BYTES, BYTES / 64, |builder| {
        builder.scrollback(64, Overflow::Pause).read_budget(64)
    });
}

/// Each loop delivers a flood of `bytes` to its reader, in at least `events` events.
fn arrives_whole(bytes: usize, events: usize, how: impl Fn(LinuxVmBuilder) -> LinuxVmBuilder) {
    let begin = || {
        let orders = fake::vm(&format!("up console*{bytes} console=END serve"));
        let mut vm = how(orders).build_embedded().unwrap();
        let reader = vm.add_reader();
        let (mut seen, mut output) = (0, Vec::new());
        let on_event: OnEvent = Box::new(move |vm, event| {
            if event == VmEvent::ConsoleData {
                seen += 1;
                output.extend(vm.take(reader));
                if output.ends_with(b"END") {
                    assert!(seen >= events, "{seen} events");
                    output.truncate(bytes);
                    assert!(output == fake::flood(bytes), "the output differs from the flood");
                    vm.kill().unwrap();
                }
            }
        });
        (vm, on_event)
    };
    on_each_loop(begin, |name, vm| {
        assert_eq!(vm.scrollback().end(), bytes as u64 + 3, "{name}");
    });
}

#[test]
fn edge_10000_vmm_events_delay_nothing() {
    run_isolated!();
    let begin = || {
        let orders = fake::vm("up events*10000 console=END serve").on_reboot(RebootPolicy::Restart);
        let mut vm = orders.read_budget(64).build_embedded().unwrap();
        let reader = vm.add_reader();
        let mut end = None;
        let (sender, token) = channel();
        sender.send(()).unwrap();
        let on_event: OnEvent = Box::new(move |vm, event| {
            if event == VmEvent::ControlReady {
                end = Some(vm.wait_for_any(reader, &["END"], Some(PATIENCE)).unwrap());
            } else if let Some(end) = end
                && event == VmEvent::Ended(end)
            {
                token.try_recv().expect("it ends once");
                let ended = vm.take_ended(end);
                assert!(matches!(ended, Some(Ended::Expect(Outcome::Matched { .. }))), "{ended:?}");
                vm.stop_with_timeout(Duration::from_millis(1)).unwrap();
            }
        });
        (vm, on_event)
    };
    on_each_loop(begin, |name, vm| {
        assert!(vm.stop_report().unwrap().steps.len() > 1, "{name}: {:?}", vm.stop_report());
    });
}

#[test]
fn vm_moves_between_loops_during_output() {
    const BYTES: usize = 200_000;
    run_isolated!();
    let orders = fake::vm(&format!("up console*{BYTES} console=END serve")).read_budget(100);
    let mut vm = orders.build_embedded().unwrap();
    let reader = vm.add_reader();
    vm.start().unwrap();
    let mut output = Vec::new();
    // A new runtime every few events: readiness that the last one has consumed is reported again.
    while output.len() < BYTES / 2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        vm = runtime.block_on(async {
            let mut vm = TokioVm::new(vm).unwrap();
            for _ in 0..7 {
                vm.next_event().await.unwrap().expect("it runs");
                output.extend(vm.take(reader));
            }
            vm.into_inner()
        });
    }
    let on_event: OnEvent = Box::new(move |vm, _| {
        output.extend(vm.take(reader));
        if output.ends_with(b"END") {
            assert!(output[..BYTES] == fake::flood(BYTES), "the output differs from the flood");
            vm.kill().unwrap();
        }
    });
    let vm = loop_mio::run(vm, on_event).unwrap();
    assert_eq!(vm.scrollback().end(), BYTES as u64 + 3);
}
