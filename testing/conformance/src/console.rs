//! The console: both directions, from the first byte, with readers of any speed.

use std::time::Duration;

use capsa::console::Overflow;
use capsa::{ConsoleMode, Error};

use super::vm::{GuestInterface, TestVm};
use super::{Fixture, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::any("console_carries_both_directions", both_ways),
    Scenario::any("console_early_output_is_complete", early_output),
    Scenario::any("console_unread_output_is_complete", unread_output),
    Scenario::any("console_slow_reader_loses_no_byte", reader_behind),
    Scenario::any("console_disabled_returns_error", no_console),
    Scenario::linux("virtio_console_is_used_as_hvc0", virtio).uses(&["virtio_console"]),
];

fn both_ways(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder());
    vm.echoes("hello world");
    if fixture.interface() == GuestInterface::Nano {
        vm.console.send_interrupt().unwrap();
        vm.expect("\x03");
        // Bytes that a terminal interprets arrive like any other byte.
        for byte in [b'\t', 0x03, 0x1a, 0x1c, 0x7f, 0xff, 0x00, b'\r'] {
            vm.console.write(&[byte, b'.']).unwrap();
            let mut echo = [0; 2];
            let mut got = 0;
            while got < 2 {
                let n = vm.console.read(&mut echo[got..]).unwrap();
                assert_ne!(n, 0, "the console closed at {byte:#x}");
                got += n;
            }
            assert_eq!(echo, [byte, b'.']);
        }
    } else {
        // The process to be interrupted prints it. Before that, the shell would get the interrupt.
        vm.console.write_line("sh -c 'echo un\\der way; exec sleep 1000'").unwrap();
        vm.expect("under way");
        vm.console.send_interrupt().unwrap();
        vm.expect("# ");
        vm.echoes("interrupted");
    }
}

fn virtio(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder().virtio_console());
    let consoles = vm.sh("cat /sys/class/tty/console/active");
    assert!(consoles.ends_with("hvc0"), "{consoles}");
    assert_eq!(vm.sh("seq 1 2000 | tail -n 1000 | wc -c"), "5000");
    vm.echoes("on the virtio console");
}

fn early_output(fixture: &Fixture<'_>) {
    let builder = match fixture.interface() {
        GuestInterface::Nano => fixture.builder().cmdline_override("first=1"),
        GuestInterface::Shell => fixture.builder().cmdline_arg("loglevel=7"),
    };
    let mut vm = fixture.vm(builder);
    vm.start();
    // No reader is active during the first output.
    std::thread::sleep(Duration::from_millis(300));
    let traits = &fixture.subject.traits;
    if fixture.interface() == GuestInterface::Nano {
        let output = traits.guest_output(&vm.expect("READY\r\n"));
        assert_eq!(output, "CMDLINE first=1\r\nNANO READY\r\n");
    } else {
        let before = traits.guest_output(&vm.expect("Linux"));
        assert!(before.lines().count() <= 1, "output before the kernel's first line");
        let cmdline = vm.handle.launch_plan().cmdline().to_owned();
        vm.expect(&format!("ommand line: {cmdline}"));
    }
}

fn unread_output(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder());
    vm.print_bulk_and_power_off();
    vm.wait_for_end();
    let output = read_to_end(&mut vm, |_| {});
    assert_contains_bulk(&output, &vm.bulk_output());
}

fn reader_behind(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder().scrollback(4096, Overflow::Pause));
    // The scrollback fills long before the output ends: the guest is paused.
    vm.print_bulk_and_power_off();
    std::thread::sleep(Duration::from_millis(300));
    let mut paused = false;
    let half = vm.bulk_output().len() / 2;
    let output = read_to_end(&mut vm, |bytes| {
        if bytes > half && !paused {
            paused = true;
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    assert_contains_bulk(&output, &vm.bulk_output());
    vm.wait_for_end();
}

fn read_to_end(vm: &mut TestVm, mut on_progress: impl FnMut(usize)) -> Vec<u8> {
    let mut output = Vec::new();
    let mut chunk = [0; 512];
    while let n @ 1.. = vm.console.read(&mut chunk).unwrap() {
        output.extend_from_slice(&chunk[..n]);
        on_progress(output.len());
    }
    output
}

#[track_caller]
fn assert_contains_bulk(output: &[u8], bulk: &[u8]) {
    // The shell of Linux has echoed the command first, which contains no line of the output.
    let begin = output.windows(8).position(|part| part == &bulk[..8]).expect("no bulk output");
    let lines = output[begin..].split_inclusive(|byte| *byte == b'\n');
    for (n, (received, expected)) in
        lines.zip(bulk.split_inclusive(|byte| *byte == b'\n')).enumerate()
    {
        let text = String::from_utf8_lossy(received);
        assert_eq!(received, expected, "line {n} is {text:?}");
    }
    assert!(output[begin..].starts_with(bulk), "{} of {} bytes", output.len() - begin, bulk.len());
}

fn no_console(fixture: &Fixture<'_>) {
    let builder = fixture.builder().console(ConsoleMode::Disabled);
    let vm = builder.build_blocking().unwrap();
    vm.start().unwrap();
    assert!(matches!(vm.console(), Err(Error::ConsoleNotEnabled)));
    assert!(!vm.status().is_terminal(), "{}", vm.status());
    vm.kill().unwrap();
}
