//! Owners without standard streams: a descriptor that Capsa opens may get number 0, 1 or 2.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use capsa::Error;
use capsa_testkit::fake;
use capsa_testkit::processes::runs;
use capsa_testkit::vm::eventually;
use capsa_testkit::{run_isolated, test_name};
use nix::sys::signal::{Signal, raise};
use nix::unistd::close;

/// Set in the process without streams; the value is when it closes them.
const CLOSES: &str = "CAPSA_TEST_CLOSES";

#[test]
fn daemon_without_stdio_runs_vms() {
    let run_dir = || PathBuf::from(env::var_os("CAPSA_RUN_DIR").unwrap());
    // The daemon inherits the environment of the isolated test, but is not one.
    if let Ok(when) = env::var(CLOSES) {
        let result = std::panic::catch_unwind(|| daemon(&when));
        fs::write(run_dir().join("result"), result.unwrap_or_else(|_| "it panicked".into()))
            .unwrap();
        raise(Signal::SIGKILL).unwrap();
    }
    run_isolated!();
    let dir = run_dir();
    for when in ["before it builds", "before it starts"] {
        let mut daemon = Command::new(env::current_exe().unwrap());
        daemon.args([&test_name(), "--exact"]).env(CLOSES, when).status().unwrap();
        let result = fs::read_to_string(dir.join("result")).unwrap();
        let pid = result.parse().unwrap_or_else(|_| panic!("{when}: {result}"));
        eventually("the VMM has exited", || !runs(pid));
    }
}

/// Writes the process id of a hypervisor, or an error.
fn daemon(when: &str) -> String {
    let close_all = || (0..3).for_each(|fd| close(fd).unwrap());
    if when == "before it builds" {
        close_all();
    }
    let build = |orders| fake::vm(orders).build_blocking().map_err(|error| error.to_string());
    let run = || {
        let (vm, fails) = (build("up console=hello echo serve")?, build("stderr*50 exit=3")?);
        if when == "before it starts" {
            close_all();
        }
        let why = fails.start().unwrap_err();
        if !why.to_string().contains("line 0000000000 of a flood") {
            return Err(format!("its last words are lost: {why}"));
        }
        vm.start().map_err(|error| error.to_string())?;
        let output = || -> Result<(), Error> {
            let mut console = vm.console()?;
            console.wait_for("hello")?;
            console.write_str("again")?;
            console.wait_for("again").map(drop)
        };
        output().map_err(|error| error.to_string())?;
        let pid = vm.as_async().hypervisor_pid().ok_or("it does not run")?;
        vm.keep_running();
        Ok(pid.to_string())
    };
    run().unwrap_or_else(|why: String| why)
}
