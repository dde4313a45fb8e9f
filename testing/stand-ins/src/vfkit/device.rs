//! `--device`: the devices of a VM, in the form of `GET /vm/inspect`.
//!
//! ```text
//! device = kind *( "," [ option ] )     ; split at every comma: no quotes, no escapes
//! option = name [ "=" value ]
//! ```

use std::fs::File;
use std::io::Read;

use serde::Serialize;

use super::flags::cut;

/// A device. Its JSON form is that of the real one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Device {
    #[serde(rename = "virtioblk")]
    Blk(DiskDevice),
    UsbMassStorage(DiskDevice),
    Nvme(DiskDevice),
    Nbd(NbdDevice),
    #[serde(rename = "virtionet")]
    Net(NetDevice),
    #[serde(rename = "virtioserial")]
    Serial(SerialDevice),
    #[serde(rename = "virtiosock")]
    Vsock(VsockDevice),
    #[serde(rename = "virtiofs")]
    Fs(FsDevice),
    Rosetta(RosettaDevice),
    #[serde(rename = "virtiorng")]
    Rng,
    #[serde(rename = "virtioballoon")]
    Balloon,
    #[serde(rename = "virtiogpu")]
    Gpu(GpuDevice),
    #[serde(rename = "virtioinput")]
    Input(InputDevice),
}

