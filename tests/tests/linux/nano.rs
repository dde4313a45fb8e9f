//! The nano guest under the real QEMU, in software emulation, on both machine types.

use std::path::Path;
use std::time::Duration;

use super::qemu::QemuGuest;
use capsa_testkit::nano::{self, Nano};

const MACHINE_TYPES: [&str; 2] = ["q35", "microvm,rtc=on"];

/// Boots and waits until the guest is ready; `None` where there is no QEMU.
fn boot(machine: &str, how: Nano, cmdline: &str) -> Option<QemuGuest> {
    let dir = tempfile::tempdir().unwrap();
    let kernel = how.write_to(dir.path()).unwrap();
    let kernel = kernel.to_str().unwrap();
    let arguments = ["-m", "64", "-append", cmdline, "-kernel", kernel];
    let mut guest = QemuGuest::start(machine, arguments)?;
    guest.wait_for(nano::READY);
    Some(guest)
}

/// Runs `body` with a new guest on each machine type.
fn on_each_machine_type(body: impl Fn(&mut QemuGuest)) {
    for machine in MACHINE_TYPES {
        let booted = boot(machine, Nano::default(), "one two=3");
        let Some(mut guest) = booted else { return };
        body(&mut guest);
    }
}

#[test]
fn nano_echoes_input_and_powers_off() {
    on_each_machine_type(|guest| {
        guest.write(b"hello\x03\xff\0");
        guest.wait_for(b"hello\x03\xff\0");
        guest.write(&[nano::POWER_OFF]);
        assert!(guest.wait_for_end().success());
        assert!(guest.seen.starts_with(b"CMDLINE one two=3"), "{:?}", guest.seen);
    });
}

#[test]
fn nano_bulk_output_arrives_whole() {
    on_each_machine_type(|guest| {
        guest.write(&[nano::FLOOD, nano::POWER_OFF]);
        assert!(guest.wait_for_end().success());
        assert!(guest.seen.ends_with(&nano::flood()));
    });
}

#[test]
fn nano_reset_and_triple_fault_end_qemu() {
    for order in [nano::RESET, nano::TRIPLE_FAULT] {
        on_each_machine_type(|guest| {
            guest.write(&[order]);
            assert!(guest.wait_for_end().success());
        });
    }
}

#[test]
fn nano_power_button_powers_off() {
    on_each_machine_type(|guest| {
        guest.press_power_button();
        assert!(guest.wait_for_end().success());
    });
}

#[test]
fn nano_hung_ignores_input_and_power_button() {
    on_each_machine_type(|guest| {
        guest.write(&[b'h', nano::HANG, nano::POWER_OFF]);
        // The input that makes the guest hang is queued behind this; the power button is not.
        guest.wait_for(b"h");
        std::thread::sleep(Duration::from_millis(100));
        guest.press_power_button();
        assert!(guest.is_deaf());
    });
}

#[test]
fn nano_without_power_button_still_echoes() {
    for machine in MACHINE_TYPES {
        let how = Nano { power_button: false };
        let Some(mut guest) = boot(machine, how, "") else { return };
        guest.press_power_button();
        assert!(guest.is_deaf());
        guest.write(b"still here");
        guest.wait_for(b"still here");
    }
}

#[test]
fn nano_image_is_written_to_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = nano::write_to(dir.path()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), nano::elf());
    assert!(nano::write_to(Path::new("/nowhere/at/all")).is_err());
}
