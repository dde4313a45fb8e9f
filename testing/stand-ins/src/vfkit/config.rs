//! The VM that a command line describes, in the form of `GET /vm/inspect`.

use serde::Serialize;

use super::device::{Device, port};
use super::flags::{VfkitOptions, cut, unquoted};
use super::rest_uri::Endpoint;

/// The configuration of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Config {
    pub(super) vcpus: u64,
    #[serde(rename = "memoryBytes")]
    pub(super) memory_bytes: u64,
    pub(super) bootloader: Bootloader,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) devices: Vec<Device>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timesync: Option<TimeSync>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ignition: Option<Ignition>,
    #[serde(skip_serializing_if = "is_off")]
    pub(super) nested: bool,
    #[serde(skip)]
    pub(super) endpoint: Endpoint,
    #[serde(skip)]
    pub(super) cloud_init: Vec<String>,
    #[serde(skip)]
    pub(super) gui: bool,
}

fn is_off(on: &bool) -> bool {
    !on
}

/// The bootloader of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Bootloader {
    Linux(Linux),
    Efi(Efi),
    Macos(Macos),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename = "linuxBootloader")]
pub(super) struct Linux {
    #[serde(rename = "vmlinuzPath")]
    pub(super) kernel: String,
    #[serde(rename = "kernelCmdLine")]
    pub(super) cmdline: String,
    #[serde(rename = "initrdPath")]
    pub(super) initrd: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename = "efiBootloader")]
pub(super) struct Efi {
    #[serde(rename = "efiVariableStorePath")]
    store: String,
    #[serde(rename = "createVariableStore")]
    create: bool,
}

/// As in the real one, this bootloader has no `kind` in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Macos {
    machine_identifier_path: String,
    hardware_model_path: String,
    aux_image_path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TimeSync {
    vsock_port: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename = "ignition", rename_all = "camelCase")]
pub(super) struct Ignition {
    config_path: String,
}

/// The rejected part of a command line, and the reason.
pub(super) type StageError = (&'static str, String);

impl Config {
    /// Interprets the flags in the order of the real one. `before_devices` runs before the devices are
    /// parsed.
    ///
    /// # Errors
    ///
    /// The first invalid flag.
    pub(super) fn from_options(
        options: &VfkitOptions,
        before_devices: impl FnOnce() -> Result<(), String>,
    ) -> Result<Self, StageError> {
        let step = |stage, done: Result<(), String>| done.map_err(|why| (stage, why));
        step("log-level", log_level(&options.log_level))?;
        let bootloader = bootloader(options).map_err(|why| ("bootloader", why))?;
        let timesync = timesync(&options.timesync).map_err(|why| ("timesync", why))?;
        step("pidfile", before_devices())?;
        let devices = options.devices.iter().map(|text| Device::parse(text));
        let devices = devices.collect::<Result<_, _>>().map_err(|why| ("device", why))?;
        let ignition = ignition(&options.ignition).map_err(|why| ("ignition", why))?;
        let endpoint = Endpoint::parse(&options.restful_uri);
        Ok(Self {
            vcpus: options.cpus,
            memory_bytes: options.memory_mib.wrapping_mul(1 << 20),
            bootloader,
            devices,
            timesync,
            ignition,
            nested: options.nested,
            endpoint: endpoint.map_err(|why| ("restful-uri", why))?,
            cloud_init: options.cloud_init.clone().unwrap_or_default(),
            gui: options.gui,
        })
    }
}

fn log_level(level: &str) -> Result<(), String> {
    match level {
        "" | "debug" | "info" | "error" => Ok(()),
        _ => Err(format!("unknown log level: {level}")),
    }
}

fn bootloader(options: &VfkitOptions) -> Result<Bootloader, String> {
    let VfkitOptions { kernel, kernel_cmdline, initrd, .. } = options;
    if [kernel, kernel_cmdline, initrd].iter().any(|text| !text.is_empty()) {
        let (kernel, cmdline, initrd) = (kernel.clone(), kernel_cmdline.clone(), initrd.clone());
        return Ok(Bootloader::Linux(Linux { kernel, cmdline, initrd }));
    }
    let list = options.bootloader.as_deref().unwrap_or_default();
    let (kind, list) =
        list.split_first().ok_or("empty option list in --bootloader command line argument")?;
    let pairs = list.iter().filter(|option| !option.is_empty());
    let pairs = pairs.map(|option| (cut(option).0, cut(option).1.unwrap_or_default()));
    let unknown =
        |kind: &str, name: &str| Err(format!("unknown option for {kind} bootloaders: {name}"));
    match kind.as_str() {
        "linux" => {
            let mut linux = Linux::default();
            for (name, value) in pairs {
                match name {
                    "kernel" => linux.kernel = value.to_owned(),
                    "initrd" => linux.initrd = value.to_owned(),
                    "cmdline" => linux.cmdline = unquoted(value),
                    _ => return unknown("Linux", name),
                }
            }
            Ok(Bootloader::Linux(linux))
        }
        "efi" => {
            let mut efi = Efi::default();
            for (name, value) in pairs {
                match (name, value) {
                    ("variable-store", _) => efi.store = value.to_owned(),
                    ("create", "") => efi.create = true,
                    ("create", _) => {
                        return Err(format!(
                            "unexpected value for EFI bootloader 'create' option: {value}"
                        ));
                    }
                    _ => return unknown("EFI", name),
                }
            }
            Ok(Bootloader::Efi(efi))
        }
        "macos" => {
            let mut macos = Macos::default();
            for (name, value) in pairs {
                match name {
                    "machineIdentifierPath" => macos.machine_identifier_path = value.to_owned(),
                    "hardwareModelPath" => macos.hardware_model_path = value.to_owned(),
                    "auxImagePath" => macos.aux_image_path = value.to_owned(),
                    _ => return unknown("macOS", name),
                }
            }
            Ok(Bootloader::Macos(macos))
        }
        _ => Err(format!("unknown bootloader type: {kind}")),
    }
}

fn timesync(text: &str) -> Result<Option<TimeSync>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut vsock_port = 0;
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match cut(option) {
            ("vsockPort", value) => vsock_port = port(value.unwrap_or_default())?,
            (name, _) => return Err(format!("unknown option for timesync parameter: {name}")),
        }
    }
    match vsock_port {
        0 => Err("missing 'vsockPort' option for timesync parameter".to_owned()),
        vsock_port => Ok(Some(TimeSync { vsock_port })),
    }
}

fn ignition(text: &str) -> Result<Option<Ignition>, String> {
    match text {
        "" => Ok(None),
        _ if text.contains(',') => {
            Err("ignition only accepts one option in command line argument".to_owned())
        }
        _ => Ok(Some(Ignition { config_path: text.to_owned() })),
    }
}
