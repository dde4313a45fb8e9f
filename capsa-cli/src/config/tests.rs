//! A complete file, and a snapshot of the messages for each kind of mistake.

use std::fs;
use std::path::Path;
use std::time::Duration;

use capsa::{
    Accelerator, ConsoleMode, DiskImage, ImageFormat, MountMode, RebootPolicy, ShareMechanism,
    SharedDir,
};

use super::*;
use crate::flags::Arguments;
use crate::settings::{SECTIONS, Shape};
use crate::values;

/// The file of the specification, and the keys that it does not have.
const WHOLE: &str = r#"
[guest]
os = "linux"
boot = "direct"
on-reboot = "restart"
name = "build"

[boot]
kernel = "./bzImage"
initrd = "/abs/initrd"

[disk]
path = "./rootfs.qcow2"
format = "qcow2"  # optional, auto-detected

[[disks]]
path = "data.img"
read-only = true

[resources]
cpus = 2
memory = "2G"
timeout = "5m"
grace = "10s"

[network]
mode = "nat"
allow-private = true
allow-host-ports = [5432]
pcap = "/r.pcapng"

[[network.forward]]
host = "127.0.0.1:0"
guest = 80

[[network.forward]]
unix = "dns.sock"
guest = 53

[[network.service]]
address = "llm.capsa.internal:80"
unix = "llm.sock"

[console]
mode = "enabled"
log = "console.log"
record = "/r.cast"

[shares.workspace]
host = "./workspace"
guest = "/workspace"
mode = "rw"

[shares."a b"]
host = "/b"
guest = "/b"
mechanism = "virtio-9p"

[[vsock]]
port = 5000
listen = "agent.sock"

[cmdline]
extra = ["quiet", "loglevel=3"]

[backend]
name = "qemu"
accel = "emulation"

[login]
user = "me"
password-file = "secret"
"#;

#[test]
fn config_complete_file_is_read() {
    let settings = parse(WHOLE, Path::new("/etc/vms")).unwrap();
    assert_eq!(settings.kernel.as_deref(), Some(Path::new("/etc/vms/./bzImage")));
    assert_eq!(settings.initrd.as_deref(), Some(Path::new("/abs/initrd")));
    assert_eq!(
        settings.disks,
        [
            (
                Some("disk".into()),
                DiskImage::with_format("/etc/vms/./rootfs.qcow2", ImageFormat::Qcow2).into()
            ),
            (Some("disks[0]".into()), DiskImage::new("/etc/vms/data.img").read_only()),
        ]
    );
    assert_eq!((settings.cpus, settings.memory_mb), (Some(2), Some(2048)));
    assert_eq!(settings.timeout, Some(Duration::from_secs(300)));
    let flags = "--network nat --allow-private --allow-host-port 5432 --network-pcap /r.pcapng";
    let words = format!("run {flags}");
    let flags = Arguments::parse(words.split(' ').map(Into::into).collect()).unwrap();
    let mut from_flags = Settings::default();
    flags.apply(&mut from_flags).unwrap();
    let mut want = from_flags.network;
    let forward = |n| Some(format!("network.forward[{n}]"));
    want.forwards = vec![
        (forward(0), values::forward("127.0.0.1:0:80").unwrap()),
        (forward(1), values::forward("unix:/etc/vms/dns.sock:53").unwrap()),
    ];
    let service = values::service("llm.capsa.internal:80=unix:/etc/vms/llm.sock").unwrap();
    want.services = vec![(Some("network.service[0]".into()), service)];
    assert_eq!(settings.network, want);
    assert_eq!(settings.console, Some(ConsoleMode::Enabled));
    assert_eq!(settings.shares[1].0.as_deref(), Some("shares.workspace"));
    assert_eq!(
        settings.shares[1].1,
        SharedDir::new("/etc/vms/./workspace", "/workspace", MountMode::ReadWrite)
    );
    assert!(matches!(settings.shares[0].1.mechanism, ShareMechanism::Virtio9p(_)));
    assert_eq!(settings.cmdline, ["quiet", "loglevel=3"]);
    assert_eq!(settings.backend.as_deref(), Some("qemu"));
    assert_eq!(settings.accelerator, Some(Accelerator::Emulation));
    assert_eq!(settings.on_reboot, Some(RebootPolicy::Restart));
    let (log, record) = (settings.log.as_deref(), settings.record.as_deref());
    assert_eq!(log.zip(record), Some((Path::new("/etc/vms/console.log"), Path::new("/r.cast"))));
    assert_eq!((settings.name.as_deref(), settings.user.as_deref()), (Some("build"), Some("me")));
    assert_eq!(settings.password_file.as_deref(), Some(Path::new("/etc/vms/secret")));
    assert_eq!(settings.grace, Some(Duration::from_secs(10)));
    assert_eq!(settings.vsock[0].socket, Path::new("/etc/vms/agent.sock"));
}

