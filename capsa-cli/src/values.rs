//! Reads the values that flags and the config file have in common.
//!
//! Each function takes a text and gives a value or one sentence fragment about why not.

use std::path::PathBuf;
use std::time::Duration;

use capsa::{
    Accelerator, ConsoleMode, DiskImage, ImageFormat, MountMode, NetworkMode, RebootPolicy,
    ShareMechanism, SharedDir, Virtio9pConfig, VirtioFsConfig, VsockDirection,
};

type Read<T> = Result<T, String>;

const MIB: u64 = 1 << 20;

/// Digits of a size, which are less than a u64 can have.
const MOST_DIGITS: usize = 18;

/// A size in MiB: `512M`, `2G`, `1.5GiB`. Units are powers of 1024, with or without the `i`.
pub(crate) fn memory_mb(text: &str) -> Read<u32> {
    // parse-size 1.1.0 adds to a full u64 when a 20th digit follows, which panics or comes out as 0.
    if text.bytes().filter(u8::is_ascii_digit).count() > MOST_DIGITS {
        return Err("it has more digits than any machine has bytes".into());
    }
    let size = parse_size::Config::new().with_binary().parse_size(text);
    let bytes = size.map_err(|error| match error {
        parse_size::Error::PosOverflow => "it is more than any machine has".to_owned(),
        _ => "it is no size; write 512M or 2G".into(),
    })?;
    if (1..MIB).contains(&bytes) && text.trim().bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("it has no unit; write 512M or 2G".into());
    }
    if bytes % MIB != 0 {
        return Err("it is not a whole number of MiB; write 512M or 2G".into());
    }
    u32::try_from(bytes / MIB).map_err(|_| "it is more than any machine has".into())
}

/// A time: `90s`, `5m`, `1h 30m`.
pub(crate) fn duration(text: &str) -> Read<Duration> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 90s or 5m"))
}

/// A whole number.
pub(crate) fn number(text: &str) -> Read<u32> {
    text.parse().map_err(|_| "it is not a whole number, or too large".into())
}

/// `FILE[:raw|:qcow2][:ro|:rw][:ephemeral]`; rw unless said. A file whose name ends in one of these words behind a
/// colon can be named in a config file.
pub(crate) fn disk(text: &str) -> Read<DiskImage> {
    let mut path = text;
    let (mut format, mut read_only, mut ephemeral) = (None, None, false);
    while let Some((rest, word)) = path.rsplit_once(':') {
        let again = match word {
            "raw" => format.replace(ImageFormat::Raw).is_some(),
            "qcow2" => format.replace(ImageFormat::Qcow2).is_some(),
            "ro" => read_only.replace(true).is_some(),
            "rw" => read_only.replace(false).is_some(),
            "ephemeral" => std::mem::replace(&mut ephemeral, true),
            _ => break,
        };
        if again {
            return Err(format!("{word:?} says again, or otherwise, what was said"));
        }
        path = rest;
    }
    if path.is_empty() {
        return Err("it names no file".into());
    }
    let image = match format {
        Some(format) => DiskImage::with_format(path, format),
        None => DiskImage::new(path),
    };
    Ok(DiskImage { read_only: read_only == Some(true), ephemeral, ..image })
}

/// `HOST:GUEST[:ro|:rw]`. The host's path may hold colons, the guest's may not.
pub(crate) fn share(text: &str) -> Read<SharedDir> {
    let (paths, mode) = match text.rsplit_once(':') {
        Some((paths, "ro")) => (paths, MountMode::ReadOnly),
        Some((paths, "rw")) => (paths, MountMode::ReadWrite),
        _ => (text, MountMode::default()),
    };
    match paths.rsplit_once(':') {
        Some((_, other)) if !other.is_empty() && !other.starts_with('/') => Err(format!(
            "{other:?} is neither ro nor rw, nor a path in the guest, which begins with /"
        )),
        Some((host, guest)) if !host.is_empty() && !guest.is_empty() => {
            Ok(SharedDir::new(host, guest, mode))
        }
        _ => Err("it is not HOST:GUEST, HOST:GUEST:ro or HOST:GUEST:rw".into()),
    }
}

/// A vsock port of the guest as a unix socket of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VsockRelay {
    /// Who connects.
    pub(crate) direction: VsockDirection,
    pub(crate) port: u32,
    /// To the guest, we listen here; to the host, we connect to it.
    pub(crate) socket: PathBuf,
}

