//! The availability of cloud-hypervisor on a host.

use alloc::format;
use alloc::vec::Vec;

use capsa_proto::backend::{Availability, Feature, MissingFeature, ProbeReport};
use capsa_proto::helper::virtiofsd;
use capsa_proto::host::{Arch, HostFacts, Os, Reason};

use crate::{KEY, MIN_VERSION, landlock};

pub(crate) fn availability(host: &HostFacts, found: &ProbeReport) -> Availability {
    let mut blockers = Vec::new();
    if host.os == Os::Linux {
        blockers.extend(architecture_blocker(host.arch));
        blockers.extend(program_blocker(found));
        blockers.extend(host.kvm.blockers());
    } else {
        // Other blockers are irrelevant on such a host.
        blockers.push(Reason::new(
            "cloud-hypervisor runs on Linux only",
            "use the vfkit backend on macOS, or the qemu backend",
        ));
    }
    let no_shares = MissingFeature::of(Feature::VirtioFs, virtiofsd::blockers(found));
    let mut availability = found.availability(KEY, blockers);
    availability.missing_features.extend(no_shares);
    availability.warnings.extend(landlock::note(host));
    availability
}

fn architecture_blocker(arch: Arch) -> Option<Reason> {
    matches!(arch, Arch::Other).then(|| {
        Reason::new("cloud-hypervisor runs on x86-64 and arm64 only", "use the qemu backend")
    })
}

fn program_blocker(found: &ProbeReport) -> Option<Reason> {
    let what = found.version_blocker(
        KEY,
        KEY,
        MIN_VERSION,
        "older versions detect the format of disks instead of using the given one",
    )?;
    let install = format!(
        "install cloud-hypervisor {MIN_VERSION} or later and set CAPSA_CLOUD_HYPERVISOR if it is not in \
         PATH"
    );
    Some(Reason::new(what, found.version_remedy(KEY, install)))
}
