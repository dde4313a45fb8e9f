//! The config file: TOML, strict.
//!
//! A key that is not known, a value of the wrong type, a word that is not one of those allowed: each
//! is an error with the line and its text. Relative paths count from the file's folder. What the
//! file leaves out is left to the flags and the library's defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capsa::{
    Accelerator, ConsoleMode, DiskImage, ImageFormat, MountMode, NetworkMode, RebootPolicy,
    ShareMechanism, SharedDir,
};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

use crate::failure::{CONFIG, Failure};
use crate::settings::Settings;
use crate::values;

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Settings, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(CONFIG, format!("cannot read {}: {error}", path.display()))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    parse(&text, folder).map_err(|wrong| {
        let Wrong { line, text, why } = wrong;
        Failure::new(CONFIG, format!("cannot use {}: line {line}: {why}", path.display()))
            .detail(format!("{line} | {text}"))
    })
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
struct Wrong {
    /// Counted from 1.
    line: usize,
    /// The line's text.
    text: String,
    why: String,
}

fn parse(text: &str, folder: &Path) -> Result<Settings, Wrong> {
    let file: File = toml::from_str(text).map_err(|error| {
        let Range { start, .. } = error.span().unwrap_or(0..0);
        let before = &text.as_bytes()[..start.min(text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let why = error.message().lines().collect::<Vec<_>>().join("; ");
        Wrong { line, text: text.lines().nth(line - 1).unwrap_or_default().trim_end().into(), why }
    })?;
    Ok(file.into_settings(folder))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    guest: Guest,
    boot: Boot,
    disk: Option<Disk>,
    disks: Vec<Disk>,
    resources: Resources,
    network: Network,
    console: Console,
    shares: BTreeMap<String, Share>,
    cmdline: Cmdline,
    backend: Backend,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Guest {
    #[serde(deserialize_with = "with::guest_os")]
    os: Option<()>,
    #[serde(deserialize_with = "with::boot")]
    boot: Option<()>,
    #[serde(deserialize_with = "with::on_reboot")]
    on_reboot: Option<RebootPolicy>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Boot {
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Disk {
    path: PathBuf,
    #[serde(default, deserialize_with = "with::image_format")]
    format: Option<ImageFormat>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    ephemeral: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Resources {
    cpus: Option<u32>,
    #[serde(deserialize_with = "with::memory_mb")]
    memory: Option<u32>,
    #[serde(deserialize_with = "with::duration")]
    timeout: Option<Duration>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Network {
    #[serde(deserialize_with = "with::network")]
    mode: Option<NetworkMode>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Console {
    #[serde(deserialize_with = "with::console")]
    mode: Option<ConsoleMode>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    host: PathBuf,
    guest: String,
    #[serde(default, deserialize_with = "with::mount_mode")]
    mode: Option<MountMode>,
    #[serde(default, deserialize_with = "with::mechanism")]
    mechanism: Option<ShareMechanism>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Cmdline {
    extra: Vec<String>,
    r#override: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Backend {
    name: Option<String>,
    #[serde(deserialize_with = "with::accelerator")]
    accel: Option<Accelerator>,
}

impl File {
    fn into_settings(self, folder: &Path) -> Settings {
        let Self {
            guest,
            boot,
            disk,
            disks,
            resources,
            network,
            console,
            shares,
            cmdline,
            backend,
        } = self;
        let Guest { os: _, boot: _, on_reboot } = guest;
        // An empty path stays empty: the check says that it names nothing.
        let from_here =
            |path: PathBuf| if path.as_os_str().is_empty() { path } else { folder.join(path) };
        let image = |disk: Disk| {
            let Disk { path, format, read_only, ephemeral } = disk;
            let path = from_here(path);
            let image = match format {
                Some(format) => DiskImage::with_format(path, format),
                None => DiskImage::new(path),
            };
            DiskImage { read_only, ephemeral, ..image }
        };
        let named = |n: usize, disk| (Some(format!("disks[{n}]")), image(disk));
        let first = disk.map(|disk| (Some("disk".to_owned()), image(disk)));
        let share = |(name, share): (String, Share)| {
            let Share { host, guest, mode, mechanism } = share;
            let shared = SharedDir {
                mechanism: mechanism.unwrap_or_default(),
                ..SharedDir::new(from_here(host), guest, mode.unwrap_or_default())
            };
            (Some(format!("shares.{name}")), shared)
        };
        Settings {
            kernel: boot.kernel.map(from_here),
            initrd: boot.initrd.map(from_here),
            disks: first
                .into_iter()
                .chain(disks.into_iter().enumerate().map(|(n, disk)| named(n, disk)))
                .collect(),
            shares: shares.into_iter().map(share).collect(),
            console: console.mode,
            cpus: resources.cpus,
            memory_mb: resources.memory,
            timeout: resources.timeout,
            network: network.mode,
            cmdline: cmdline.extra,
            cmdline_override: cmdline.r#override,
            backend: backend.name,
            accelerator: backend.accel,
            on_reboot,
        }
    }
}

/// A text that one of [`values`] reads.
struct Text<T>(fn(&str) -> Result<T, String>);

impl<T> Visitor<'_> for Text<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text in quotes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Option<T>, E> {
        (self.0)(text).map(Some).map_err(|why| E::custom(format!("{text:?}: {why}")))
    }
}

/// One function for serde per reader of [`values`].
mod with {
    use super::*;

    macro_rules! readers {
        ($($name:ident -> $value:ty;)*) => {$(
            pub(super) fn $name<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<Option<$value>, D::Error> {
                from.deserialize_str(Text(values::$name))
            }
        )*};
    }

    readers! {
        guest_os -> ();
        boot -> ();
        on_reboot -> RebootPolicy;
        image_format -> ImageFormat;
        memory_mb -> u32;
        duration -> Duration;
        network -> NetworkMode;
        console -> ConsoleMode;
        mount_mode -> MountMode;
        mechanism -> ShareMechanism;
        accelerator -> Accelerator;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of the specification, and what it leaves out.
    const WHOLE: &str = r#"
[guest]
os = "linux"
boot = "direct"
on-reboot = "restart"

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

[network]
mode = "nat"

[console]
mode = "enabled"

[shares.workspace]
host = "./workspace"
guest = "/workspace"
mode = "rw"

[shares."a b"]
host = "/b"
guest = "/b"
mechanism = "virtio-9p"

[cmdline]
extra = ["quiet", "loglevel=3"]

[backend]
name = "qemu"
accel = "emulation"
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
    }

    #[test]
    fn an_empty_file_says_nothing() {
        assert_eq!(parse("", Path::new("")).unwrap(), Settings::default());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, says) in [
            ("[resources]\ncpus = 2\nmemry = \"2G\"\n", 3, "unknown field `memry`"),
            ("[resource]\ncpus = 2\n", 1, "unknown field `resource`"),
            ("[resources]\ncpus = \"2\"\n", 2, "invalid type: string \"2\", expected u32"),
            ("[resources]\ncpus = -1\n", 2, "expected u32"),
            ("[resources]\nmemory = 512\n", 2, "expected a text in quotes"),
            ("\n\n[resources]\nmemory = \"2Q\"\n", 4, "\"2Q\": "),
            ("[resources]\ntimeout = \"5\"\n", 2, "write 90s or 5m"),
            ("[network]\nmode = \"tap\"\n", 2, "\"tap\": write none or nat"),
            ("[guest]\nos = \"plan9\"\n", 2, "\"plan9\": write linux"),
            ("[guest]\nboot = \"uefi\"\n", 2, "\"uefi\": write direct"),
            ("[disk]\nformat = \"raw\"\n", 1, "missing field `path`"),
            ("[shares.w]\nhost = \"/w\"\n", 1, "missing field `guest`"),
            ("[shares.w]\nhost = \"/w\"\nguest = \"/w\"\nmode = \"x\"\n", 4, "write ro or rw"),
            ("[cmdline]\nextra = \"quiet\"\n", 2, "expected a sequence"),
            ("[boot]\nkernel = \"a\"\nkernel = \"b\"\n", 3, "duplicate key"),
            ("a = \n", 1, ""),
            ("[boot\n", 1, ""),
        ] {
            let wrong = parse(text, Path::new("")).unwrap_err();
            assert_eq!(wrong.line, line, "{text}: {wrong:?}");
            assert_eq!(wrong.text, text.lines().nth(line - 1).unwrap().trim_end(), "{wrong:?}");
            assert!(wrong.why.contains(says), "{text}: {wrong:?}");
            assert!(!wrong.why.contains('\n') && !wrong.why.is_empty(), "{wrong:?}");
        }
    }

    #[test]
    fn any_cut_of_a_file_is_read_or_refused() {
        for end in 0..WHOLE.len() {
            if let Err(wrong) = parse(&WHOLE[..end], Path::new("/")) {
                assert!(wrong.line >= 1);
            }
        }
    }
}