/// `listen:PORT:SOCKET`, `connect:PORT:SOCKET`.
pub(crate) fn vsock(text: &str) -> Read<VsockRelay> {
    let form = || "write listen:PORT:SOCKET or connect:PORT:SOCKET".to_owned();
    let (verb, rest) = text.split_once(':').ok_or_else(form)?;
    let (port, socket) = rest.split_once(':').ok_or_else(form)?;
    let direction = match verb {
        "listen" => VsockDirection::ToGuest,
        "connect" => VsockDirection::ToHost,
        _ => return Err(form()),
    };
    if socket.is_empty() {
        return Err("it names no socket".into());
    }
    let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
    Ok(VsockRelay { direction, port, socket: socket.into() })
}

/// A machine's name: letters, digits, `-`, `_` and `.`, at most 64, not beginning with a `-` or `.`.
pub(crate) fn name(text: &str) -> Read<String> {
    let may_be = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match text {
        "" => Err("it is empty".into()),
        text if text.len() > 64 => Err("it is longer than 64 letters".into()),
        text if text.starts_with(['-', '.']) || !text.chars().all(may_be) => {
            Err("write letters, digits, -, _ and ., with a letter or digit first".into())
        }
        text => Ok(text.to_owned()),
    }
}

/// Who logs in: typed on a console, where a control character is a key.
pub(crate) fn user(text: &str) -> Read<String> {
    match text {
        "" => Err("it is empty".into()),
        text if text.chars().any(char::is_control) => {
            Err("it has a control character, which the guest would take for a key".into())
        }
        text => Ok(text.to_owned()),
    }
}

/// How a run tells how far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ProgressMode {
    /// One line on a terminal, until the guest speaks.
    #[default]
    Auto,
    /// JSON lines on standard error.
    Json,
    /// Not at all.
    None,
}

/// `auto`, `json`, `none`.
pub(crate) fn progress(text: &str) -> Read<ProgressMode> {
    let words =
        [("auto", ProgressMode::Auto), ("json", ProgressMode::Json), ("none", ProgressMode::None)];
    one_of(text, &words)
}

/// `stdio`, `enabled`, `disabled`.
pub(crate) fn console(text: &str) -> Read<ConsoleMode> {
    one_of(
        text,
        &[
            ("stdio", ConsoleMode::Stdio),
            ("enabled", ConsoleMode::Enabled),
            ("disabled", ConsoleMode::Disabled),
        ],
    )
}

/// `none`, `nat`.
pub(crate) fn network(text: &str) -> Read<NetworkMode> {
    one_of(text, &[("none", NetworkMode::None), ("nat", NetworkMode::Nat)])
}

/// `auto`, `kvm`, `hvf`, `emulation`.
pub(crate) fn accelerator(text: &str) -> Read<Accelerator> {
    one_of(
        text,
        &[
            ("auto", Accelerator::Auto),
            ("kvm", Accelerator::Kvm),
            ("hvf", Accelerator::Hvf),
            ("emulation", Accelerator::Emulation),
        ],
    )
}

/// `auto`, `end`, `restart`.
pub(crate) fn on_reboot(text: &str) -> Read<RebootPolicy> {
    one_of(
        text,
        &[
            ("auto", RebootPolicy::Auto),
            ("end", RebootPolicy::End),
            ("restart", RebootPolicy::Restart),
        ],
    )
}

/// `raw`, `qcow2`.
pub(crate) fn image_format(text: &str) -> Read<ImageFormat> {
    one_of(text, &[("raw", ImageFormat::Raw), ("qcow2", ImageFormat::Qcow2)])
}

/// `ro`, `rw`.
pub(crate) fn mount_mode(text: &str) -> Read<MountMode> {
    one_of(text, &[("ro", MountMode::ReadOnly), ("rw", MountMode::ReadWrite)])
}

/// `auto`, `virtio-fs`, `virtio-9p`.
pub(crate) fn mechanism(text: &str) -> Read<ShareMechanism> {
    one_of(
        text,
        &[
            ("auto", ShareMechanism::Auto),
            ("virtio-fs", ShareMechanism::VirtioFs(VirtioFsConfig::default())),
            ("virtio-9p", ShareMechanism::Virtio9p(Virtio9pConfig::default())),
        ],
    )
}

/// `linux`.
pub(crate) fn guest_os(text: &str) -> Read<()> {
    one_of(text, &[("linux", ())])
}

