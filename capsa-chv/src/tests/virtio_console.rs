//! The virtio console: its plan, and the event that the guest has opened it.

use super::*;

#[test]
fn pipe_event_reports_opened_console() {
    for (id, want) in [("__console", Some(GuestEvent::ConsoleOpened)), ("_disk0", None)] {
        let properties = json!({ "id": id });
        let event =
            json!({ "source": "virtio-device", "event": "activated", "properties": properties });
        assert_eq!(BACKEND.pipe_event(&event), want, "{id}");
    }
}

#[test]
fn plan_virtio_console_keeps_serial_port() {
    let plan = plan(VmSpec { console: ConsoleMode::Enabled, virtio_console: true, ..spec() });
    let serial = json!({ "mode": "File", "file": "/run/c/1/serial" });
    let config = created(&plan);
    assert_eq!((&config["serial"], &config["console"]), (&serial, &json!({ "mode": "Tty" })));
    assert_eq!(plan.serial_port, Some(path("/run/c/1/serial")));
    assert!(plan.cmdline.starts_with("console=ttyS0 console=hvc0 noirqdebug "), "{}", plan.cmdline);
}
