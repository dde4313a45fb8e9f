//! What QEMU reports: events and lines on standard error.

use super::*;

#[test]
fn event_maps_shutdown_reasons() {
    let event = |name: &str, reason: &str| QmpMessage::Event {
        name: name.into(),
        data: serde_json::json!({"guest": true, "reason": reason}),
        at_micros: None,
    };
    for (name, reason, want) in [
        ("SHUTDOWN", "guest-shutdown", Some(GuestEvent::PoweredOff)),
        ("SHUTDOWN", "guest-reset", Some(GuestEvent::Reset)),
        ("RESET", "guest-reset", Some(GuestEvent::Reset)),
        ("RESET", "host-qmp-system-reset", None),
        ("SHUTDOWN", "host-signal", Some(GuestEvent::ExternalQuit)),
        ("GUEST_PANICKED", "", Some(GuestEvent::Panicked)),
        ("STOP", "", Some(GuestEvent::Paused)),
        ("RESUME", "", Some(GuestEvent::Resumed)),
        ("POWERDOWN", "", None),
    ] {
        assert_eq!(Qemu.event(&event(name, reason)), want, "{name} {reason}");
    }
}

/// The data is from QEMU 10.0.2, with `-blockdev` and with `-drive`.
#[test]
fn event_of_disk_error_names_disk_and_cause() {
    let disks = [disk("/d.raw", ImageFormat::Raw), disk("/e.raw", ImageFormat::Raw)];
    let error = |data: &str| {
        let data = serde_json::from_str(data).unwrap();
        let event = QmpMessage::Event { name: "BLOCK_IO_ERROR".into(), data, at_micros: None };
        Qemu.disk_error(&event, &disks).map(|error| error.to_string())
    };
    let full = r#""operation": "write", "action": "report", "reason": "No space left on device""#;
    assert_eq!(
        error(&format!(r##"{{"device": "", "node-name": "disk0", {full}}}"##)).unwrap(),
        "disk /d.raw: write failed: No space left on device"
    );
    let read = r##"{"device": "disk1", "node-name": "#block164", "operation": "read", "reason": "Input/output error"}"##;
    assert_eq!(error(read).unwrap(), "disk /e.raw: read failed: Input/output error");
    for unknown in ["{}", r#"{"device": "disk2"}"#, r#"{"device": "pflash0"}"#] {
        assert_eq!(error(unknown), None, "{unknown}");
    }
}

#[test]
fn stderr_line_reports_failed_vcpu() {
    for (line, want) in [
        ("KVM internal error. Suberror: 1", Some(GuestEvent::CpuFailed)),
        ("error: kvm run failed Bad address", Some(GuestEvent::CpuFailed)),
        ("KVM: entry failed, hardware error 0x80000021", Some(GuestEvent::CpuFailed)),
        ("qemu-system-x86_64: warning: KVM internal error", None),
    ] {
        assert_eq!(Qemu.stderr_line(line), want, "{line}");
    }
}

#[test]
fn event_reports_opened_console() {
    for (open, want) in [(true, Some(GuestEvent::ConsoleOpened)), (false, None)] {
        let data = serde_json::json!({ "open": open, "id": "console" });
        let event = QmpMessage::Event { name: "VSERPORT_CHANGE".into(), data, at_micros: None };
        assert_eq!(Qemu.event(&event), want);
    }
}
