//! The example of a service for development machines, from outside: a client that types, a restart,
//! and a signal that ends it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};

use capsa_test::processes;
use capsa_test::vm::{NanoGuest, PATIENCE, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// The service with two machines of the nano guest. Killed when dropped.
struct Service<'a> {
    process: Child,
    dir: &'a Path,
}

impl<'a> Service<'a> {
    fn start(guest: &'a NanoGuest) -> Self {
        let dir = guest.dir();
        for file in ["initrd", "rootfs.raw"] {
            std::fs::write(dir.join(file), [0; 4096]).unwrap();
        }
        let machine = json!({
            "kernel": guest.kernel(),
            "initrd": dir.join("initrd"),
            "rootfs": dir.join("rootfs.raw"),
            "memory_mb": 64,
            "cmdline": ["quiet"],
            "offline": true,
        });
        let missing = json!({ "kernel": "/nowhere/vmlinuz", "initrd": "/i", "rootfs": "/r" });
        let machines = json!({ "db": machine, "missing": missing, "web": machine });
        std::fs::write(dir.join("machines.json"), machines.to_string()).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_devvm"))
            .args([dir.join("machines.json"), dir.join("socket")])
            .env("CAPSA_BACKEND", "qemu")
            .env("CAPSA_RUN_DIR", dir.join("run"))
            .spawn()
            .unwrap();
        let service = Self { process, dir };
        eventually("the service listens", || service.dir.join("socket").exists());
        service
    }

    /// A client that has asked for this.
    fn ask(&self, line: &str) -> Client {
        let mut stream = UnixStream::connect(self.dir.join("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{line}").unwrap();
        Client { typing: stream.try_clone().unwrap(), heard: BufReader::new(stream) }
    }

    fn attach(&self, name: &str) -> Client {
        let mut client = self.ask(&format!("attach {name}"));
        assert_eq!(client.line(), "ok");
        client
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Client {
    typing: UnixStream,
    heard: BufReader<UnixStream>,
}

impl Client {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.heard.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Everything up to and with `end`.
    fn until(&mut self, end: &str) -> String {
        let (mut heard, mut byte) = (Vec::new(), [0]);
        while !heard.ends_with(end.as_bytes()) {
            let said = String::from_utf8_lossy(&heard);
            assert_eq!(self.heard.read(&mut byte).unwrap(), 1, "it ended after {said:?}");
            heard.push(byte[0]);
        }
        String::from_utf8(heard).unwrap()
    }

    /// Everything up to the end.
    fn rest(mut self) -> String {
        let mut rest = String::new();
        self.heard.read_to_string(&mut rest).unwrap();
        rest
    }
}

#[test]
fn clients_type_machines_restart_and_a_signal_ends_all() {
    let test = "clients_type_machines_restart_and_a_signal_ends_all";
    let Some(guest) = NanoGuest::new(test) else { return };
    let mut service = Service::start(&guest);

    let mut first = service.attach("web");
    let booted = first.until("NANO READY\r\n");
    assert!(booted.contains("quiet"), "{booted}");
    first.typing.write_all(b"hello web").unwrap();
    first.until("hello web");
    // Another client sees all of it, and a machine of its own is not disturbed.
    let mut second = service.attach("web");
    assert_eq!(second.until("hello web"), format!("{booted}hello web"));
    service.attach("db").until("NANO READY\r\n");
    assert_eq!(service.ask("attach missing").rest(), "error: it did not start\n");

    let list = service.ask("list").rest();
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines, ["db running", "missing did not start", "web running"]);

    // A restart ends the consoles of the old machine, and the new one begins from nothing.
    assert_eq!(service.ask("restart web").rest(), "ok\n");
    assert_eq!((first.rest(), second.rest()), (String::new(), String::new()));
    let mut third = service.attach("web");
    assert_eq!(third.until("NANO READY\r\n"), booted);
    third.typing.write_all(b"again").unwrap();
    third.until("again");

    assert_eq!(service.ask("attach nobody").rest(), "error: no machine nobody\n");
    assert_eq!(service.ask("eat web").rest(), "error: what is eat?\n");
    let refused = service.ask("restart missing").rest();
    assert!(refused.starts_with("error: ") && refused.contains("/nowhere/vmlinuz"), "{refused}");
    assert_eq!(service.ask("stop db").rest(), "ok\n");
    assert!(service.ask("list").rest().starts_with("db stopped"));

    let run_dir = guest.dir().join("run");
    let hypervisors = || processes::with_argument(run_dir.to_str().unwrap()).len();
    assert_eq!(hypervisors(), 1);
    let pid = Pid::from_raw(service.process.id().cast_signed());
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(third.rest(), "");
    assert!(service.process.wait().unwrap().success());
    assert_eq!(hypervisors(), 0);
    assert!(!guest.dir().join("socket").exists());
}
