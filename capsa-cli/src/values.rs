//! Parses the values that flags and the config file have in common.
//!
//! Each function returns the value, or what is wrong with the text and what is accepted.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use capsa::network::{InvalidListenAddress, TransportProtocol};
use capsa::vsock::VsockDirection;
use capsa::{DiskImage, ImageFormat, MountMode, SharedDir, VmDisk};
use humantime::DurationError;

use crate::settings::{ForwardSetting, ServiceSetting};

type Parsed<T> = Result<T, String>;

const MIB: u64 = 1 << 20;

/// Maximum digits of a size: any number of so many fits into a u64.
const MAX_DIGITS: usize = 18;

/// A path.
pub(crate) fn path(text: &OsStr) -> Parsed<PathBuf> {
    match text.as_bytes() {
        [] => Err("the path is empty".into()),
        bytes if bytes.contains(&0) => Err(format!("invalid path {text:?}: contains a NUL byte")),
        _ => Ok(text.into()),
    }
}

/// A size in MiB: `512M`, `2G`, `1.5GiB`. Units are powers of 1024, with or without the `i`.
pub(crate) fn memory_mb(text: &str) -> Parsed<u32> {
    let invalid = |reason: &str| Err(format!("invalid size {text:?}: {reason}"));
    const TOO_LARGE: &str = "the maximum is 4095T";
    // parse-size 1.1.0 adds to a full u64 when a 20th digit follows, which panics or wraps around to 0.
    if text.bytes().filter(u8::is_ascii_digit).count() > MAX_DIGITS {
        return invalid(TOO_LARGE);
    }
    let bytes = match parse_size::Config::new().with_binary().parse_size(text) {
        Ok(bytes) => bytes,
        Err(parse_size::Error::PosOverflow) => return invalid(TOO_LARGE),
        Err(_) => return invalid("expected e.g. 512M or 2G"),
    };
    if (1..MIB).contains(&bytes) && text.trim().bytes().all(|byte| byte.is_ascii_digit()) {
        return invalid("without a unit it is in bytes; expected e.g. 512M or 2G");
    }
    if bytes % MIB != 0 {
        return invalid("not a multiple of 1 MiB; expected e.g. 512M or 2G");
    }
    u32::try_from(bytes / MIB).or_else(|_| invalid(TOO_LARGE))
}

/// A number of bytes: `20MB`, `2GiB`, `1000`. `MB` is a power of 1000, `MiB` of 1024.
pub(crate) fn byte_count(text: &str) -> Parsed<u64> {
    let is_short = text.bytes().filter(u8::is_ascii_digit).count() <= MAX_DIGITS;
    let parsed = parse_size::Config::new().with_decimal().parse_size(text).ok();
    parsed
        .filter(|_| is_short)
        .ok_or_else(|| format!("invalid size {text:?}: expected e.g. 20MB or 2GiB"))
}

/// A time: `90s`, `5m`, `1h 30m`.
pub(crate) fn duration(text: &str) -> Parsed<Duration> {
    humantime::parse_duration(text).map_err(|error| {
        let reason = match error {
            DurationError::NumberOverflow => "too large".into(),
            DurationError::UnknownUnit { unit, .. } if !unit.is_empty() => {
                format!("unknown unit {unit:?}, expected e.g. 90s or 5m")
            }
            _ => "expected e.g. 90s or 5m".into(),
        };
        format!("invalid time {text:?}: {reason}")
    })
}

/// The numbers that a setting accepts, both ends included. Parsing accepts every u32: validation
/// reports one that is out of bounds, together with the other violations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds(pub(crate) u32, pub(crate) u32);

/// A whole number.
pub(crate) fn number(text: &str, bounds: Bounds) -> Parsed<u32> {
    text.parse().map_err(|_| invalid_number(text, bounds))
}

/// The message for a text that is no whole number, or is one that does not fit into a u32.
pub(crate) fn invalid_number(text: &str, Bounds(min, max): Bounds) -> String {
    format!("invalid number {text:?}: expected {min} to {max}")
}

