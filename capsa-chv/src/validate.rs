//! What is refused beyond the capability table.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use capsa_proto::backend::{ProbeReport, ProbeResult, Version};
use capsa_proto::capabilities::{Violation, ViolationKind as Kind};
use capsa_proto::helper::{passt, virtiofsd};
use capsa_proto::host::{FileFacts, HostFacts, Reason};
use capsa_proto::path::HostPath;
use capsa_proto::qcow2::{self, Overlay, Qcow2Header};
use capsa_proto::spec::{Accelerator, ImageFormat, NetworkMode, RebootPolicy, VmSpec};

use crate::KEY;
use crate::vm_config::needs_overlay;

/// Up to 50.2 writes went over the header of qcow2 images (issue 8358); 52.0 does not.
const QCOW2_WRITES: Version = Version::new(52, 0, 0);

/// Before, it drove passt into ending (fixed in March 2026).
const VHOST_USER_NET: Version = Version::new(52, 0, 0);

/// Before, a relative name was not looked for beside the image that has it (pull request 8196).
const RELATIVE_BACKING: Version = Version::new(53, 0, 0);

/// How many images it opens beneath one (`MAX_NESTING_DEPTH` in v53).
const DEEPEST: usize = 10;

pub(crate) fn validate(spec: &VmSpec, host: &HostFacts, found: &ProbeReport) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut refuse = |field: String, kind, reason: String, remedy: &str| {
        out.push(Violation::new(field, kind, reason, remedy).on(KEY));
    };

    if let Some(version) = found.version(KEY)
        && version < QCOW2_WRITES
    {
        for (n, disk) in spec.disks.iter().enumerate() {
            // A throw-away overlay is such an image too.
            let is_qcow2 = disk.format == ImageFormat::Qcow2 || disk.ephemeral;
            if is_qcow2 && !disk.read_only {
                refuse(
                    format!("disks[{n}].path"),
                    Kind::Unsupported,
                    format!("version {version} may destroy qcow2 images it writes to"),
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
            refuse(
                format!("disks[{n}].ephemeral"),
                Kind::OutOfRange,
                "its overlay would stand for more than 16 TiB, or name a path of more than 1023 bytes"
                    .into(),
                "use a smaller image, or a shorter path",
            );
        }
        if disk.format != ImageFormat::Qcow2 {
            continue;
        }
        let below = qcow2::backing_chain(&disk.path, host).unwrap_or_default();
        let names_relatively = |image: &HostPath| match host.file(image) {
            FileFacts::File { head, .. } => Qcow2Header::parse(head)
                .and_then(|header| header.backing)
                .is_some_and(|name| !name.starts_with('/')),
            _ => false,
        };
        if let Some(version) = found.version(KEY)
            && version < RELATIVE_BACKING
            && let Some(image) = below.iter().chain([&disk.path]).find(|i| names_relatively(i))
        {
            refuse(
                format!("disks[{n}].path"),
                Kind::Unsupported,
                format!("version {version} does not find the file that {image} names relatively"),
                "use cloud-hypervisor 53.0 or later, or name it absolutely: qemu-img rebase -u",
            );
        }
        if below.len() + usize::from(needs_overlay(disk)) > DEEPEST {
            refuse(
                format!("disks[{n}].path"),
                Kind::OutOfRange,
                format!("it stands on {} images, and {DEEPEST} are the most it opens", below.len()),
                "make it whole: qemu-img convert",
            );
        }
    }

    // Where the hypervisor itself is missing nothing will be spawned, and a dry run may go on with
    // the programs' bare names.
    let is_there = matches!(found.get(KEY), Some(ProbeResult::Output { .. }));
    let helper_needed = |blockers: Vec<Reason>| if is_there { blockers } else { Vec::new() };
    if !spec.shares.is_empty() {
        for reason in helper_needed(virtiofsd::blockers(found)) {
            refuse("shares".into(), Kind::Unsupported, reason.what, &reason.remedy);
        }
    }

    if spec.network == NetworkMode::Nat {
        if let Some(version) = found.version(KEY)
            && version < VHOST_USER_NET
        {
            refuse(
                "network".into(),
                Kind::Unsupported,
                format!("version {version} and passt, which would be its NAT, end each other"),
                "use cloud-hypervisor 52.0 or later, the qemu backend, or ask for no network",
            );
        }
        for reason in helper_needed(passt::blockers(found)) {
            refuse("network".into(), Kind::Unsupported, reason.what, &reason.remedy);
        }
    }

    match spec.accelerator {
        Accelerator::Auto | Accelerator::Kvm => {}
        _ => refuse(
            "accelerator".into(),
            Kind::Unsupported,
            "it runs on KVM only".into(),
            "ask for auto or kvm, or use the qemu backend",
        ),
    }

    let has_helpers = !spec.shares.is_empty() || spec.network == NetworkMode::Nat;
    if spec.on_reboot == RebootPolicy::Restart && has_helpers {
        refuse(
            "on_reboot".into(),
            Kind::Unsupported,
            "a reboot closes the sockets of its shares and its NAT, and virtiofsd and passt take one \
             connection only"
                .into(),
            "let a reboot end the machine, leave shares and network out, or use the qemu backend",
        );
    }

    // `--api-socket path=` goes through its option parser; everything else is JSON.
    if host.run_dir.as_str().contains([',', '"', '[', ']']) {
        refuse(
            "run_dir".into(),
            Kind::Malformed,
            format!("{} holds one of , \" [ ], which cut an option in two", host.run_dir),
            "set CAPSA_RUN_DIR to a plainer directory, such as /tmp/capsa",
        );
    }
    out
}
