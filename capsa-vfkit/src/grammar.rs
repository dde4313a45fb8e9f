//! A strict parser of vfkit's command line, to check [`args`](crate::args) in tests.
//!
//! It supports only the flags and devices that a plan uses. Of these it rejects at least what vfkit
//! v0.6.4 rejects. [`oracle`](crate::oracle) compares its results with those of vfkit's own parser.
//!
//! ```text
//! line   = *( flag value )              ; pflag: a value may begin with "-"
//! device = kind *( "," [ option ] )     ; no quotes, no escapes
//! option = key [ "=" value ]            ; the value ends at the comma, and only there
//! ```

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::{Value, json};

/// A command line, parsed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ParsedArgs {
    pub(crate) vcpus: Option<u32>,
    pub(crate) memory_mb: Option<u64>,
    pub(crate) kernel: Option<String>,
    pub(crate) initrd: Option<String>,
    pub(crate) cmdline: Option<String>,
    pub(crate) devices: Vec<Value>,
    pub(crate) rest: Option<String>,
}

/// Parses a command line. `head` returns the first bytes of a file, `None` if it does not exist.
pub(crate) fn read(
    argv: &[String],
    head: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<ParsedArgs, String> {
    let mut line = ParsedArgs::default();
    for pair in argv.chunks(2) {
        let [flag, value] = pair else { return Err(format!("{} has no value", pair[0])) };
        let number =
            || value.parse().map_err(|_| format!("invalid {flag} {value:?}: expected a number"));
        let text = || Some(value.clone());
        match flag.as_str() {
            "--cpus" => line.vcpus = Some(number()?),
            "--memory" => line.memory_mb = Some(number()?.into()),
            "--kernel" => line.kernel = text(),
            "--initrd" => line.initrd = text(),
            "--kernel-cmdline" => line.cmdline = text(),
            "--device" => line.devices.push(device(value, &head)?),
            "--restful-uri" => line.rest = Some(unix_uri(value)?),
            _ => return Err(format!("unknown flag: {flag}")),
        }
    }
    match (&line.kernel, &line.initrd, &line.cmdline) {
        (Some(_), Some(_), Some(_)) => Ok(line),
        _ => Err("kernel, initrd and kernel-cmdline must all be set".into()),
    }
}

fn device(text: &str, head: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Value, String> {
    let mut items = text.split(',');
    let kind = items.next().unwrap_or_default();
    let options: Vec<(&str, Option<&str>)> = items
        .filter(|item| !item.is_empty())
        .map(|item| item.split_once('=').map_or((item, None), |(key, value)| (key, Some(value))))
        .collect();
    let mut shown = json!({ "kind": kind.replace('-', "") });
    if kind == "virtio-vsock" {
        shown = json!({ "kind": "virtiosock", "listen": true });
    }
    for option in options {
        let (name, value): (_, Value) = match (kind, option) {
            ("virtio-blk", ("path", Some(path))) => {
                image(&head(path).ok_or("failed to open file")?)?;
                shown["devName"] = json!(kind);
                ("imagePath", path.into())
            }
            ("virtio-blk", ("readonly", None)) => ("readOnly", true.into()),
            ("virtio-fs", ("sharedDir", Some(path))) => ("sharedDir", path.into()),
            ("virtio-fs", ("mountTag", Some(tag))) => ("mountTag", tag.into()),
            ("virtio-net", ("nat", None) | ("fd", Some(_))) if shown.get("nat").is_some() => {
                return Err("one of nat and fd".into());
            }
            ("virtio-net", ("nat", None)) => ("nat", true.into()),
            ("virtio-net", ("fd", Some(fd))) => {
                fd.parse::<u32>().map_err(|_| format!("invalid file descriptor: {fd}"))?;
                ("nat", false.into())
            }
            ("virtio-net", ("mac", Some(mac))) => ("macAddress", mac_address(mac)?.into()),
            ("virtio-vsock", ("port", Some(port))) => {
                let port: u32 = port.parse().map_err(|_| format!("invalid port {port:?}"))?;
                ("port", port.into())
            }
            ("virtio-vsock", ("socketURL", Some(path))) => ("socketURL", plain_path(path)?.into()),
            ("virtio-vsock", ("listen", None)) => ("listen", true.into()),
            ("virtio-vsock", ("connect", None)) => {
                // vfkit's output omits keys that are false.
                shown.as_object_mut().expect("made above").remove("listen");
                continue;
            }
            ("virtio-serial", ("stdio", None)) => ("usesStdio", true.into()),
            ("virtio-serial", ("pty", _)) => ("usesPty", true.into()),
            ("virtio-serial", ("logFilePath", Some(path))) => ("logFile", path.into()),
            _ => return Err(format!("unknown option for {kind}: {option:?}")),
        };
        shown[name] = value;
    }
    let count = |names: &[&str]| names.iter().filter(|name| shown.get(**name).is_some()).count();
    match kind {
        "virtio-blk" if count(&["imagePath"]) == 1 => Ok(shown),
        "virtio-fs" if count(&["sharedDir", "mountTag"]) == 2 => Ok(shown),
        "virtio-net" if count(&["nat"]) == 1 => Ok(shown),
        "virtio-vsock" if count(&["port", "socketURL"]) == 2 => Ok(shown),
        "virtio-serial" if count(&["usesStdio", "usesPty", "logFile"]) == 1 => Ok(shown),
        "virtio-rng" => Ok(shown),
        _ => Err(format!("unknown or incomplete device: {text}")),
    }
}

fn image(head: &[u8]) -> Result<(), String> {
    match head {
        [] => Err("failed to read the header".into()),
        [b'Q', b'F', b'I', 0xfb, ..] => Err("vfkit does not support qcow2 image format".into()),
        _ => Ok(()),
    }
}

/// Parses a MAC address: of the forms that Go's `net.ParseMAC` accepts, only six pairs with colons.
/// The address must be locally administered and unicast.
fn mac_address(text: &str) -> Result<&str, String> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|pair| match pair.len() {
            2 => u8::from_str_radix(pair, 16).map_err(|error| error.to_string()),
            _ => Err(format!("invalid byte {pair:?}: expected two digits")),
        })
        .collect::<Result<_, _>>()?;
    match bytes.as_slice() {
        [first, _, _, _, _, _] if first & 0x03 == 0x02 => Ok(text),
        _ => Err(format!("{text} is not a locally administered unicast address")),
    }
}

/// The path that vfkit listens on, after Go's `url.ParseRequestURI`.
fn unix_uri(text: &str) -> Result<String, String> {
    let path = text.strip_prefix("unix://").ok_or("invalid scheme")?;
    if !path.starts_with('/') {
        return Err("invalid unix uri: host is forbidden".into());
    }
    if path.contains(['%', '?', '#']) || path.chars().any(char::is_control) {
        return Err("vfkit would decode it as another path".into());
    }
    Ok(path.to_string())
}

/// Checks that Go's `url.Parse` returns the path unchanged, escaped or not.
fn plain_path(path: &str) -> Result<&str, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    match path.starts_with('/') && path.bytes().all(plain) {
        true => Ok(path),
        false => Err(format!("vfkit would decode {path} as another path")),
    }
}
