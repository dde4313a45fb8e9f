//! Whether Cloud Hypervisor can be used on a host.

use alloc::format;
use alloc::vec::Vec;

use capsa_proto::backend::{Availability, Feature, Lack, ProbeReport};
use capsa_proto::helper::{passt, virtiofsd};
use capsa_proto::host::{Arch, HostFacts, Os, Reason};

use crate::{KEY, MIN_VERSION, landlock};

pub(crate) fn judge(host: &HostFacts, found: &ProbeReport) -> Availability {
    let mut against = Vec::new();
    if host.os == Os::Linux {
        against.extend(against_architecture(host.arch));
        against.extend(against_program(found));
        against.extend(host.kvm.against());
    } else {
        // What else is missing there would only be noise.
        against.push(Reason::new(
            "it runs on Linux only",
            "use the vfkit backend on macOS, or the qemu backend",
        ));
    }
    let no_shares = Lack::of(Feature::VirtioFs, virtiofsd::against(found));
    let no_nat = Lack::of(Feature::Nat, passt::against(found));
    Availability {
        version: found.version(KEY),
        program: found.found(KEY),
        against,
        lacks: no_shares.chain(no_nat).collect(),
        notes: landlock::note(host).into_iter().collect(),
    }
}

fn against_architecture(arch: Arch) -> Option<Reason> {
    matches!(arch, Arch::Other)
        .then(|| Reason::new("it runs on x86-64 and arm64 only", "use the qemu backend"))
}

fn against_program(found: &ProbeReport) -> Option<Reason> {
    let what = found.against(KEY, KEY, MIN_VERSION, "it would guess the format of disks")?;
    Some(Reason::new(
        what,
        format!(
            "install cloud-hypervisor {MIN_VERSION} or later and set CAPSA_CLOUD_HYPERVISOR if it \
             is not in PATH"
        ),
    ))
}
