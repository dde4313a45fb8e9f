//! The stand-in for vfkit: how long it waits after a signal.

use std::fs;
use std::time::Instant;

use capsa_testkit::nano::Nano;
use capsa_testkit::processes::runs;
use capsa_testkit::vm::eventually;
use capsa_testkit::{host, skip};
use nix::sys::signal::Signal;

use super::repeat;
use super::vfkit_program::VfkitProcess;

#[test]
fn signals_press_power_button_then_force() {
    if host::find_program("qemu-system-x86_64").is_none() {
        return skip("qemu-system-x86_64 is not installed");
    }
    for (nano, signal, code, seconds) in [
        (Nano::default(), Signal::SIGTERM, Some(0), 0..4),
        (Nano::default(), Signal::SIGINT, Some(0), 0..4),
        (Nano { power_button: false }, Signal::SIGTERM, Some(0), 5..9),
        (Nano::default(), Signal::SIGHUP, None, 0..4),
    ] {
        repeat(|| {
            let pid_file = tempfile::NamedTempFile::new().unwrap();
            let path = pid_file.path().display().to_string();
            let mut program = VfkitProcess::nano(nano, &["--pidfile", &path]);
            program.listens();
            assert_eq!(fs::read_to_string(&path).unwrap(), program.id().to_string());
            let emulator = program.child();
            let begun = Instant::now();
            program.signal(signal);
            assert_eq!(program.ended(), code, "{signal}");
            let took = begun.elapsed();
            eventually("the guest has exited", || !runs(emulator));
            assert!(fs::exists(&path).unwrap(), "the pid file stays");
            match seconds.contains(&took.as_secs()) {
                true => Ok(()),
                false => Err(format!("{signal}: {took:?}")),
            }
        });
    }
}