/// Whether the field is omitted from the JSON form.
fn is_off(on: &bool) -> bool {
    !on
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DiskDevice {
    dev_name: &'static str,
    #[serde(skip_serializing_if = "is_off")]
    pub(super) read_only: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) image_path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) r#type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) device_identifier: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NbdDevice {
    dev_name: &'static str,
    #[serde(skip_serializing_if = "is_off")]
    read_only: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    uri: String,
    // These fields have no JSON names in the real one, so Go's names are used. The time is in
    // nanoseconds.
    #[serde(rename = "DeviceIdentifier")]
    device_identifier: String,
    #[serde(rename = "Timeout")]
    timeout: i64,
    #[serde(rename = "SynchronizationMode")]
    synchronization_mode: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetDevice {
    pub(super) nat: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) unix_socket_path: String,
    #[serde(skip_serializing_if = "is_off")]
    vfkit_magic: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) mac_address: String,
    #[serde(skip)]
    pub(super) fd: Option<i32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SerialDevice {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) log_file: String,
    #[serde(skip_serializing_if = "is_off")]
    pub(super) uses_stdio: bool,
    #[serde(skip_serializing_if = "is_off")]
    pub(super) uses_pty: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct VsockDevice {
    pub(super) port: u32,
    #[serde(rename = "socketURL")]
    pub(super) socket_url: String,
    /// The host listens and the guest connects. `false`: the guest listens.
    #[serde(skip_serializing_if = "is_off")]
    pub(super) listen: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FsDevice {
    pub(super) mount_tag: String,
    pub(super) shared_dir: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RosettaDevice {
    mount_tag: String,
    install_rosetta: bool,
    ignore_if_missing: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct GpuDevice {
    #[serde(rename = "usesGUI")]
    pub(super) uses_gui: bool,
    width: i64,
    height: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InputDevice {
    pub(super) input_type: String,
}

impl FsDevice {
    /// The tag. Default, as in the real one: the last component of the directory's path.
    pub(super) fn tag(&self) -> &str {
        let base = || self.shared_dir.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if self.mount_tag.is_empty() { base() } else { &self.mount_tag }
    }
}

/// The name and the value of an option. Without a value it is empty.
type Pair<'a> = (&'a str, &'a str);

impl Device {
    /// Parses a device. The file of a `virtio-blk` device is opened to read its header.
    ///
    /// # Errors
    ///
    /// The error text of the real one.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (kind, options) = text.split_once(',').unwrap_or((text, ""));
        let options: Vec<Pair<'_>> = options
            .split(',')
            .filter(|option| !option.is_empty())
            .map(|option| (cut(option).0, cut(option).1.unwrap_or_default()))
            .collect();
        let none = |what: &str| match options.as_slice() {
            [] => Ok(()),
            options => {
                let shown: Vec<_> = options.iter().map(|(k, v)| format!("{{{k} {v}}}")).collect();
                Err(format!("unknown options for {what} devices: [{}]", shown.join(" ")))
            }
        };
        match kind {
            "virtio-blk" => virtio_blk(&options).map(Self::Blk),
            "usb-mass-storage" => disk("usb-mass-storage", &options).map(Self::UsbMassStorage),
            "nvme" => disk("nvme", &options).map(Self::Nvme),
            "nbd" => nbd(&options).map(Self::Nbd),
            "virtio-net" => net(&options).map(Self::Net),
            "virtio-serial" => serial(&options).map(Self::Serial),
            "virtio-vsock" => vsock(&options).map(Self::Vsock),
            "virtio-fs" => fs(&options).map(Self::Fs),
            "rosetta" => rosetta(&options).map(Self::Rosetta),
            "virtio-rng" => none(kind).map(|()| Self::Rng),
            "virtio-balloon" => none(kind).map(|()| Self::Balloon),
            "virtio-gpu" => gpu(&options).map(Self::Gpu),
            "virtio-input" => input(&options).map(Self::Input),
            _ => Err(format!("unknown device type: {kind}")),
        }
    }
}

/// A disk without the option `deviceId`.
fn disk(dev_name: &'static str, options: &[Pair<'_>]) -> Result<DiskDevice, String> {
    let mut disk = DiskDevice { dev_name, ..DiskDevice::default() };
    for (name, value) in options.iter().copied() {
        match name {
            "path" => disk.image_path = value.to_owned(),
            "type" if ["image", "dev", ""].contains(&value) => disk.r#type = value.to_owned(),
            "type" => return Err(format!("unexpected value for disk 'type' option: {value}")),
            "readonly" => disk.read_only = flag("virtio-blk", name, value)?,
            _ => return Err(format!("unknown option for {dev_name} devices: {name}")),
        }
    }
    Ok(disk)
}

fn virtio_blk(options: &[Pair<'_>]) -> Result<DiskDevice, String> {
    let (names, others): (Vec<_>, Vec<_>) =
        options.iter().copied().partition(|(name, _)| *name == "deviceId");
    let mut disk = disk("virtio-blk", &others)?;
    disk.device_identifier = names.last().map(|(_, id)| (*id).to_owned()).unwrap_or_default();
    let path = &disk.image_path;
    let mut file = File::open(path).map_err(|error| {
        format!("failed to open file {path}: open {path}: {}", go_error(&error.to_string()))
    })?;
    let mut header = [0; 4];
    match file.read(&mut header) {
        Ok(0) => Err(format!("failed to read the header of file {path}: EOF")),
        Ok(_) if header == *b"QFI\xfb" => {
            Err("vfkit does not support qcow2 image format".to_owned())
        }
        Ok(_) => Ok(disk),
        Err(error) => Err(format!(
            "failed to read the header of file {path}: read {path}: {}",
            go_error(&error.to_string())
        )),
    }
}

/// The text of an operating system error in the form of Go: lower case, without the number.
pub(super) fn go_error(error: &str) -> String {
    let words = error.split_once(" (os error").map_or(error, |(words, _)| words);
    words.to_ascii_lowercase()
}

fn nbd(options: &[Pair<'_>]) -> Result<NbdDevice, String> {
    let mut nbd = NbdDevice {
        dev_name: "nbd",
        read_only: false,
        uri: String::new(),
        device_identifier: String::new(),
        timeout: 15_000_000_000,
        synchronization_mode: "full".to_owned(),
    };
    for (name, value) in options.iter().copied() {
        match name {
            "uri" => nbd.uri = value.to_owned(),
            "deviceId" => nbd.device_identifier = value.to_owned(),
            "timeout" => {
                let ms: i32 = value.parse().map_err(|_| not_a_number("ParseInt", value))?;
                nbd.timeout = i64::from(ms) * 1_000_000;
            }
            "sync" if ["full", "none"].contains(&value) => {
                nbd.synchronization_mode = value.to_owned();
            }
            "sync" => return Err(format!("invalid sync mode: {value}, must be 'full' or 'none'")),
            "readonly" => nbd.read_only = flag("virtio-blk", name, value)?,
            _ => return Err(format!("unknown option for nbd devices: {name}")),
        }
    }
    Ok(nbd)
}

fn net(options: &[Pair<'_>]) -> Result<NetDevice, String> {
    let has = |wanted: &str| options.iter().any(|(name, _)| *name == wanted);
    let mut net =
        NetDevice { vfkit_magic: has("path") || has("unixSocketPath"), ..NetDevice::default() };
    for (name, value) in options.iter().copied() {
        match (name, value) {
            ("nat", _) => net.nat = flag("virtio-net", name, value)?,
            ("mac", _) => net.mac_address = mac(value)?,
            ("fd", _) => {
                let fd: i64 = value.parse().map_err(|_| not_a_number("Atoi", value))?;
                let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
                net.fd = Some(fd.ok_or_else(|| format!("invalid file descriptor: {value}"))?);
            }
            ("unixSocketPath" | "path", _) => net.unix_socket_path = value.to_owned(),
            ("type", "unixgram") | ("offloading", "off") => {}
            ("type", _) => {
                return Err(format!(
                    "unsupported virtio-net type: {value} (only 'unixgram' is supported)"
                ));
            }
            ("vfkitMagic", "on" | "off") => net.vfkit_magic = value == "on",
            ("vfkitMagic", _) => {
                return Err(format!("invalid value for vfkitMagic: {value} (expected on/off)"));
            }
            ("offloading", _) => {
                return Err(format!(
                    "invalid value for offloading: {value} (only 'off' is supported)"
                ));
            }
            _ => return Err(format!("unknown option for virtio-net devices: {name}")),
        }
    }
    let typed = options.iter().find(|(name, _)| ["path", "offloading"].contains(name));
    let both = |a: &str, b: &str| Err(format!("'{a}' and '{b}' cannot be set at the same time"));
    match (net.nat, net.fd.is_some(), !net.unix_socket_path.is_empty(), typed) {
        (_, _, false, _) if has("type") => {
            Err("'type' option requires 'path' to be specified".to_owned())
        }
        (_, _, _, Some((name, _))) if !has("type") => {
            Err(format!("'{name}' option requires 'type' to be specified"))
        }
        (true, true, _, _) => both("nat", "fd"),
        (true, _, true, _) => both("nat", "unixSocketPath"),
        (_, true, true, _) => both("fd", "unixSocketPath"),
        (false, false, false, _) => {
            Err("one of 'nat' or 'fd' or 'unixSocketPath' must be set".to_owned())
        }
        _ => Ok(net),
    }
}

/// Go's `net.ParseMAC`: pairs with colons or dashes, or fours with dots; 6, 8 or 20 bytes.
fn mac(text: &str) -> Result<String, String> {
    let wrong = || format!("address {text}: invalid MAC address");
    let (separator, width) = match text.as_bytes() {
        [_, _, separator @ (b':' | b'-'), ..] => (char::from(*separator), 2),
        [_, _, _, _, b'.', ..] => ('.', 4),
        _ => return Err(wrong()),
    };
    let groups: Vec<&str> = text.split(separator).collect();
    let is_group = |g: &&str| g.len() == width && g.bytes().all(|digit| digit.is_ascii_hexdigit());
    let digits = groups.concat().to_ascii_lowercase();
    if !groups.iter().all(is_group) || ![12, 16, 40].contains(&digits.len()) {
        return Err(wrong());
    }
    let pairs: Vec<_> = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]).collect();
    Ok(pairs.join(":"))
}

fn serial(options: &[Pair<'_>]) -> Result<SerialDevice, String> {
    let mut serial = SerialDevice::default();
    for (name, value) in options.iter().copied() {
        match name {
            "logFilePath" => serial.log_file = value.to_owned(),
            "stdio" => serial.uses_stdio = flag("virtio-serial", name, value)?,
            "pty" => serial.uses_pty = true,
            _ => return Err(format!("unknown option for virtio-serial devices: {name}")),
        }
    }
    let given = [
        ("logFilePath", !serial.log_file.is_empty()),
        ("stdio", serial.uses_stdio),
        ("pty", serial.uses_pty),
    ];
    let given: Vec<_> = given.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect();
    match given.as_slice() {
        [] => Err("one of 'logFilePath', 'stdio' or 'pty' must be set".to_owned()),
        [_] => Ok(serial),
        [a, b, ..] => Err(format!("'{a}' and '{b}' cannot be set at the same time")),
    }
}

fn vsock(options: &[Pair<'_>]) -> Result<VsockDevice, String> {
    let mut vsock = VsockDevice { port: 0, socket_url: String::new(), listen: true };
    for (name, value) in options.iter().copied() {
        match name {
            "socketURL" => vsock.socket_url = value.to_owned(),
            "port" => vsock.port = port(value)?,
            "listen" | "connect" => vsock.listen = name == "listen",
            _ => return Err(format!("unknown option for virtio-vsock devices: {name}")),
        }
    }
    Ok(vsock)
}

/// Parses a vsock port: a decimal number of 32 bits.
pub(super) fn port(text: &str) -> Result<u32, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match (is_number, text.parse()) {
        (true, Ok(port)) => Ok(port),
        (true, Err(_)) => Err(format!("strconv.ParseUint: parsing {text:?}: value out of range")),
        (false, _) => Err(not_a_number("ParseUint", text)),
    }
}

fn not_a_number(by: &str, text: &str) -> String {
    format!("strconv.{by}: parsing {text:?}: invalid syntax")
}

fn fs(options: &[Pair<'_>]) -> Result<FsDevice, String> {
    let mut fs = FsDevice::default();
    for (name, value) in options.iter().copied() {
        match name {
            "sharedDir" => fs.shared_dir = value.to_owned(),
            "mountTag" => fs.mount_tag = value.to_owned(),
            _ => return Err(format!("unknown option for virtio-fs devices: {name}")),
        }
    }
    Ok(fs)
}

fn rosetta(options: &[Pair<'_>]) -> Result<RosettaDevice, String> {
    let mut rosetta = RosettaDevice::default();
    for (name, value) in options.iter().copied() {
        match name {
            "mountTag" => rosetta.mount_tag = value.to_owned(),
            "install" => rosetta.install_rosetta = true,
            "ignore-if-missing" => rosetta.ignore_if_missing = true,
            _ => return Err(format!("unknown option for rosetta share: {name}")),
        }
    }
    Ok(rosetta)
}

fn gpu(options: &[Pair<'_>]) -> Result<GpuDevice, String> {
    let mut gpu = GpuDevice::default();
    for (name, value) in options.iter().copied() {
        let pixels = || match value.parse() {
            Ok(pixels @ 1..) => Ok(pixels),
            _ => Err(format!("invalid value for virtio-gpu {name}: {value}")),
        };
        match name {
            "width" => gpu.width = pixels()?,
            "height" => gpu.height = pixels()?,
            _ => return Err(format!("unknown option for virtio-gpu devices: {name}")),
        }
    }
    match (gpu.width, gpu.height) {
        (0, 0) => Ok(GpuDevice { width: 800, height: 600, ..gpu }),
        (0, _) | (_, 0) => Err(format!(
            "invalid dimensions for virtio-gpu device resolution: {}x{}",
            gpu.width, gpu.height
        )),
        _ => Ok(gpu),
    }
}

fn input(options: &[Pair<'_>]) -> Result<InputDevice, String> {
    let mut input = InputDevice::default();
    for (name, value) in options.iter().copied() {
        match (name, value) {
            ("keyboard" | "pointing", "") => input.input_type = name.to_owned(),
            ("keyboard" | "pointing", _) => {
                return Err(format!("unexpected value for virtio-input {name} option: {value}"));
            }
            _ => return Err(format!("unknown option for virtio-input devices: {name}")),
        }
    }
    match input.input_type.as_str() {
        "" => Err("unknown option for virtio-input devices: ".to_owned()),
        _ => Ok(input),
    }
}

/// Parses an option without a value.
fn flag(device: &str, name: &str, value: &str) -> Result<bool, String> {
    match value {
        "" => Ok(true),
        _ => Err(format!("unexpected value for {device} '{name}' option: {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_address_formats_are_accepted() {
        for text in ["52:54:00:70:2B:71", "52-54-00-70-2b-71", "5254.0070.2b71"] {
            assert_eq!(mac(text), Ok("52:54:00:70:2b:71".to_owned()));
        }
        for text in ["", "52:54:00:70:2b", "52:54:00:70:2b:7", "52:54-00:70:2b:71", "5:4:0:0:b:1"] {
            assert_eq!(mac(text), Err(format!("address {text}: invalid MAC address")));
        }
    }
}
