//! Validation beyond the capability table.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use capsa_proto::backend::{ProbeReport, ProbeResult, Version};
use capsa_proto::capabilities::{Violation, ViolationKind as Kind};
use capsa_proto::helper::virtiofsd;
use capsa_proto::host::{FileFacts, HostFacts, Reason};
use capsa_proto::path::HostPath;
use capsa_proto::qcow2::{self, Overlay, Qcow2Header};
use capsa_proto::spec::{Accelerator, ImageFormat, RebootPolicy, VmSpec};

use crate::KEY;
use crate::vm_config::needs_overlay;

/// Versions up to 50.2 overwrite the header of qcow2 images (issue 8358); 52.0 does not.
const QCOW2_WRITES: Version = Version::new(52, 0, 0);

/// Older versions send a wrong vhost-user message (issue 7766), and NAT is untested with them.
const VHOST_USER_NET: Version = Version::new(52, 0, 0);

/// Older versions do not resolve a relative backing file name against the image's directory (pull
/// request 8196).
const RELATIVE_BACKING: Version = Version::new(53, 0, 0);

/// The maximum length of a backing chain (`MAX_NESTING_DEPTH` in v53).
const MAX_BACKING_DEPTH: usize = 10;

pub(crate) fn validate(spec: &VmSpec, host: &HostFacts, found: &ProbeReport) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut reject = |field: String, kind, reason: String, remedy: &str| {
        out.push(Violation::new(field, kind, reason, remedy).on(KEY));
    };

    if let Some(version) = found.version(KEY)
        && version < QCOW2_WRITES
    {
        for (n, disk) in spec.disks.iter().enumerate() {
            // The overlay of an ephemeral disk is a qcow2 image too.
            let is_qcow2 = disk.format == ImageFormat::Qcow2 || disk.ephemeral;
            if is_qcow2 && !disk.read_only {
                reject(
                    format!("disks[{n}].path"),
                    Kind::Unsupported,
                    format!("version {version} may corrupt qcow2 images that it writes to"),
                    "use cloud-hypervisor 52.0 or later, attach it read-only, or convert it to raw",
                );
            }
        }
    }

    for (n, disk) in spec.disks.iter().enumerate() {
        let facts = host.file(&disk.path);
        if needs_overlay(disk)
            && matches!(facts, FileFacts::File { .. })
            && Overlay::new(&disk.path, disk.format, facts).is_none()
        {
            reject(
                format!("disks[{n}].ephemeral"),
                Kind::OutOfRange,
                "the overlay's limits are exceeded: 16 TiB for the disk, 1023 bytes for its path"
                    .into(),
                "use a smaller image, or a shorter path",
            );
        }
        if disk.format != ImageFormat::Qcow2 {
            continue;
        }
        let backing = qcow2::backing_chain(&disk.path, host).unwrap_or_default();
        let names_relatively = |image: &HostPath| match host.file(image) {
            FileFacts::File { head, .. } => Qcow2Header::parse(head)
                .and_then(|header| header.backing)
                .is_some_and(|name| !name.starts_with('/')),
            _ => false,
        };
        let mut images = backing.iter().map(|image| &image.path).chain([&disk.path]);
        if let Some(version) = found.version(KEY)
            && version < RELATIVE_BACKING
            && let Some(image) = images.find(|image| names_relatively(image))
        {
            reject(
                format!("disks[{n}].path"),
                Kind::Unsupported,
                format!(
                    "version {version} does not support the relative backing file name in {image}"
                ),
                "use cloud-hypervisor 53.0 or later, or set an absolute name: qemu-img rebase -u",
            );
        }
        if backing.len() + usize::from(needs_overlay(disk)) > MAX_BACKING_DEPTH {
            reject(
                format!("disks[{n}].path"),
                Kind::OutOfRange,
                format!(
                    "backing chain has {} images; the limit is {MAX_BACKING_DEPTH}",
                    backing.len()
                ),
                "merge the chain into one image: qemu-img convert",
            );
        }
    }

    // Without the hypervisor nothing is started, and a dry run shows bare program names. So missing
    // helpers are violations only if the hypervisor was found.
    let is_found = matches!(found.get(KEY), Some(ProbeResult::Output { .. }));
    let helper_needed = |blockers: Vec<Reason>| if is_found { blockers } else { Vec::new() };
    if !spec.shares.is_empty() {
        for reason in helper_needed(virtiofsd::blockers(found)) {
            reject("shares".into(), Kind::Unsupported, reason.what, &reason.remedy);
        }
    }

    if spec.network.has_card()
        && let Some(version) = found.version(KEY)
        && version < VHOST_USER_NET
    {
        reject(
            "network".into(),
            Kind::Unsupported,
            format!("NAT is not supported with version {version}: its vhost-user has errors"),
            "use cloud-hypervisor 52.0 or later, the qemu backend, or set network to none",
        );
    }

    match spec.accelerator {
        Accelerator::Auto | Accelerator::Kvm => {}
        _ => reject(
            "accelerator".into(),
            Kind::Unsupported,
            "only KVM is supported".into(),
            "set accelerator to auto or kvm, or use the qemu backend",
        ),
    }

    if spec.on_reboot == RebootPolicy::Restart && !spec.shares.is_empty() {
        reject(
            "on_reboot".into(),
            Kind::Unsupported,
            "rebooting with shares is not supported: virtiofsd accepts one connection only, and a reboot \
             closes it"
                .into(),
            "set on_reboot to end, remove the shares, or use the qemu backend",
        );
    }
    out
}
