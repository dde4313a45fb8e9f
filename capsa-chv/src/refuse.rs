//! What is refused beyond the capability table.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use capsa_proto::backend::{Answer, ProbeReport, Version};
use capsa_proto::capabilities::{Violation, ViolationKind as Kind};
use capsa_proto::host::HostFacts;
use capsa_proto::spec::{Accelerator, ImageFormat, RebootPolicy, VmSpec};
use capsa_proto::virtiofsd;

use crate::KEY;

/// Up to 50.2 writes went over the header of qcow2 images (issue 8358); 52.0 does not.
const QCOW2_WRITES: Version = Version::new(52, 0, 0);

pub(crate) fn refuse(spec: &VmSpec, host: &HostFacts, found: &ProbeReport) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut refuse = |field: String, kind, reason: String, remedy: &str| {
        out.push(Violation::new(field, kind, reason, remedy).on(KEY));
    };

    if let Some(version) = found.version(KEY)
        && version < QCOW2_WRITES
    {
        for (n, disk) in spec.disks.iter().enumerate() {
            if disk.format == ImageFormat::Qcow2 && !disk.read_only {
                refuse(
                    format!("disks[{n}].path"),
                    Kind::Unsupported,
                    format!("version {version} may destroy qcow2 images it writes to"),
                    "use cloud-hypervisor 52.0 or later, attach it read-only, or convert it to raw",
                );
            }
        }
    }

    // Where the hypervisor itself is missing nothing will be spawned, and a dry run may go on with
    // the programs' bare names.
    if !spec.shares.is_empty() && matches!(found.get(KEY), Some(Answer::Said { .. })) {
        for reason in virtiofsd::against(found) {
            refuse("shares".into(), Kind::Unsupported, reason.what, &reason.remedy);
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

    if spec.on_reboot == RebootPolicy::Restart && !spec.shares.is_empty() {
        refuse(
            "on_reboot".into(),
            Kind::Unsupported,
            "a reboot closes the sockets of its shares, and virtiofsd takes one connection only"
                .into(),
            "let a reboot end the machine, or leave the shares out",
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