/// `direct`.
pub(crate) fn boot(text: &str) -> Read<()> {
    one_of(text, &[("direct", ())])
}

fn one_of<T: Clone>(text: &str, words: &[(&str, T)]) -> Read<T> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| value.clone()).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        format!("it is not known; write {}", words.join(" or "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{FLAGS, Takes};

    #[test]
    fn memory() {
        for (text, want) in [
            ("512M", Some(512)),
            ("2G", Some(2048)),
            ("2GiB", Some(2048)),
            ("2GB", Some(2048)),
            ("1.5g", Some(1536)),
            ("1048576", Some(1)),
            ("0", Some(0)), // refused by the check, with the other problems
            ("512", None),
            ("1500K", None),
            ("-1G", None),
            ("", None),
            ("G", None),
            ("2 Q", None),
            ("8192E", None),
            ("15E", None),
            ("184467440737095515602", None),
        ] {
            assert_eq!(memory_mb(text).ok(), want, "{text}: {:?}", memory_mb(text));
        }
    }

    #[test]
    fn times() {
        for (text, want) in [
            ("5m", Some(300)),
            ("90s", Some(90)),
            ("1h 30m", Some(5400)),
            ("5", None),
            ("", None),
            ("-5m", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text).ok(), want.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn disks() {
        let image = DiskImage::new;
        for (text, want) in [
            ("a.qcow2", image("a.qcow2")),
            ("a.qcow2:raw", DiskImage::with_format("a.qcow2", ImageFormat::Raw)),
            ("a:qcow2:ro", DiskImage::with_format("a", ImageFormat::Qcow2).read_only()),
            ("a:ro:qcow2", DiskImage::with_format("a", ImageFormat::Qcow2).read_only()),
            ("a:ephemeral", image("a").ephemeral()),
            ("a:b:ro", image("a:b").read_only()),
            ("a:rw", image("a")),
            ("a:rw:ephemeral", image("a").ephemeral()),
        ] {
            assert_eq!(disk(text), Ok(want), "{text}");
        }
        for text in [
            "",
            ":ro",
            "a:ro:ro",
            "a:ro:rw",
            "a:rw:raw:ro",
            "a:raw:qcow2",
            "a:ephemeral:ro:ephemeral",
        ] {
            assert!(disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares() {
        let (ro, rw) = (MountMode::ReadOnly, MountMode::ReadWrite);
        for (text, want) in [
            ("./w:/w", SharedDir::new("./w", "/w", ro)),
            ("./w:/w:ro", SharedDir::new("./w", "/w", ro)),
            ("./w:/w:rw", SharedDir::new("./w", "/w", rw)),
            ("a:b:/w:rw", SharedDir::new("a:b", "/w", rw)),
        ] {
            assert_eq!(share(text), Ok(want), "{text}");
        }
        for text in ["", "a", ":", "a:", ":/w", "a:ro", "a:rw", ":ro", "a:/w:rwx", "a:w"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn vsock_relays() {
        let relay =
            |direction, port, socket: &str| VsockRelay { direction, port, socket: socket.into() };
        assert_eq!(
            vsock("listen:5000:a:b.sock"),
            Ok(relay(VsockDirection::ToGuest, 5000, "a:b.sock"))
        );
        assert_eq!(vsock("connect:1:/s"), Ok(relay(VsockDirection::ToHost, 1, "/s")));
        for text in ["", "listen", "listen:1", "listen:1:", "listen::s", "listen:-1:s", "both:1:s"]
        {
            assert!(vsock(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names() {
        for text in ["a", "build-7", "A.b_c", "0"] {
            assert_eq!(name(text).as_deref(), Ok(text));
        }
        for text in ["", "-a", ".", "..", "a/b", "a b", "ü", &"x".repeat(65)] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_word_of_the_flag_table_is_read() {
        for flag in FLAGS {
            let Takes::Word(words) = flag.takes else { continue };
            for word in words {
                let is_read = match flag.name {
                    "--console" => console(word).is_ok(),
                    "--network" => network(word).is_ok(),
                    "--accel" => accelerator(word).is_ok(),
                    "--on-reboot" => on_reboot(word).is_ok(),
                    "--progress" => progress(word).is_ok(),
                    other => panic!("{other} is not tried here"),
                };
                assert!(is_read, "{} {word}", flag.name);
            }
        }
        assert_eq!(
            console("tty").unwrap_err(),
            "it is not known; write stdio or enabled or disabled"
        );
    }
}
