//! The availability of vfkit on a host.

use alloc::format;
use alloc::vec::Vec;

use capsa_proto::backend::{Availability, ProbeReport};
use capsa_proto::host::{HostFacts, Os, Reason};

use crate::{KEY, MIN_VERSION};

pub(crate) fn availability(host: &HostFacts, found: &ProbeReport) -> Availability {
    let mut blockers = Vec::new();
    if host.os == Os::MacOs {
        blockers.extend(program_blocker(found));
    } else {
        // Other blockers are irrelevant on such a host.
        blockers.push(Reason::new(
            "vfkit runs on macOS only",
            "use the cloud-hypervisor or the qemu backend",
        ));
    }
    found.availability(KEY, blockers)
}

fn program_blocker(found: &ProbeReport) -> Option<Reason> {
    let what = found.version_blocker(
        KEY,
        KEY,
        MIN_VERSION,
        "older versions cut the power on SIGTERM instead of asking the guest",
    )?;
    let install = format!(
        "install vfkit {MIN_VERSION} or later (brew install vfkit) and set CAPSA_VFKIT if it is not in \
         PATH"
    );
    Some(Reason::new(what, found.version_remedy(KEY, install)))
}
