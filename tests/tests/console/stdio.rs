//! A console on a program's own standard input and output.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use capsa_testkit::nano;
use capsa_testkit::programs::TestProgram;
use capsa_testkit::vm::NanoGuest;

#[test]
fn stdio_relays_both_ways_up_to_last_byte() {
    let Some(guest) = NanoGuest::new() else { return };
    let mut relay = Command::new(TestProgram::new("relay"))
        .arg(guest.kernel())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = relay.stdin.take().unwrap();
    let mut stdout = relay.stdout.take().unwrap();
    let mut output = Vec::new();
    while !output.ends_with(nano::READY) {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        output.push(byte[0]);
    }
    output.clear();
    stdin.write_all(&[b'h', b'i', nano::FLOOD, nano::POWER_OFF]).unwrap();
    stdout.read_to_end(&mut output).unwrap();
    let mut end = String::new();
    relay.stderr.take().unwrap().read_to_string(&mut end).unwrap();
    assert!(relay.wait().unwrap().success(), "{end}");
    assert_eq!(end.trim_end(), "stopped");
    assert!(output.starts_with(b"hi"), "the input did not arrive");
    assert!(output.ends_with(&nano::flood()), "got {} bytes only", output.len());
}

#[test]
fn stuck_stdout_does_not_delay_time_limit() {
    let Some(guest) = NanoGuest::new() else { return };
    let mut relay = Command::new(TestProgram::new("relay"))
        .arg(guest.kernel())
        .arg("2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than a pipe holds.
    relay.stdin.as_mut().unwrap().write_all(&[nano::FLOOD; 4]).unwrap();
    let mut end = String::new();
    relay.stderr.take().unwrap().read_to_string(&mut end).unwrap();
    assert!(relay.wait().unwrap().success(), "{end}");
    assert_eq!(end.trim_end(), "stopped");
}
