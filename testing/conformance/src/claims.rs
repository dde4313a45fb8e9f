//! The capability table as a list of leaves, and what asks for each.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use capsa::blocking::VmHandle;
use capsa::{
    BackendCapabilities, Capsa, DiskImage, Error, ImageFormat, LinuxBootConfig, LinuxVmBuilder,
    MountMode, NetworkMode, RebootPolicy, ShareMechanism, Virtio9pConfig, VirtioFsConfig,
    VsockDirection,
};
use serde_json::Value;

use super::Subject;
use capsa_fixtures::nano;

/// Every leaf of a table, as `image_formats.qcow2`, and whether it is claimed: `true`, or a limit.
///
/// # Panics
///
/// When the table is no tree of flags and numbers.
pub fn leaves(table: &BackendCapabilities) -> BTreeMap<String, bool> {
    let mut leaves = BTreeMap::new();
    flatten(&serde_json::to_value(table).expect("a table of flags"), "", &mut leaves);
    leaves
}

fn flatten(value: &Value, path: &str, leaves: &mut BTreeMap<String, bool>) {
    let claimed = match value {
        Value::Object(members) => {
            for (key, value) in members {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(value, &format!("{path}{dot}{key}"), leaves);
            }
            return;
        }
        Value::Bool(claimed) => *claimed,
        Value::Null => false,
        Value::Number(_) => true,
        other => panic!("{path} is {other}, and nobody knows whether that is claimed"),
    };
    leaves.insert(path.to_owned(), claimed);
}

/// The leaf of a machine that boots from a kernel alone.
pub(super) const WITHOUT_INITRD: &str = "boot_methods.linux_direct_without_initrd";

/// Adds to a machine what needs one leaf; the path is a directory for it.
type Ask = fn(LinuxVmBuilder, &Path) -> LinuxVmBuilder;

/// A leaf, the field that a refusal names, and what asks for it.
const ASKS: &[(&str, &str, Ask)] = &[
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
    ("reboot_end", "on_reboot", |builder, _| builder.on_reboot(RebootPolicy::End)),
    ("reboot_restart", "on_reboot", |builder, _| builder.on_reboot(RebootPolicy::Restart)),
];

/// Leaves that are limits. Where there is none, there is nothing to refuse.
const LIMITS: &[&str] = &["max_cpus", "max_memory_mb"];

/// Builds a machine that needs a leaf. It is never started: what comes back was found without a
/// process.
///
/// # Errors
///
/// The refusal.
///
/// # Panics
///
/// When nothing here asks for that leaf.
pub(super) fn ask(leaf: &str, subject: &Subject) -> capsa::Result<VmHandle> {
    let (_, ask) = field_and_ask(leaf);
    let dir = tempfile::tempdir().expect("a directory");
    let kernel = nano::write_to(dir.path()).expect("the nano guest can be written");
    let config = match leaf {
        WITHOUT_INITRD => LinuxBootConfig::new(kernel),
        _ => subject.boots(kernel, dir.path()),
    };
    let builder = subject.builds(Capsa::vm(config).no_network());
    ask(builder, dir.path()).build_blocking()
}

fn field_and_ask(leaf: &str) -> (&'static str, Ask) {
    let ask = ASKS.iter().find(|(known, ..)| *known == leaf);
    let (_, field, ask) = ask.unwrap_or_else(|| panic!("nothing here asks for {leaf}"));
    (field, *ask)
}

/// Asks for a leaf that is not claimed, and expects to hear so before anything is spawned.
///
/// # Panics
///
/// When it is granted, or refused without saying what would help.
pub(super) fn assert_refused(leaf: &str, subject: &Subject) {
    if LIMITS.contains(&leaf) {
        return;
    }
    let (field, _) = field_and_ask(leaf);
    let error = match ask(leaf, subject) {
        Err(error) => error,
        Ok(vm) => panic!("{leaf} is not claimed and was granted: {:?}", vm.launch_plan()),
    };
    assert!(matches!(error, Error::UnsupportedFeature(_)), "{leaf} is refused as {error:?}");
    let violations = error.violations();
    let violation = violations.iter().find(|violation| violation.field == field);
    let violation = violation.unwrap_or_else(|| panic!("{leaf}: none is about {field}: {error}"));
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
    fn whatever_is_asked_for_is_a_leaf() {
        let leaves = leaves(&BackendCapabilities::default());
        let asks = ASKS.iter().map(|(leaf, ..)| leaf);
        let unknown: Vec<_> =
            asks.chain(LIMITS).filter(|leaf| !leaves.contains_key(**leaf)).collect();
        assert_eq!(unknown, Vec::<&&str>::new());
        assert!(leaves.values().all(|claimed| !claimed), "{leaves:?}");
    }
}
