//! The service of `capsa/examples/devvm.rs`, and clients of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};

use capsa_testkit::processes;
use capsa_testkit::programs::TestProgram;
use capsa_testkit::vm::{NanoGuest, PATIENCE, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// The service with VMs of the nano guest. Killed when dropped.
pub(crate) struct DevvmService<'a> {
    pub(crate) process: Child,
    dir: &'a Path,
}

/// The description of a VM with this guest.
pub(crate) fn description(guest: &NanoGuest) -> Value {
    let dir = guest.dir();
    for file in ["initrd", "rootfs.raw"] {
        std::fs::write(dir.join(file), [0; 4096]).unwrap();
    }
    json!({
        "kernel": guest.kernel(),
        "initrd": dir.join("initrd"),
        "rootfs": dir.join("rootfs.raw"),
        "memory_mb": 64,
        "cmdline": ["quiet"],
        "offline": true,
    })
}

/// A command that starts the service with this file in the guest's directory.
pub(crate) fn command(guest: &NanoGuest, file: &str) -> Command {
    command_behind("", guest, file)
}

/// As [`command`], after a shell has run `before`.
pub(crate) fn command_behind(before: &str, guest: &NanoGuest, file: &str) -> Command {
    let dir = guest.dir();
    std::fs::write(dir.join("vms.json"), file).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(TestProgram::new("devvm"))
        .args([dir.join("vms.json"), dir.join("socket")])
        .env("CAPSA_BACKEND", "qemu")
        .env("CAPSA_RUN_DIR", dir.join("run"));
    command
}

impl<'a> DevvmService<'a> {
    /// Starts a service with two VMs, and one that cannot start.
    pub(crate) fn start(guest: &'a NanoGuest) -> Self {
        let description = description(guest);
        let missing = json!({ "kernel": "/nowhere/vmlinuz", "initrd": "/i", "rootfs": "/r" });
        let vms = json!({ "db": description, "missing": missing, "web": description });
        Self::of(guest, &mut command(guest, &vms.to_string()))
    }

    /// Runs this command, and waits until the service listens.
    pub(crate) fn of(guest: &'a NanoGuest, command: &mut Command) -> Self {
        let service = Self { process: command.spawn().unwrap(), dir: guest.dir() };
        eventually("the service listens", || service.connect().is_ok());
        service
    }

    pub(crate) fn connect(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(self.dir.join("socket"))
    }

    /// A client that has sent this request.
    pub(crate) fn ask(&self, line: &str) -> Client {
        let mut stream = self.connect().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{line}").unwrap();
        Client { input: stream.try_clone().unwrap(), output: BufReader::new(stream) }
    }

    /// A client that is attached to the VM's console.
    pub(crate) fn attach(&self, name: &str) -> Client {
        let mut client = self.ask(&format!("attach {name}"));
        assert_eq!(client.line(), "ok");
        client
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }

    /// The number of its hypervisors.
    pub(crate) fn hypervisors(&self) -> usize {
        processes::with_argument(self.dir.join("initrd").to_str().unwrap()).len()
    }
}

impl Drop for DevvmService<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) struct Client {
    pub(crate) input: UnixStream,
    output: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The output up to and including `end`.
    pub(crate) fn until(&mut self, end: &str) -> String {
        let (mut output, mut byte) = (Vec::new(), [0]);
        while !output.ends_with(end.as_bytes()) {
            let read = self.output.read(&mut byte).unwrap();
            assert_eq!(read, 1, "closed after {:?}", String::from_utf8_lossy(&output));
            output.push(byte[0]);
        }
        String::from_utf8(output).unwrap()
    }

    /// The output up to the end.
    pub(crate) fn rest(mut self) -> String {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        rest
    }
}