#[test]
fn config_every_key_accepts_its_example() {
    for section in SECTIONS {
        for row in section.rows() {
            let header = section.header();
            let mut text = format!("{header}\n{} = {}\n", row.key_name(), row.example);
            for other in section.rows().filter(|other| other.required) {
                if other.key != row.key {
                    text.push_str(&format!("{} = {}\n", other.key_name(), other.example));
                }
            }
            match row.key {
                "vsock.port" => text.push_str("listen = \"s\"\n"),
                "network.forward.guest" | "network.forward.protocol" => {
                    text.push_str("host = \"0\"\n");
                }
                _ => {}
            }
            let settings = parse(&text, Path::new(""));
            assert!(settings.is_ok(), "{text}: {settings:?}");
            let broken =
                text.replacen(&format!("{} = {}", row.key_name(), row.example), "zzz = 1", 1);
            assert!(parse(&broken, Path::new("")).is_err(), "{broken}");
            let mistyped = text.replacen(row.example, "1979-05-27", 1);
            assert!(parse(&mistyped, Path::new("")).is_err(), "{mistyped}");
        }
        assert!(section.shape != Shape::Named || section.header().contains("NAME"));
    }
}

#[test]
fn config_empty_file_sets_nothing() {
    assert_eq!(parse("", Path::new("")).unwrap(), Settings::default());
}

#[test]
fn config_truncated_anywhere_is_read_or_mistaken() {
    for end in 0..WHOLE.len() {
        if let Err(mistakes) = parse(&WHOLE[..end], Path::new("/")) {
            assert!(!mistakes.is_empty());
            let text = failure(Path::new("f"), &WHOLE[..end], mistakes).to_string();
            assert!(text.contains("\n  f:"), "{text}");
        }
    }
}

/// Each file of `tests/snapshots/config.txt` has the mistakes that are listed below it.
/// `CAPSA_BLESS=1` writes the current ones.
#[test]
fn config_mistakes_match_the_snapshot() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/config.txt");
    let snapshots = fs::read_to_string(path).unwrap();
    let mut now = String::new();
    let files: Vec<&str> = snapshots.split_inclusive("\n\n=== ").collect();
    for (n, file) in files.iter().enumerate() {
        let file = file.strip_suffix("\n\n=== ").unwrap_or(file);
        let file = if n == 0 { file.strip_prefix("=== ").unwrap_or(file) } else { file };
        let (name, rest) = file.split_once('\n').unwrap();
        let (text, _) = rest.split_once("\n---\n").unwrap();
        let text = format!("{text}\n");
        let mistakes = parse(&text, Path::new("")).expect_err(name);
        let message = failure(Path::new("vm.toml"), &text, mistakes);
        assert_eq!(message.code, CONFIG);
        now.push_str(&format!("=== {name}\n{text}---\n{message}\n\n"));
    }
    assert!(files.len() >= 60, "{} files", files.len());
    let now = format!("{}\n", now.trim_end());
    if std::env::var_os("CAPSA_BLESS").is_some() {
        fs::write(path, now).unwrap();
    } else {
        assert!(now == snapshots, "{path} differs; run with CAPSA_BLESS=1 and look at the diff");
    }
}

#[test]
fn network_field_from_a_file_has_its_key() {
    let mut settings = parse(WHOLE, Path::new("/etc/vms")).unwrap();
    settings.spans.set_source(Path::new("vm.toml"), WHOLE.into());
    assert_eq!(settings.name_of("allow_host_ports"), "network.allow-host-ports");
    assert_eq!(settings.name_of("network_pcap"), "network.pcap");
    assert_eq!(settings.name_of("forwards"), "network.forward");
}

#[test]
fn unknown_key_of_a_service_lists_its_keys() {
    let text = "[[network.service]]\nname = \"a\"\n";
    let mistakes = parse(text, Path::new("")).unwrap_err();
    let message = failure(Path::new("vm.toml"), text, mistakes).to_string();
    assert!(message.contains("known keys: address, unix"), "{message}");
}

#[test]
fn unknown_key_may_be_meant_for_a_nested_section() {
    for (text, meant) in [
        ("[network]\n[network.limit]\nflows = 3\n", "did you mean limits?"),
        ("[network.limits]\nflow = 3\n", "did you mean flows?"),
    ] {
        let mistakes = parse(text, Path::new("")).unwrap_err();
        let message = failure(Path::new("vm.toml"), text, mistakes).to_string();
        assert!(message.contains(meant), "{message}");
    }
}
