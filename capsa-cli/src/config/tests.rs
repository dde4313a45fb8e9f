//! The whole file, and every way to get one wrong.

use std::fs;
use std::path::Path;
use std::time::Duration;

use capsa::{
    Accelerator, ConsoleMode, DiskImage, ImageFormat, MountMode, NetworkMode, RebootPolicy,
    ShareMechanism, SharedDir,
};

use super::table::{SECTIONS, Shape};
use super::*;

/// The file of the specification, and what it leaves out.
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
fn the_whole_file_is_read() {
    let settings = parse(WHOLE, Path::new("/etc/vms")).unwrap();
    assert_eq!(settings.kernel.as_deref(), Some(Path::new("/etc/vms/./bzImage")));
    assert_eq!(settings.initrd.as_deref(), Some(Path::new("/abs/initrd")));
    assert_eq!(
        settings.disks,
        [
            (
                Some("disk".into()),
                DiskImage::with_format("/etc/vms/./rootfs.qcow2", ImageFormat::Qcow2)
            ),
            (Some("disks[0]".into()), DiskImage::new("/etc/vms/data.img").read_only()),
        ]
    );
    assert_eq!((settings.cpus, settings.memory_mb), (Some(2), Some(2048)));
    assert_eq!(settings.timeout, Some(Duration::from_secs(300)));
    assert_eq!(settings.network, Some(NetworkMode::Nat));
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
fn every_key_of_the_table_is_read_as_its_example_says() {
    for section in SECTIONS {
        for key in section.keys {
            let head = section.head();
            let mut text = format!("{head}\n{} = {}\n", key.name, key.example);
            for other in section.keys.iter().filter(|other| other.is_required) {
                if other.name != key.name {
                    text.push_str(&format!("{} = {}\n", other.name, other.example));
                }
            }
            if section.name == "vsock" && key.name == "port" {
                text.push_str("listen = \"s\"\n");
            }
            let settings = parse(&text, Path::new(""));
            assert!(settings.is_ok(), "{text}: {settings:?}");
            // Said with nothing known of it, it would be a mistake: the key is looked at.
            let broken = text.replacen(&format!("{} = {}", key.name, key.example), "zzz = 1", 1);
            assert!(parse(&broken, Path::new("")).is_err(), "{broken}");
            let mistyped = text.replacen(key.example, "1979-05-27", 1);
            assert!(parse(&mistyped, Path::new("")).is_err(), "{mistyped}");
        }
        assert!(section.shape != Shape::Named || section.head().contains("NAME"));
    }
}

#[test]
fn an_empty_file_says_nothing() {
    assert_eq!(parse("", Path::new("")).unwrap(), Settings::default());
}

#[test]
fn any_cut_of_a_file_is_read_or_refused_with_a_place() {
    for end in 0..WHOLE.len() {
        if let Err(wrongs) = parse(&WHOLE[..end], Path::new("/")) {
            assert!(!wrongs.is_empty());
            let text = failure(Path::new("f"), &WHOLE[..end], wrongs).to_string();
            assert!(text.contains("\n  f:"), "{text}");
        }
    }
}

/// Each file of `tests/snapshots/config.txt` has the mistakes that stand below it there.
/// `CAPSA_BLESS=1` writes down those it has now.
#[test]
fn broken_files_are_explained() {
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
        let wrongs = parse(&text, Path::new("")).expect_err(name);
        let said = failure(Path::new("vm.toml"), &text, wrongs);
        assert_eq!(said.code, CONFIG);
        now.push_str(&format!("=== {name}\n{text}---\n{said}\n\n"));
    }
    assert!(files.len() >= 60, "{} files", files.len());
    let now = format!("{}\n", now.trim_end());
    if std::env::var_os("CAPSA_BLESS").is_some() {
        fs::write(path, now).unwrap();
    } else {
        assert!(
            now == snapshots,
            "another than {path}; run with CAPSA_BLESS=1 and look at the diff"
        );
    }
}
