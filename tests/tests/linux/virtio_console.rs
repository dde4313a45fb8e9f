//! A virtio console of QEMU with real guests.

use std::io::Read;
use std::time::Duration;

use capsa::console::Overflow;
use capsa::testing::{self, TestResult};
use capsa::{Capsa, DiskImage, Error, LinuxBootConfig};
use capsa_testkit::vm::{self, NanoGuest};
use capsa_testkit::{guest, skip};

/// For emulation on a loaded host.
const PATIENCE: Duration = Duration::from_secs(900);

/// QEMU's `virtconsole` drops what its socket does not take. The reader is slower than the guest: the
/// output is many times what the socket holds.
#[test]
fn virtio_console_slow_reader_loses_no_byte() -> TestResult {
    let Some(guest) = vm::linux_guest() else { return Ok(()) };
    let builder = vm::linux(&guest).virtio_console().scrollback(1 << 16, Overflow::Pause);
    let vm = builder.build_blocking()?;
    let _shown = testing::show_on_failure(&vm);
    vm.start()?;
    let mut console = vm.console()?;
    console.login_timeout("root", None, PATIENCE)?;
    // The guest kernel prints a message after a VM was stopped.
    console.run("dmesg -n 1", Some(PATIENCE))?;
    let mut numbers = console.spawn("seq 1 100000", None)?;
    let (mut chunk, mut got) = ([0; 1 << 16], Vec::new());
    loop {
        std::thread::sleep(Duration::from_millis(2));
        match numbers.read(&mut chunk)? {
            0 => break,
            n => got.extend_from_slice(&chunk[..n]),
        }
    }
    assert_eq!(numbers.wait()?.status, Some(0));
    let want: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    let got = String::from_utf8(got)?;
    let different = got.lines().zip(want.lines()).position(|(got, want)| got != want);
    let around =
        different.map(|n| got.lines().skip(n.saturating_sub(1)).take(4).collect::<Vec<_>>());
    assert_eq!((around, got.len()), (None, want.len()));
    vm.stop()?;
    Ok(())
}

#[test]
fn virtio_console_debian_has_a_getty() -> TestResult {
    let Ok(guest) = guest::debian().map_err(skip) else { return Ok(()) };
    let disk = DiskImage::new(guest.disk).ephemeral();
    let config = LinuxBootConfig::new(guest.kernel).initrd(guest.initrd).disk(disk);
    let builder = Capsa::vm(config).backend("qemu").cpus(2).memory_mb(512).no_network();
    let builder = builder.cmdline_args(["rw", "quiet", "mitigations=off"]);
    let vm = builder.console_enabled().virtio_console().build_blocking()?;
    let _shown = testing::show_on_failure(&vm);
    vm.start()?;
    let mut console = vm.console()?;
    console.login_timeout("root", Some("capsa"), PATIENCE)?;
    let consoles = console.run("cat /sys/class/tty/console/active", Some(PATIENCE))?;
    assert_eq!(consoles.text().trim(), "ttyS0 hvc0");
    vm.stop()?;
    Ok(())
}

/// The nano guest has no driver for it.
#[test]
fn virtio_console_not_opened_is_explained() -> TestResult {
    let Some(guest) = NanoGuest::new() else { return Ok(()) };
    let vm = guest.builder().virtio_console().build_blocking()?;
    vm.start()?;
    let error = vm.console()?.wait_for_timeout("NANO", Duration::from_secs(2)).unwrap_err();
    let Error::Timeout { hint, .. } = &error else { panic!("{error}") };
    let hint = hint.clone().unwrap_or_default();
    assert!(hint.contains("NANO READY"), "the last line of the serial port: {hint}");
    assert!(hint.contains("has not opened its virtio console"), "{hint}");
    vm.kill()?;
    Ok(())
}
