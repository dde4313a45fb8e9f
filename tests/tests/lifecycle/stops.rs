//! Stops that only the library has, with the nano guest. What every backend must do is in the
//! conformance suite.

use std::time::Duration;

use capsa::{Error, VmStatus};
use capsa_testkit::vm::{NanoGuest, PATIENCE, eventually};

#[test]
fn vm_dropped_before_start_ends_waits() {
    let Some(guest) = NanoGuest::new() else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let mut console = vm.console().unwrap();
    drop(vm);
    let result = console.wait_for_timeout("never", PATIENCE);
    assert!(matches!(result, Err(Error::GuestEnded { .. })), "{result:?}");

    let (vm, driver) = futures_lite::future::block_on(guest.builder().build_driven()).unwrap();
    drop(vm);
    let end = futures_lite::future::block_on(driver).unwrap();
    assert_eq!(end, VmStatus::Stopped { exit_code: None });
}

#[test]
fn wait_timed_out_consumes_nothing() {
    let Some(guest) = NanoGuest::new() else { return };
    let vm = guest.builder().build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("CMDLINE", PATIENCE).unwrap();
    eventually("the guest is ready", || {
        console.wait_for_timeout("never", Duration::from_millis(20)).is_err_and(|error| {
            let Error::Timeout { expected, tail, .. } = error else { panic!("{error}") };
            assert_eq!(expected, "\"never\"");
            tail.ends_with("NANO READY\r\n")
        })
    });
    console.wait_for_timeout("NANO READY", Duration::ZERO).unwrap();
}
