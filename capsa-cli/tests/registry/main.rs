//! Clients of package registries in a Debian guest under a policy: apt, curl, wget, git, pip and npm.
//!
//! The registries, with the names of real ones, and a name server are in network namespaces of the test, and
//! so is the command. No packet leaves them.

#![cfg(target_os = "linux")]

mod capture;
#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use capsa_network_rig::{Namespace, RigError};
use capsa_testkit::guest::{self, DebianGuest};
use capsa_testkit::programs::TestProgram;
use capsa_testkit::{command, host, skip};

/// The names of the registries.
const NAMES: [&str; 5] =
    ["deb.debian.org", "files.pythonhosted.org", "github.com", "pypi.org", "registry.npmjs.org"];
/// What is allowed, as `suggest` prints it: port 443 of each name, and one port 80.
const ALLOWED: &str = r#"[network]
mode = "policy"

[[network.allow]]
to = "deb.debian.org:443"

[[network.allow]]
to = "deb.debian.org:80"

[[network.allow]]
to = "files.pythonhosted.org:443"

[[network.allow]]
to = "github.com:443"

[[network.allow]]
to = "pypi.org:443"

[[network.allow]]
to = "registry.npmjs.org:443"
"#;
/// A host with the content of all registries, which the policy does not allow.
const REFUSED_NAME: &str = "mirror.example.net";
/// Another port with the same content, which the policy does not allow.
const REFUSED_PORT: &str = "8443";
/// The programs, and the registry whose other port is refused to each.
const PROGRAMS: [(&str, &str); 6] = [
    ("apt", "deb.debian.org"),
    ("curl", "deb.debian.org"),
    ("wget", "deb.debian.org"),
    ("git", "github.com"),
    ("pip", "files.pythonhosted.org"),
    ("npm", "registry.npmjs.org"),
];
/// The longest wait of the guest for a refusal, in microseconds.
const LONGEST_WAIT: u64 = 50_000;
/// The addresses of the registries and of the host. Addresses that look public: those of the host, and
/// private ones, are closed.
const REMOTE: [&str; 2] = ["203.0.114.2", "2001:db9::2"];
const HOST: [&str; 2] = ["203.0.114.1", "2001:db9::1"];

/// The host of the guest and the registries, each in a network namespace.
struct RegistryNetwork {
    dir: tempfile::TempDir,
    guest: DebianGuest,
    host: Namespace,
    _remote: Namespace,
    server: Child,
}

/// What a program of the guest did.
#[derive(Debug)]
struct Fetched {
    status: i32,
    millis: u64,
    output: String,
}

impl RegistryNetwork {
    /// Skips the calling test where the guest is not built or the host does not permit namespaces.
    fn new() -> Option<Self> {
        for program in ["qemu-system-x86_64", "python3", "openssl", "git", "tar"] {
            if host::find_program(program).is_none() {
                skip(format!("{program} is not installed"));
                return None;
            }
        }
        let guest = guest::built_debian_clients().map_err(skip).ok()?;
        Self::with(guest).map_err(skip).ok()
    }

    fn with(guest: DebianGuest) -> Result<Self, RigError> {
        let dir = tempfile::tempdir()?;
        let host = Namespace::new(TestProgram::new("network-rig").path())?;
        let remote = host.beside()?;
        let addresses = |of: [&str; 2]| [format!("{}/24", of[0]), format!("{}/64", of[1])];
        let (ours, theirs) = (addresses(HOST), addresses(REMOTE));
        host.connect("out0", &[&ours[0], &ours[1]], &remote, &[&theirs[0], &theirs[1]])?;
        host.ip(&format!("route add default via {}", REMOTE[0]))?;
        host.ip(&format!("-6 route add default via {}", REMOTE[1]))?;

        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/registry/server.py");
        let mut server = remote.command("python3");
        server.arg(script).arg(dir.path()).args(REMOTE).args(NAMES).arg(REFUSED_NAME);
        let mut server = server.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(server.stdout.take().expect("piped")).read_line(&mut line)?;
        assert_eq!(line, "ready\n", "the servers did not start");

        for (name, content) in [
            ("session.sh", include_str!("session.sh")),
            ("password", "capsa\n"),
            ("resolv.conf", &format!("nameserver {}\n", REMOTE[0])),
            ("nsswitch.conf", "hosts: files dns\n"),
            ("hosts", "127.0.0.1 localhost\n"),
        ] {
            fs::write(dir.path().join(name), content)?;
        }
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(dir.path()).arg("-cf").arg(dir.path().join("session.tar"));
        command::output(pack.args(["session.sh", "ca.pem"]))?;
        Ok(Self { dir, guest, host, _remote: remote, server })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect(name)
    }