/// `FILE[:raw|:qcow2][:ro|:rw][:ephemeral][:allow-mounted][:backing=PATH]…`; default: `rw`. A file whose name ends in a
/// colon and one of these options, and a backing file with a colon in its path, have to be named in a
/// config file.
pub(crate) fn disk(text: &str) -> Parsed<VmDisk> {
    let mut path = text;
    let (mut format, mut read_only) = (None, None);
    let (mut ephemeral, mut allow_mounted) = (false, false);
    let mut backing = Vec::new();
    while let Some((rest, option)) = path.rsplit_once(':') {
        let is_set = match option {
            "raw" => format.replace(ImageFormat::Raw).is_some(),
            "qcow2" => format.replace(ImageFormat::Qcow2).is_some(),
            "ro" => read_only.replace(true).is_some(),
            "rw" => read_only.replace(false).is_some(),
            "ephemeral" => std::mem::replace(&mut ephemeral, true),
            "allow-mounted" => std::mem::replace(&mut allow_mounted, true),
            _ => match option.strip_prefix("backing=") {
                Some("") => {
                    return Err(format!("invalid disk {text:?}: the path of backing= is empty"));
                }
                Some(allowed) => {
                    backing.insert(0, PathBuf::from(allowed));
                    false
                }
                None => break,
            },
        };
        if is_set {
            let reason = format!("option {option:?} repeats or conflicts with another option");
            return Err(format!("invalid disk {text:?}: {reason}"));
        }
        path = rest;
    }
    if path.is_empty() {
        return Err(format!("invalid disk {text:?}: the path is empty"));
    }
    let image = match format {
        Some(format) => DiskImage::with_format(path, format),
        None => DiskImage::new(path),
    };
    let mut disk = VmDisk::new(image);
    disk.read_only = read_only == Some(true);
    disk.ephemeral = ephemeral;
    disk.backing = backing;
    disk.allow_mounted = allow_mounted;
    Ok(disk)
}

/// `HOST:GUEST[:ro|:rw]`. The host's path may contain colons, the guest's may not.
pub(crate) fn share(text: &str) -> Parsed<SharedDir> {
    let (paths, mode) = match text.rsplit_once(':') {
        Some((paths, "ro")) => (paths, MountMode::ReadOnly),
        Some((paths, "rw")) => (paths, MountMode::ReadWrite),
        _ => (text, MountMode::default()),
    };
    let reason = match paths.rsplit_once(':') {
        Some((_, other)) if !other.is_empty() && !other.starts_with('/') => {
            format!("{other:?} is neither ro nor rw nor an absolute path in the guest")
        }
        Some((host, guest)) if !host.is_empty() && !guest.is_empty() => {
            return Ok(SharedDir::new(host, guest, mode));
        }
        _ => "expected HOST:GUEST[:ro|:rw]".into(),
    };
    Err(format!("invalid share {text:?}: {reason}"))
}

/// A vsock port that is forwarded to a unix socket of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VsockRelay {
    /// Which side opens connections.
    pub(crate) direction: VsockDirection,
    pub(crate) port: u32,
    /// For connections to the guest capsa listens here, for connections to the host it connects here.
    pub(crate) socket: PathBuf,
}

/// `listen:PORT:SOCKET`, `connect:PORT:SOCKET`.
pub(crate) fn vsock(text: &str) -> Parsed<VsockRelay> {
    let invalid = |reason: &str| format!("invalid vsock port {text:?}: {reason}");
    let form = || invalid("expected listen:PORT:SOCKET or connect:PORT:SOCKET");
    let (verb, rest) = text.split_once(':').ok_or_else(form)?;
    let (port, socket) = rest.split_once(':').ok_or_else(form)?;
    let direction = match verb {
        "listen" => VsockDirection::ToGuest,
        "connect" => VsockDirection::ToHost,
        _ => return Err(form()),
    };
    if socket.is_empty() {
        return Err(invalid("the path of the socket is empty"));
    }
    let port = port.parse().map_err(|_| invalid(&format!("{port:?} is not a port number")))?;
    Ok(VsockRelay { direction, port, socket: socket.into() })
}

