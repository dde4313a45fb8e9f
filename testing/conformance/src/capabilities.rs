//! The capability table as a list of leaves, and a VM that uses each leaf.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use capsa::backend::BackendCapabilities;
use capsa::blocking::VmHandle;
use capsa::disk_errors::DiskErrorPolicy;
use capsa::vsock::VsockDirection;
use capsa::{
    Capsa, DiskImage, Error, ImageFormat, LinuxBootConfig, LinuxVmBuilder, MountMode, NetworkMode,
    RebootPolicy, ShareMechanism, Virtio9pConfig, VirtioFsConfig,
};
use serde_json::Value;

use super::Subject;
use capsa_fixtures::nano;

/// Every leaf of a table, for example `image_formats.qcow2`, and whether it is supported: `true` or a
/// number.
///
/// # Panics
///
/// When the table contains something other than flags and numbers.
pub fn leaves(table: &BackendCapabilities) -> BTreeMap<String, bool> {
    let mut leaves = BTreeMap::new();
    flatten(&serde_json::to_value(table).expect("a table of flags"), "", &mut leaves);
    leaves
}

fn flatten(value: &Value, path: &str, leaves: &mut BTreeMap<String, bool>) {
    let supported = match value {
        Value::Object(members) => {
            for (key, value) in members {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(value, &format!("{path}{dot}{key}"), leaves);
            }
            return;
        }
        Value::Bool(supported) => *supported,
        Value::Null => false,
        Value::Number(_) => true,
        other => panic!("the value of {path} is {other}: expected a flag, a number or null"),
    };
    leaves.insert(path.to_owned(), supported);
}

/// The leaf of a VM without an initrd.
pub(super) const WITHOUT_INITRD: &str = "boot_methods.linux_direct_without_initrd";

/// Adds to a VM what uses one leaf. The path is a directory for its files.
type Request = fn(LinuxVmBuilder, &Path) -> LinuxVmBuilder;

/// A leaf, the field of the violation where it is not supported, and what uses it.
const REQUESTS: &[(&str, &str, Request)] = &[
    (WITHOUT_INITRD, "initrd", |builder, _| builder),
    ("image_formats.raw", "disks[0].path", |builder, dir| builder.disk(raw(dir))),
    ("image_formats.qcow2", "disks[0].path", |builder, dir| builder.disk(qcow2(dir))),
    ("network_modes.none", "network", |builder, _| builder.network(NetworkMode::None)),
    ("network_modes.nat", "network", |builder, _| builder.network(NetworkMode::Nat)),
    ("virtio_fs", "shares[0].mechanism", |builder, dir| {
        let mechanism = ShareMechanism::VirtioFs(VirtioFsConfig::default());
        builder.share_with_mechanism(dir, "/share", MountMode::ReadWrite, mechanism)
    }),
    ("virtio_9p", "shares[0].mechanism", |builder, dir| {
        let mechanism = ShareMechanism::Virtio9p(Virtio9pConfig::default());
        builder.share_with_mechanism(dir, "/share", MountMode::ReadWrite, mechanism)
    }),
    ("share_read_only", "shares[0].mode", |builder, dir| {
        builder.share(dir, "/share", MountMode::ReadOnly)
    }),
    ("disk_ephemeral", "disks[0].ephemeral", |builder, dir| builder.disk(raw(dir).ephemeral())),
    ("disk_read_only", "disks[0].read_only", |builder, dir| builder.disk(raw(dir).read_only())),
    ("vsock", "vsock", |builder, _| builder.vsock_port(1024, VsockDirection::ToGuest)),
    ("virtio_console", "virtio_console", |builder, _| builder.console_enabled().virtio_console()),
    ("reboot_end", "on_reboot", |builder, _| builder.on_reboot(RebootPolicy::End)),
    ("disk_errors", "on_disk_error", |builder, _| builder.on_disk_error(DiskErrorPolicy::Pause)),
    ("reboot_restart", "on_reboot", |builder, _| builder.on_reboot(RebootPolicy::Restart)),
];

/// Leaves that are limits. Without a limit, nothing is rejected.
const LIMITS: &[&str] = &["max_cpus", "max_devices", "max_memory_mb"];

/// Builds a VM that uses a leaf. It is never started: violations are found without a process.
///
/// # Errors
///
/// The violations.
///
/// # Panics
///
/// When the table of requests does not have that leaf.
pub(super) fn request(leaf: &str, subject: &Subject) -> capsa::Result<VmHandle> {
    let (_, add) = field_and_request(leaf);
    let dir = tempfile::tempdir().expect("a directory");
    let kernel = nano::write_to(dir.path()).expect("the nano guest can be written");
    let config = match leaf {
        WITHOUT_INITRD => LinuxBootConfig::new(kernel),
        _ => subject.boot_config(kernel, dir.path()),
    };
    let builder = subject.on_backend(Capsa::vm(config).no_network());
    add(builder, dir.path()).build_blocking()
}

fn field_and_request(leaf: &str) -> (&'static str, Request) {
    let request = REQUESTS.iter().find(|(known, ..)| *known == leaf);
    let (_, field, add) = request.unwrap_or_else(|| panic!("no request uses {leaf}"));
    (field, *add)
}

/// Builds a VM that uses an unsupported leaf, and checks that it is rejected.
///
/// # Panics
///
/// When it is accepted, or rejected without a remedy.
pub(super) fn assert_rejected(leaf: &str, subject: &Subject) {
    if LIMITS.contains(&leaf) {
        return;
    }
    let (field, _) = field_and_request(leaf);
    let error = match request(leaf, subject) {
        Err(error) => error,
        Ok(vm) => panic!("{leaf} is not supported and was accepted: {:?}", vm.launch_plan()),
    };
    assert!(matches!(error, Error::UnsupportedFeature(_)), "{leaf} is rejected with {error:?}");
    let violations = error.violations();
    let violation = violations.iter().find(|violation| violation.field == field);
    let violation = violation.unwrap_or_else(|| panic!("{leaf}: no violation of {field}: {error}"));
    assert_eq!(violation.backend, Some(subject.backend), "{violation}");
    assert!(!violation.reason.is_empty() && !violation.remedy.is_empty(), "{violation:?}");
}

fn raw(dir: &Path) -> DiskImage {
    image(dir, "disk.raw", b"raw", ImageFormat::Raw)
}

fn qcow2(dir: &Path) -> DiskImage {
    image(dir, "disk.qcow2", b"QFI\xfb\0\0\0\x03", ImageFormat::Qcow2)
}

fn image(dir: &Path, name: &str, head: &[u8], format: ImageFormat) -> DiskImage {
    let path = dir.join(name);
    let mut content = head.to_vec();
    content.resize(4096, 0);
    fs::write(&path, content).expect("an image can be written");
    DiskImage::with_format(path, format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_name_only_leaves() {
        let leaves = leaves(&BackendCapabilities::default());
        let requests = REQUESTS.iter().map(|(leaf, ..)| leaf);
        let unknown: Vec<_> =
            requests.chain(LIMITS).filter(|leaf| !leaves.contains_key(**leaf)).collect();
        assert_eq!(unknown, Vec::<&&str>::new());
        assert!(leaves.values().all(|supported| !supported), "{leaves:?}");
    }
}
