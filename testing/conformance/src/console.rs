//! The console: both ways, from the first byte, however far the reader is behind.

use std::time::Duration;

use capsa::{ConsoleMode, Error, Overflow};

use super::machine::{Machine, Speech};
use super::{Scenario, Stage};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::any("the_console_goes_both_ways", both_ways),
    Scenario::any("not_one_byte_of_early_output_is_lost", early_output),
    Scenario::any("a_flood_that_nobody_reads_arrives_whole", unread_flood),
    Scenario::any("a_reader_that_is_behind_loses_nothing", reader_behind),
    Scenario::any("a_machine_without_console_has_none", no_console),
];

fn both_ways(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.builder());
    machine.echoes("hello world");
    if stage.speech() == Speech::Nano {
        machine.console.send_interrupt().unwrap();
        machine.expect("\x03");
        // What a terminal line would act upon goes through like any other byte.
        for byte in [b'\t', 0x03, 0x1a, 0x1c, 0x7f, 0xff, 0x00, b'\r'] {
            machine.console.write(&[byte, b'.']).unwrap();
            let mut echo = [0; 2];
            let mut got = 0;
            while got < 2 {
                let n = machine.console.read(&mut echo[got..]).unwrap();
                assert_ne!(n, 0, "the console closed at {byte:#x}");
                got += n;
            }
            assert_eq!(echo, [byte, b'.']);
        }
    } else {
        // Said by what is to be interrupted: before it runs, the shell itself takes the interrupt.
        machine.console.write_line("sh -c 'echo un\\der way; exec sleep 1000'").unwrap();
        machine.expect("under way");
        machine.console.send_interrupt().unwrap();
        machine.expect("# ");
        machine.echoes("interrupted");
    }
}

fn early_output(stage: &Stage<'_>) {
    let builder = match stage.speech() {
        Speech::Nano => stage.builder().cmdline_override("first=1"),
        Speech::Shell => stage.builder().cmdline_arg("loglevel=7"),
    };
    let mut machine = stage.machine(builder);
    machine.start();
    // Nobody looks while it says its first words.
    std::thread::sleep(Duration::from_millis(300));
    let nature = &stage.subject.nature;
    if stage.speech() == Speech::Nano {
        let said = nature.guests_own(&machine.expect("READY\r\n"));
        assert_eq!(said, "CMDLINE first=1\r\nNANO READY\r\n");
    } else {
        let before = nature.guests_own(&machine.expect("Linux"));
        assert!(before.lines().count() <= 1, "something came before the kernel's first line");
        let cmdline = machine.vm.launch_plan().cmdline.clone();
        machine.expect(&format!("ommand line: {cmdline}"));
    }
}

fn unread_flood(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.builder());
    machine.flood_and_power_off();
    machine.ended();
    let said = read_to_end(&mut machine, |_| {});
    assert_flood(&said, &machine.flood());
}

fn reader_behind(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.builder().scrollback(4096, Overflow::Pause));
    // The log is full long before the flood is over: the guest has to wait.
    machine.flood_and_power_off();
    std::thread::sleep(Duration::from_millis(300));
    let mut paused = false;
    let half = machine.flood().len() / 2;
    let said = read_to_end(&mut machine, |bytes| {
        if bytes > half && !paused {
            paused = true;
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    assert_flood(&said, &machine.flood());
    machine.ended();
}

fn read_to_end(machine: &mut Machine, mut on_progress: impl FnMut(usize)) -> Vec<u8> {
    let mut said = Vec::new();
    let mut chunk = [0; 512];
    while let n @ 1.. = machine.console.read(&mut chunk).unwrap() {
        said.extend_from_slice(&chunk[..n]);
        on_progress(said.len());
    }
    said
}

#[track_caller]
fn assert_flood(said: &[u8], flood: &[u8]) {
    // Linux' shell has echoed the command, which holds no line of it, before.
    let begin = said.windows(8).position(|part| part == &flood[..8]).expect("it never began");
    let lines = said[begin..].split_inclusive(|byte| *byte == b'\n');
    for (n, (came, said)) in lines.zip(flood.split_inclusive(|byte| *byte == b'\n')).enumerate() {
        let text = String::from_utf8_lossy(came);
        assert_eq!(came, said, "line {n} came as {text:?}");
    }
    assert!(said[begin..].starts_with(flood), "{} of {} bytes", said.len() - begin, flood.len());
}

fn no_console(stage: &Stage<'_>) {
    let builder = stage.builder().console(ConsoleMode::Disabled);
    let vm = builder.build_blocking().unwrap();
    vm.start().unwrap();
    assert!(matches!(vm.console(), Err(Error::ConsoleNotEnabled)));
    assert!(!vm.status().is_terminal(), "{}", vm.status());
    vm.kill().unwrap();
}