/// A port of TCP or UDP.
pub(crate) fn port(text: &str) -> Parsed<u16> {
    // The parser of numbers accepts a sign.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| is_number && *port != 0);
    port.ok_or_else(|| format!("invalid port {text:?}: expected 1 to 65535"))
}

/// `[ADDR:]HOSTPORT:GUESTPORT[/udp]`, `unix:PATH:GUESTPORT`. The path may contain colons.
pub(crate) fn forward(text: &str) -> Parsed<ForwardSetting> {
    let invalid = |reason: String| format!("invalid forward {text:?}: {reason}");
    let form = || invalid("expected [ADDR:]HOSTPORT:GUESTPORT[/udp] or unix:PATH:GUESTPORT".into());
    let parts = text.rsplit_once(':').filter(|(host, _)| *host != "unix");
    let (host, guest) = parts.ok_or_else(form)?;
    let (guest, protocol) = match guest.split_once('/') {
        None => (guest, TransportProtocol::Tcp),
        Some((guest, "tcp")) => (guest, TransportProtocol::Tcp),
        Some((guest, "udp")) => (guest, TransportProtocol::Udp),
        Some((_, other)) => {
            return Err(invalid(format!("invalid protocol {other:?}: expected tcp or udp")));
        }
    };
    let host = host.parse().map_err(|error: InvalidListenAddress| invalid(error.to_string()))?;
    let guest = port(guest).map_err(|reason| invalid(format!("guest: {reason}")))?;
    Ok(ForwardSetting { host, guest, protocol })
}

/// `NAME:PORT=unix:PATH`.
pub(crate) fn service(text: &str) -> Parsed<ServiceSetting> {
    let parts = text.split_once('=').and_then(|(address, target)| {
        let path = target.strip_prefix("unix:").filter(|path| !path.is_empty())?;
        address.contains(':').then_some((address, path))
    });
    let form = || format!("invalid service {text:?}: expected NAME:PORT=unix:PATH");
    let (address, path) = parts.ok_or_else(form)?;
    Ok(ServiceSetting { address: address.into(), unix: path.into() })
}

/// A VM's name: letters, digits, `-`, `_` and `.`, at most 64, beginning with neither `-` nor `.`.
pub(crate) fn name(text: &str) -> Parsed<String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let reason = match text {
        "" => return Err("the name is empty".into()),
        _ if text.len() > 64 => "longer than 64 characters",
        _ if text.starts_with(['-', '.']) || !text.chars().all(is_allowed) => {
            "expected letters, digits, -, _ and ., with - and . not at the beginning"
        }
        _ => return Ok(text.to_owned()),
    };
    Err(format!("invalid name {text:?}: {reason}"))
}

/// A user name for a login on the console, where a control character would be a key.
pub(crate) fn user(text: &str) -> Parsed<String> {
    match text {
        "" => Err("the user name is empty".into()),
        _ if text.chars().any(char::is_control) => {
            Err(format!("invalid user name {text:?}: contains a control character"))
        }
        _ => Ok(text.to_owned()),
    }
}

