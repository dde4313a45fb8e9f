//! Bulk output: paused consoles, late readers, and child processes that write to the console.

use std::io::Read;

use capsa::VmStatus;
use capsa::console::Overflow;
use capsa_testkit::fake;
use capsa_testkit::run_isolated;
use capsa_testkit::vm::PATIENCE;

#[test]
fn paused_console_vmm_exit_loses_nothing() {
    run_isolated!();
    // More than the scrollback holds, and the socket holds the rest.
    const BYTES: usize = 12_000;
    let orders = format!("up console*{BYTES} exit=0");
    let vm = fake::vm(&orders).scrollback(4096, Overflow::Pause).build_blocking().unwrap();
    let (mut reader, _writer) = vm.console().unwrap().split();
    vm.start().unwrap();
    assert_eq!(vm.wait().unwrap(), VmStatus::Stopped { exit_code: Some(0) });
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    assert_eq!(output.len(), BYTES);
    assert_eq!(output, fake::flood(BYTES));
}

#[test]
fn paused_console_late_reader_gets_all() {
    run_isolated!();
    const BYTES: usize = 1_000_000;
    let orders = format!("up console*{BYTES} console=END serve");
    let vm = fake::vm(&orders).scrollback(1000, Overflow::Pause).build_blocking().unwrap();
    vm.start().unwrap();
    // Created late: the reader also gets earlier output.
    let (mut reader, _writer) = vm.console().unwrap().split();
    let mut output = vec![0; BYTES];
    reader.read_exact(&mut output).unwrap();
    assert_eq!(output, fake::flood(BYTES));
    vm.kill().unwrap();
}

#[test]
fn vmm_exit_seen_despite_child_flooding_console() {
    run_isolated!();
    for orders in ["up child exit=0", "up detached-child exit=0"] {
        let vm = fake::vm(orders).build_blocking().unwrap();
        vm.start().unwrap();
        let ended = vm.wait_timeout(PATIENCE).unwrap();
        assert_eq!(ended, Some(VmStatus::Stopped { exit_code: Some(0) }), "{orders}");
    }
}
