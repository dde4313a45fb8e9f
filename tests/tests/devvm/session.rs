//! Clients that attach and restart VMs, and a signal that ends the service.

use std::io::Write;

use super::service::DevvmService;
use capsa_testkit::vm::NanoGuest;
use nix::sys::signal::Signal;

#[test]
fn session_attach_restart_stop_sigterm() {
    let Some(guest) = NanoGuest::new() else { return };
    let mut service = DevvmService::start(&guest);

    let mut first = service.attach("web");
    let booted = first.until("NANO READY\r\n");
    assert!(booted.contains("quiet"), "{booted}");
    first.input.write_all(b"hello web").unwrap();
    first.until("hello web");
    // Another client gets the whole output, and another VM is independent.
    let mut second = service.attach("web");
    assert_eq!(second.until("hello web"), format!("{booted}hello web"));
    service.attach("db").until("NANO READY\r\n");
    assert_eq!(service.ask("attach missing").rest(), "error: the VM did not start\n");

    let list = service.ask("list").rest();
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines, ["db running", "missing did not start", "web running"]);

    // A restart ends the consoles of the old VM, and the new console is empty.
    assert_eq!(service.ask("restart web").rest(), "ok\n");
    assert_eq!((first.rest(), second.rest()), (String::new(), String::new()));
    let mut third = service.attach("web");
    assert_eq!(third.until("NANO READY\r\n"), booted);
    third.input.write_all(b"again").unwrap();
    third.until("again");

    assert_eq!(service.ask("attach absent").rest(), "error: no VM absent\n");
    assert_eq!(service.ask("eat web").rest(), "error: unknown request eat\n");
    let start_error = service.ask("restart missing").rest();
    assert!(
        start_error.starts_with("error: ") && start_error.contains("/nowhere/vmlinuz"),
        "{start_error}"
    );
    assert_eq!(service.ask("stop db").rest(), "ok\n");
    assert!(service.ask("list").rest().starts_with("db stopped"));

    assert_eq!(service.hypervisors(), 1);
    service.signal(Signal::SIGTERM);
    assert_eq!(third.rest(), "");
    assert!(service.process.wait().unwrap().success());
    assert_eq!(service.hypervisors(), 0);
    assert!(!guest.dir().join("socket").exists());
}