/// `a, b or c`.
pub(crate) fn alternatives(words: &[impl AsRef<str>]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.split_last() {
        Some((last, [])) => (*last).into(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_units_and_limits_are_checked() {
        for (text, want) in [
            ("512M", Some(512)),
            ("2G", Some(2048)),
            ("2GiB", Some(2048)),
            ("2GB", Some(2048)),
            ("1.5g", Some(1536)),
            ("1048576", Some(1)),
            ("0", Some(0)), // rejected later, with the other violations
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
    fn duration_needs_a_unit() {
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
    fn disk_options_any_order_are_parsed() {
        let image = |path| VmDisk::new(DiskImage::new(path));
        for (text, want) in [
            ("a.qcow2", image("a.qcow2")),
            ("a.qcow2:raw", DiskImage::with_format("a.qcow2", ImageFormat::Raw).into()),
            ("a:qcow2:ro", DiskImage::with_format("a", ImageFormat::Qcow2).read_only()),
            ("a:ro:qcow2", DiskImage::with_format("a", ImageFormat::Qcow2).read_only()),
            ("a:ephemeral", image("a").ephemeral()),
            ("a:b:ro", image("a:b").read_only()),
            ("a:rw", image("a")),
            ("a:rw:ephemeral", image("a").ephemeral()),
            ("a:backing=b", image("a").backing("b")),
            ("/dev/x:allow-mounted", image("/dev/x").allow_mounted()),
            ("a:backing=/b:ro:backing=c=d", image("a").read_only().backing("/b").backing("c=d")),
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
            "a:backing=",
        ] {
            assert!(disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn share_host_path_may_contain_colons() {
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
    fn vsock_port_needs_direction_and_socket() {
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
    fn forward_has_host_and_guest_port() {
        for (text, host, guest, protocol) in [
            ("8080:80", "8080", 80, TransportProtocol::Tcp),
            ("0:22/tcp", "0", 22, TransportProtocol::Tcp),
            ("0.0.0.0:53:5353/udp", "0.0.0.0:53", 5353, TransportProtocol::Udp),
            ("[::1]:1:65535", "[::1]:1", 65535, TransportProtocol::Tcp),
            ("unix:/run/a:b/c:80", "unix:/run/a:b/c", 80, TransportProtocol::Tcp),
        ] {
            let host = host.parse().unwrap();
            assert_eq!(forward(text), Ok(ForwardSetting { host, guest, protocol }), "{text}");
        }
        for text in ["", "80", ":80", "80:", "80:0", "80:65536", "x:80", "unix::80", "80:80/sctp"] {
            assert!(forward(text).is_err(), "{text}");
        }
    }

    #[test]
    fn forward_error_names_the_wrong_part() {
        let (port, address) = ("expected 1 to 65535", "expected a port, an address with a port");
        for (text, part, accepted) in [
            ("80:80/sctp", "invalid protocol \"sctp\"", "expected tcp or udp"),
            ("unix:/run/s:80/sctp", "invalid protocol \"sctp\"", "expected tcp or udp"),
            ("80:x", "guest: invalid port \"x\"", port),
            ("80:+80", "guest: invalid port \"+80\"", port),
            ("+80:80", "invalid address \"+80\"", address),
            ("::1:80:80", "invalid address \"::1:80\"", address),
            ("[::1]:80", "invalid address \"[::1]\"", address),
            ("80", "", "expected [ADDR:]HOSTPORT:GUESTPORT"),
            ("unix:/run/s", "", "expected [ADDR:]HOSTPORT:GUESTPORT"),
        ] {
            let error = forward(text).unwrap_err();
            assert!(error.contains(part) && error.contains(accepted), "{text}: {error}");
        }
    }

    #[test]
    fn service_has_name_port_and_socket() {
        let want = ServiceSetting { address: "a.b:80".into(), unix: "./s=1".into() };
        assert_eq!(service("a.b:80=unix:./s=1"), Ok(want));
        for text in ["", "a:80", "a:80=", "a:80=unix:", "a:80=/s", "a=unix:/s"] {
            assert!(service(text).is_err(), "{text}");
        }
    }

    #[test]
    fn name_characters_are_checked() {
        for text in ["a", "build-7", "A.b_c", "0"] {
            assert_eq!(name(text).as_deref(), Ok(text));
        }
        for text in ["", "-a", ".", "..", "a/b", "a b", "ü", &"x".repeat(65)] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn alternatives_are_joined_with_commas_and_or() {
        assert_eq!(alternatives(&["a"]), "a");
        assert_eq!(alternatives(&["a", "b"]), "a or b");
        assert_eq!(alternatives(&["a", "b", "c"]), "a, b or c");
    }
}
