//! The stand-in for cloud-hypervisor without Capsa, apart from its API: it reports settings that it would
//! ignore, and leaves no guest behind. The conformance suite tests VMs on it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use capsa_stand_ins as stand_in;
use capsa_testkit::nano::Nano;
use capsa_testkit::processes::runs;
use capsa_testkit::vm::{PATIENCE, eventually};
use capsa_testkit::{host, skip};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A process of the stand-in, killed when dropped.
struct StandInProcess {
    process: Child,
    dir: TempDir,
}

impl StandInProcess {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = Command::new(stand_in::CLOUD_HYPERVISOR)
            .args(["--api-socket", &format!("path={}", dir.path().join("api.sock").display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let program = Self { process, dir };
        eventually("the stand-in listens", || UnixStream::connect(program.socket()).is_ok());
        program
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    /// The first line of its response; empty if there is none.
    fn put(&self, call: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head = format!("PUT /api/v1/{call} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk).unwrap_or_default();
        String::from_utf8_lossy(&chunk[..n]).lines().next().unwrap_or_default().trim().to_owned()
    }

    /// The configuration of a VM that it can boot.
    fn vm_config(&self) -> Value {
        json!({
            "memory": { "size": 32 << 20 },
            "payload": { "kernel": Nano::default().write_to(self.dir.path()).unwrap() },
            "console": { "mode": "Off" },
        })
    }

    /// The process that runs its guest.
    fn emulator(&self) -> u32 {
        let pid = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.unwrap().trim().parse().unwrap()
    }
}

impl Drop for StandInProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn unknown_field_exits_with_its_name() {
    for (change, named) in [
        (json!({ "kernl": "/k" }), "payload.kernl"),
        (json!({ "firmware": "/f" }), "payload.firmware"),
    ] {
        let mut program = StandInProcess::start();
        let mut vm_config = program.vm_config();
        vm_config["payload"] = change;
        assert_eq!(program.put("vm.create", &vm_config.to_string()), "");
        let status = program.process.wait().unwrap();
        assert_eq!(status.code(), Some(i32::from(stand_in::UNKNOWN_CONFIG)));
        let mut output = String::new();
        program.process.stderr.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(output.contains(&format!("unknown or unsupported fields: {named}\n")), "{output}");
    }
}

#[test]
fn guest_and_stand_in_end_together() {
    if host::find_program("qemu-system-x86_64").is_none() {
        return skip("qemu-system-x86_64 is not installed");
    }
    for kill_the_guest in [false, true] {
        let mut program = StandInProcess::start();
        let vm_config = program.vm_config().to_string();
        assert_eq!(program.put("vm.create", &vm_config), "HTTP/1.1 204");
        assert_eq!(program.put("vm.boot", ""), "HTTP/1.1 204");
        let emulator = program.emulator();
        assert!(runs(emulator));
        if kill_the_guest {
            let emulator = nix::unistd::Pid::from_raw(emulator.cast_signed());
            nix::sys::signal::kill(emulator, nix::sys::signal::Signal::SIGKILL).unwrap();
            let status = program.process.wait().unwrap();
            assert_eq!(status.code(), Some(i32::from(stand_in::EMULATOR_EXITED)));
        } else {
            program.process.kill().unwrap();
            eventually("the guest has exited", || !runs(emulator));
        }
    }
}
