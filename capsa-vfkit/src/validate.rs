//! Validation beyond the capability table.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use capsa_proto::capabilities::{Violation, ViolationKind as Kind};
use capsa_proto::host::{FileFacts, HostFacts};
use capsa_proto::spec::{Accelerator, ShareMechanism, VmSpec};

use crate::{KEY, args};

pub(crate) fn validate(spec: &VmSpec, host: &HostFacts) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut reject = |field: String, kind, reason: String, remedy: &str| {
        out.push(Violation::new(field, kind, reason, remedy).on(KEY));
    };

    for (n, disk) in spec.disks.iter().enumerate() {
        // The path of a clone is generated and has no comma.
        if disk.path.as_str().contains(',') && !args::is_cloned(disk) {
            reject(format!("disks[{n}].path"), Kind::Malformed, comma(&disk.path), COMMA_REMEDY);
        }
        // A block device needs `type=dev` and root.
        if matches!(host.file(&disk.path), FileFacts::File { device: true, .. }) {
            reject(
                format!("disks[{n}].path"),
                Kind::Unsupported,
                format!("{} is a block device, which is not supported", disk.path),
                "attach a raw image file",
            );
        }
    }

    for (n, share) in spec.shares.iter().enumerate() {
        if share.host.as_str().contains(',') {
            reject(format!("shares[{n}].host"), Kind::Malformed, comma(&share.host), COMMA_REMEDY);
        }
        if let ShareMechanism::VirtioFs(config) = &share.mechanism
            && config.cache.as_ref().is_some_and(|cache| cache != "auto")
        {
            reject(
                format!("shares[{n}].cache"),
                Kind::Unsupported,
                "cache modes other than auto are not supported".into(),
                "omit the cache mode",
            );
        }
    }

    match spec.accelerator {
        Accelerator::Auto | Accelerator::Hvf => {}
        _ => reject(
            "accelerator".into(),
            Kind::Unsupported,
            "only macOS Virtualization.framework is supported".into(),
            "set accelerator to auto or hvf, or use the qemu backend",
        ),
    }

    if spec.vsock && spec.vsock_ports.is_empty() {
        reject(
            "vsock".into(),
            Kind::NotGiven,
            "vsock ports must be listed before the start".into(),
            "list each port with vsock_port, or use the cloud-hypervisor or qemu backend",
        );
    }

    // vfkit parses `--restful-uri` and `socketURL` as URLs: it decodes `%41` and drops all after `?`.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if !host.run_dir.as_str().bytes().all(plain) {
        reject(
            "run_dir".into(),
            Kind::Malformed,
            format!("{} contains characters other than letters, digits and . _ - /", host.run_dir),
            "set CAPSA_RUN_DIR to a directory without them, such as /tmp/capsa",
        );
    }
    out
}

const COMMA_REMEDY: &str = "rename it, or use a symbolic link without a comma";

fn comma(path: &capsa_proto::path::HostPath) -> String {
    format!("{path} contains a comma, which vfkit's option syntax does not support")
}
