//! The body of `vm.create`: the fields of v53's `VmConfig` that `vm.info` always shows, and those that the
//! stand-in implements. Types and defaults are those of the real one, so that errors have its texts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The configuration of a VM.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(expecting = "struct VmConfig")]
pub(super) struct ChvVmConfig {
    #[serde(default)]
    pub(super) cpus: CpusConfig,
    #[serde(default)]
    pub(super) memory: MemoryConfig,
    pub(super) payload: Option<PayloadConfig>,
    pub(super) disks: Option<Vec<DiskConfig>>,
    pub(super) net: Option<Vec<NetConfig>>,
    #[serde(default)]
    pub(super) rng: RngConfig,
    pub(super) fs: Option<Vec<FsConfig>>,
    #[serde(default = "SerialConfig::null")]
    pub(super) serial: SerialConfig,
    #[serde(default = "ConsoleConfig::tty")]
    pub(super) console: ConsoleConfig,
    #[serde(default)]
    pub(super) debug_console: DebugConsoleConfig,
    pub(super) vsock: Option<VsockConfig>,
    #[serde(default)]
    pub(super) pvpanic: bool,
    #[serde(default)]
    pub(super) iommu: bool,
    #[serde(default)]
    pub(super) watchdog: bool,
    #[serde(default)]
    pub(super) landlock_enable: bool,
    pub(super) landlock_rules: Option<Box<[LandlockConfig]>>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct CpusConfig {
    pub(super) boot_vcpus: u32,
    pub(super) max_vcpus: u32,
    #[serde(default)]
    kvm_hyperv: bool,
    #[serde(default = "max_phys_bits")]
    max_phys_bits: u8,
    #[serde(default)]
    features: CpuFeatures,
    #[serde(default = "yes")]
    nested: bool,
    #[serde(default = "vm")]
    core_scheduling: String,
    #[serde(default = "host")]
    profile: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub(super) struct CpuFeatures {
    #[serde(default)]
    amx: bool,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct MemoryConfig {
    pub(super) size: u64,
    #[serde(default)]
    mergeable: bool,
    #[serde(default = "acpi")]
    hotplug_method: String,
    #[serde(default)]
    pub(super) shared: bool,
    #[serde(default)]
    hugepages: bool,
    #[serde(default)]
    prefault: bool,
    #[serde(default)]
    reserve: bool,
    #[serde(default = "yes")]
    thp: bool,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct PayloadConfig {
    #[serde(default)]
    pub(super) firmware: Option<PathBuf>,
    #[serde(default)]
    pub(super) kernel: Option<PathBuf>,
    #[serde(default)]
    pub(super) cmdline: Option<String>,
    #[serde(default)]
    pub(super) initramfs: Option<PathBuf>,
}

/// The fields that all PCI devices have.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub(super) struct PciDeviceCommonConfig {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    iommu: bool,
    #[serde(default)]
    pci_segment: u16,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct DiskConfig {
    #[serde(flatten)]
    pci_common: PciDeviceCommonConfig,
    pub(super) path: Option<PathBuf>,
    #[serde(default)]
    pub(super) readonly: bool,
    #[serde(default)]
    pub(super) direct: bool,
    #[serde(default = "one_queue")]
    pub(super) num_queues: usize,
    #[serde(default = "disk_queue_size")]
    pub(super) queue_size: u16,
    #[serde(default)]
    vhost_user: bool,
    #[serde(default)]
    disable_io_uring: bool,
    #[serde(default)]
    disable_aio: bool,
    #[serde(default)]
    pub(super) backing_files: bool,
    #[serde(default = "yes")]
    pub(super) sparse: bool,
    #[serde(default)]
    pub(super) image_type: ImageType,
    #[serde(default = "byte_range")]
    lock_granularity: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum ImageType {
    FlatVmdk,
    FixedVhd,
    Qcow2,
    Raw,
    Vhdx,
    #[default]
    Unknown,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct NetConfig {
    #[serde(flatten)]
    pci_common: PciDeviceCommonConfig,
    #[serde(default)]
    pub(super) mac: Option<String>,
    #[serde(default = "two_queues")]
    pub(super) num_queues: usize,
    #[serde(default = "net_queue_size")]
    pub(super) queue_size: u16,
    #[serde(default)]
    pub(super) vhost_user: bool,
    pub(super) vhost_socket: Option<String>,
    #[serde(default = "client")]
    vhost_mode: String,
    #[serde(default = "yes")]
    offload_tso: bool,
    #[serde(default = "yes")]
    offload_ufo: bool,
    #[serde(default = "yes")]
    offload_csum: bool,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct RngConfig {
    #[serde(flatten)]
    pci_common: PciDeviceCommonConfig,
    src: PathBuf,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct FsConfig {
    #[serde(flatten)]
    pci_common: PciDeviceCommonConfig,
    pub(super) tag: String,
    pub(super) socket: PathBuf,
    #[serde(default = "one_queue")]
    pub(super) num_queues: usize,
    #[serde(default = "fs_queue_size")]
    pub(super) queue_size: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum ConsoleOutputMode {
    Off,
    Pty,
    Tty,
    File,
    Socket,
    Null,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct CommonConsoleConfig {
    #[serde(default)]
    pub(super) file: Option<PathBuf>,
    pub(super) mode: ConsoleOutputMode,
    #[serde(default)]
    socket: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct SerialConfig {
    #[serde(flatten)]
    pub(super) common: CommonConsoleConfig,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct ConsoleConfig {
    #[serde(flatten)]
    pub(super) common: CommonConsoleConfig,
    #[serde(flatten)]
    pci_common: PciDeviceCommonConfig,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct DebugConsoleConfig {
    #[serde(default)]
    file: Option<PathBuf>,
    mode: ConsoleOutputMode,
    iobase: Option<u16>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct VsockConfig {
    #[serde(flatten)]
    pci_common: PciDeviceCommonConfig,
    pub(super) cid: u32,
    pub(super) socket: PathBuf,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct LandlockConfig {
    pub(super) path: PathBuf,
    pub(super) access: String,
}

impl ChvVmConfig {
    /// The configuration as `vm.info` shows it: missing fields have their defaults; missing fields without
    /// a default are omitted.
    pub(super) fn info(&self) -> Value {
        let mut info = self.whole();
        prune(&mut info);
        info
    }

    /// The fields of `body`, from which this was parsed, that are unknown, or known but not implemented.
    /// Each has the form `disks[0].serial`.
    pub(super) fn ignored(&self, body: &Value) -> Vec<String> {
        let mut ignored = Vec::new();
        unknown(body, &self.whole(), "", &mut ignored);
        let is_passive = |name: &str| PASSIVE.contains(&name);
        changed(&self.whole(), &plain(), "", &is_passive, &mut ignored);
        ignored
    }

    fn whole(&self) -> Value {
        serde_json::to_value(self).expect("a configuration is plain data")
    }
}

/// The fields that are known but not implemented: only their defaults are accepted.
const PASSIVE: [&str; 30] = [
    "kvm_hyperv",
    "max_phys_bits",
    "amx",
    "nested",
    "core_scheduling",
    "profile",
    "mergeable",
    "hotplug_method",
    "hugepages",
    "prefault",
    "reserve",
    "thp",
    "firmware",
    "id",
    "iommu",
    "pci_segment",
    "vhost_mode",
    "offload_tso",
    "offload_ufo",
    "offload_csum",
    "disable_io_uring",
    "disable_aio",
    "lock_granularity",
    "src",
    "watchdog",
    "debug_console",
    "sparse",
    // For disks. `api_error` checks the field of networks.
    "disks.vhost_user",
    "console.file",
    "console.socket",
];

/// A configuration with one of each device, and the defaults everywhere.
fn plain() -> Value {
    let plain = json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
        "memory": { "size": 0 },
        "payload": {},
        "disks": [{}],
        "net": [{}],
        "fs": [{ "tag": "", "socket": "" }],
        "vsock": { "cid": 0, "socket": "" },
        "console": { "mode": "Off" },
    });
    let plain: ChvVmConfig = serde_json::from_value(plain).expect("the configuration is valid");
    plain.whole()
}

/// Adds the keys of `given` that are not in `known`.
fn unknown(given: &Value, known: &Value, at: &str, out: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let at = within(at, key);
                match known.get(key) {
                    Some(known) => unknown(value, known, &at, out),
                    None => out.push(at),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (n, (given, known)) in given.iter().zip(known).enumerate() {
                unknown(given, known, &format!("{at}[{n}]"), out);
            }
        }
        _ => {}
    }
}

/// Adds the passive keys whose values differ from those in `plain`. The elements of a list are compared
/// with the only element of the list in `plain`.
fn changed(
    given: &Value,
    plain: &Value,
    at: &str,
    is_passive: &impl Fn(&str) -> bool,
    out: &mut Vec<String>,
) {
    match (given, plain) {
        (Value::Object(given), Value::Object(plain)) => {
            for (key, value) in given {
                let parent = at.split('[').next().unwrap_or_default();
                let inside = within(at, key);
                let Some(plain) = plain.get(key) else { continue };
                if is_passive(key) || is_passive(&within(parent, key)) {
                    if value != plain {
                        out.push(inside);
                    }
                } else {
                    changed(value, plain, &inside, is_passive, out);
                }
            }
        }
        (Value::Array(given), Value::Array(plain)) => {
            for (n, given) in given.iter().enumerate() {
                if let Some(plain) = plain.first() {
                    changed(given, plain, &format!("{at}[{n}]"), is_passive, out);
                }
            }
        }
        _ => {}
    }
}

fn within(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}

/// Removes the fields that the real one does not show: those that are not set, and `iommu: false` of a
/// device.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let is_device = map.contains_key("pci_segment");
            let kept = std::mem::take(map).into_iter();
            let kept = kept.filter(|(key, value)| {
                !(value.is_null() || is_device && key == "iommu" && *value == json!(false))
            });
            *map = kept.collect::<Map<_, _>>();
            map.values_mut().for_each(prune);
        }
        Value::Array(values) => values.iter_mut().for_each(prune),
        _ => {}
    }
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: 1,
            kvm_hyperv: false,
            max_phys_bits: max_phys_bits(),
            features: CpuFeatures::default(),
            nested: true,
            core_scheduling: vm(),
            profile: host(),
        }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: 512 << 20,
            mergeable: false,
            hotplug_method: acpi(),
            shared: false,
            hugepages: false,
            prefault: false,
            reserve: false,
            thp: true,
        }
    }
}

impl Default for RngConfig {
    fn default() -> Self {
        Self { pci_common: PciDeviceCommonConfig::default(), src: "/dev/urandom".into() }
    }
}

impl CommonConsoleConfig {
    fn new(mode: ConsoleOutputMode) -> Self {
        Self { file: None, mode, socket: None }
    }
}

impl SerialConfig {
    fn null() -> Self {
        Self { common: CommonConsoleConfig::new(ConsoleOutputMode::Null) }
    }
}

impl ConsoleConfig {
    fn tty() -> Self {
        let pci_common = PciDeviceCommonConfig::default();
        Self { common: CommonConsoleConfig::new(ConsoleOutputMode::Tty), pci_common }
    }
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self { file: None, mode: ConsoleOutputMode::Off, iobase: Some(0xe9) }
    }
}

fn yes() -> bool {
    true
}
fn max_phys_bits() -> u8 {
    46
}
fn vm() -> String {
    "Vm".into()
}
fn host() -> String {
    "Host".into()
}
fn acpi() -> String {
    "Acpi".into()
}
fn client() -> String {
    "Client".into()
}
fn byte_range() -> String {
    "ByteRange".into()
}
fn one_queue() -> usize {
    1
}
fn two_queues() -> usize {
    2
}
fn disk_queue_size() -> u16 {
    128
}
fn net_queue_size() -> u16 {
    256
}
fn fs_queue_size() -> u16 {
    1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut body = json!({
            "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
            "memory": { "size": 1 << 30, "shared": true },
            "payload": { "kernel": "/k", "cmdline": "a" },
            "disks": [{ "path": "/d", "image_type": "Raw", "readonly": true }],
            "fs": [{ "tag": "t", "socket": "/s", "num_queues": 1, "queue_size": 512 }],
            "serial": { "mode": "Tty" },
            "console": { "mode": "Off" },
            "pvpanic": true,
        });
        change(&mut body);
        let config: ChvVmConfig = serde_json::from_value(body.clone()).unwrap();
        config.ignored(&body)
    }

    #[test]
    fn ignored_field_is_reported() {
        assert_eq!(ignored(|_| {}), [] as [&str; 0]);
        assert_eq!(ignored(|body| body["paylod"] = json!({})), ["paylod"]);
        assert_eq!(ignored(|body| body["payload"]["kernl"] = json!("")), ["payload.kernl"]);
        assert_eq!(ignored(|body| body["disks"][0]["serial"] = json!("")), ["disks[0].serial"]);
        assert_eq!(ignored(|body| body["disks"][0]["id"] = json!("x")), ["disks[0].id"]);
        assert_eq!(ignored(|body| body["cpus"]["nested"] = json!(false)), ["cpus.nested"]);
        assert_eq!(ignored(|body| body["console"]["file"] = json!("/f")), ["console.file"]);
        assert_eq!(ignored(|body| body["console"]["mode"] = json!("Tty")), [] as [&str; 0]);
        assert_eq!(ignored(|body| body["memory"]["thp"] = json!(true)), [] as [&str; 0]);
    }
}