    /// Runs the session in a guest with this network: what each program did. The packets are in
    /// `NAME.pcapng`, those that QEMU saw in `NAME.pcap`, and the events in `NAME.jsonl`.
    fn session(&self, name: &str, network: &str, words: &str) -> BTreeMap<String, Fetched> {
        let (capture, log) = (format!("{name}.pcapng"), format!("{name}.jsonl"));
        let config = self.path(&format!("{name}.toml"));
        let text = format!(
            "{network}\n[boot]\nkernel = {:?}\ninitrd = {:?}\n\
             [disk]\npath = {:?}\nephemeral = true\n\
             [[disks]]\npath = \"session.tar\"\nformat = \"raw\"\nread-only = true\n\
             [resources]\ncpus = 2\nmemory = \"1G\"\ntimeout = \"15m\"\n\
             [login]\npassword-file = \"password\"\n\
             [backend]\nname = \"qemu\"\naccel = \"emulation\"\n\
             [cmdline]\nextra = [\"rw\", \"quiet\", \"mitigations=off\", \"no_timer_check\"]\n",
            self.guest.kernel, self.guest.initrd, self.guest.disk
        );
        fs::write(&config, text).expect("a config file");
        let qemu = self.path("qemu");
        let dump = self.path(&format!("{name}.pcap"));
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *id=net0*)\n\
             set -- \"$@\" -object filter-dump,id=dump,netdev=net0,file={} ;;\nesac\n\
             exec qemu-system-x86_64 \"$@\"\n",
            dump.display()
        );
        fs::write(&qemu, script).expect("a script");
        fs::set_permissions(&qemu, PermissionsExt::from_mode(0o755)).expect("a script");
        // The name service of the host, replaced in a mount namespace of the command.
        let mounts: String = ["resolv.conf", "nsswitch.conf", "hosts"]
            .map(|name| format!("mount --bind {} /etc/{name} && ", self.path(name).display()))
            .concat();
        let mut run = self.host.command("unshare");
        run.args(["--mount", "sh", "-c", &format!("{mounts} exec \"$@\""), "sh"]);
        run.arg(env!("CARGO_BIN_EXE_capsa")).args(["run", "-q", "--config"]).arg(config);
        run.arg("--network-pcap").arg(self.path(&capture));
        run.arg("--network-log").arg(self.path(&log));
        run.args([
            "--",
            "sh",
            "-c",
            &format!("tar -xf /dev/vdb -C /tmp; sh /tmp/session.sh {words}"),
        ]);
        run.env("CAPSA_QEMU", qemu);
        run.env("CAPSA_RUN_DIR", common::run_dir(self.dir.path())).stdin(Stdio::null());
        let output = run.output().expect("the command");
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {text} {stderr}", output.status);
        fetched(&text)
    }
}

impl Drop for RegistryNetwork {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Parses the output of `session.sh`.
fn fetched(text: &str) -> BTreeMap<String, Fetched> {
    let parts = text.split("@@ ").skip(1);
    let parse = |part: &str| {
        let (head, output) = part.split_once('\n').expect("a line");
        let mut words = head.split(' ');
        let mut word = || words.next().expect("three words");
        let name = word().to_owned();
        let (status, millis) = (word().parse().expect("a status"), word().parse().expect("a time"));
        (name, Fetched { status, millis, output: output.trim().to_owned() })
    };
    parts.map(parse).collect()
}

/// Asserts that each program fetched what it was to fetch.
#[track_caller]
fn assert_fetched(all: &BTreeMap<String, Fetched>) {
    for (program, _) in PROGRAMS {
        let fetched = &all[program];
        assert_eq!(fetched.status, 0, "{program}: {}", fetched.output);
    }
    for program in ["curl", "wget", "http"] {
        assert!(all[program].output.contains("Codename: stable"), "{:?}", all[program]);
    }
    for content in ["hello\n", "TEXT = 'hello'", "module.exports = 'hello'"] {
        assert!(all["files"].output.contains(content), "{:?}", all["files"]);
    }
}

/// The policy of a session that was recorded is the smallest one, under it the session passes again, and
/// each program explains the refusal of another host and of another port, which it gets at once.
#[test]
fn registry_clients_pass_and_explain_refusals() {
    let Some(network) = RegistryNetwork::new() else { return };
    let recorded = network.session("record", "[network]\nmode = \"record\"", "");
    assert_fetched(&recorded);
    let log = network.path("record.jsonl");
    let suggest = ["network", "suggest", log.to_str().expect("a path")];
    let (code, policy, stderr) = common::ask(network.dir.path(), &suggest);
    assert_eq!((code, &*stderr), (0, ""));
    assert_eq!(policy, ALLOWED);

    fs::write(network.path("queries.log"), "").expect("a log");
    fs::write(network.path("requests.log"), "").expect("a log");
    let all = network.session("policy", &policy, "refused");
    assert_fetched(&all);
    for (program, fetched) in &recorded {
        let again = &all[program];
        println!("{program}: {} ms recorded, {} ms under the policy", fetched.millis, again.millis);
    }
    let mut unnamed = Vec::new();
    for (program, name) in PROGRAMS {
        for (case, host) in [("name", REFUSED_NAME), ("port", name)] {
            let Fetched { status, millis, output } = &all[&format!("{program}-{case}")];
            println!("{program}-{case}: {millis} ms, status {status}: {output}");
            if *status == 0 || !output.contains(host) {
                unnamed.push(format!("{program}-{case}, status {status}, {host}: {output}"));
            }
        }
    }
    assert!(unnamed.is_empty(), "{unnamed:#?}");

    for file in ["policy.pcapng", "policy.pcap"] {
        let refusals = capture::refusals(&network.path(file));
        for what in [REFUSED_NAME, REFUSED_PORT] {
            let of = refusals.iter().filter(|refusal| refusal.what == what);
            let mut waits: Vec<u64> = of.map(|refusal| refusal.micros).collect();
            waits.sort_unstable();
            println!("{file}: {what}: {waits:?} µs");
            // Each program asks or connects at least once.
            assert!(waits.len() >= PROGRAMS.len(), "{file}: {what}: {refusals:?}");
            // A busy host delays some of the packets between QEMU and the network.
            let judged =
                if file == "policy.pcap" { waits[waits.len() / 2] } else { waits[waits.len() - 1] };
            assert!(judged <= LONGEST_WAIT, "{file}: {what}: {waits:?}");
        }
    }
    // Nothing left for what is refused.
    for (log, count) in [("queries.log", NAMES.len()), ("requests.log", NAMES.len())] {
        let seen = network.read(log);
        assert!(!seen.contains(REFUSED_NAME), "{log}: {seen}");
        assert!(seen.lines().count() >= count, "{log}: {seen}");
    }
}
