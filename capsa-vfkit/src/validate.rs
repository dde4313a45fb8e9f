//! What is refused beyond the capability table.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use capsa_proto::capabilities::{Violation, ViolationKind as Kind};
use capsa_proto::host::{FileFacts, HostFacts};
use capsa_proto::spec::{Accelerator, ShareMechanism, VmSpec};

use crate::{KEY, args};

pub(crate) fn validate(spec: &VmSpec, host: &HostFacts) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut refuse = |field: String, kind, reason: String, remedy: &str| {
        out.push(Violation::new(field, kind, reason, remedy).on(KEY));
    };

    for (n, disk) in spec.disks.iter().enumerate() {
        // A clone has a name of ours.
        if disk.path.as_str().contains(',') && !args::is_cloned(disk) {
            refuse(format!("disks[{n}].path"), Kind::Malformed, comma(&disk.path), COMMA_REMEDY);
        }
        // A device needs `type=dev` and root.
        if matches!(host.file(&disk.path), FileFacts::File { device: true, .. }) {
            refuse(
                format!("disks[{n}].path"),
                Kind::Unsupported,
                format!("{} is a device, not an image", disk.path),
                "attach an image file",
            );
        }
    }

    for (n, share) in spec.shares.iter().enumerate() {
        if share.host.as_str().contains(',') {
            refuse(format!("shares[{n}].host"), Kind::Malformed, comma(&share.host), COMMA_REMEDY);
        }
        if let ShareMechanism::VirtioFs(config) = &share.mechanism
            && config.cache.as_ref().is_some_and(|cache| cache != "auto")
        {
            refuse(
                format!("shares[{n}].cache"),
                Kind::Unsupported,
                "the cache mode of a share cannot be chosen".into(),
                "leave it out",
            );
        }
    }

    match spec.accelerator {
        Accelerator::Auto | Accelerator::Hvf => {}
        _ => refuse(
            "accelerator".into(),
            Kind::Unsupported,
            "it runs on macOS' own virtualisation only".into(),
            "ask for auto or hvf, or use the qemu backend",
        ),
    }

    if spec.vsock && spec.vsock_ports.is_empty() {
        refuse(
            "vsock".into(),
            Kind::NotGiven,
            "it must know the ports before the start".into(),
            "name each with vsock_port, or use the cloud-hypervisor or qemu backend",
        );
    }

    // `--restful-uri` and `socketURL` are parsed as URLs: `%41` is decoded and `?` cuts them.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if !host.run_dir.as_str().bytes().all(plain) {
        refuse(
            "run_dir".into(),
            Kind::Malformed,
            format!("{} holds more than letters, digits and . _ - /", host.run_dir),
            "set CAPSA_RUN_DIR to a plainer directory, such as /tmp/capsa",
        );
    }
    out
}

const COMMA_REMEDY: &str = "rename it, or give a symbolic link without a comma";

fn comma(path: &capsa_proto::path::HostPath) -> String {
    format!("{path} holds a comma, which cuts an option of vfkit in two and cannot be quoted")
}
