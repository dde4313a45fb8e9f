//! Whether vfkit can be used on a host.

use alloc::format;
use alloc::vec::Vec;

use capsa_proto::backend::{Availability, ProbeReport};
use capsa_proto::host::{HostFacts, Os, Reason};

use crate::{KEY, MIN_VERSION};

pub(crate) fn judge(host: &HostFacts, found: &ProbeReport) -> Availability {
    let mut against = Vec::new();
    if host.os == Os::MacOs {
        against.extend(against_program(found));
    } else {
        // What else is missing there would only be noise.
        against.push(Reason::new(
            "it runs on macOS only",
            "use the cloud-hypervisor or the qemu backend",
        ));
    }
    Availability {
        version: found.version(KEY),
        program: found.found(KEY),
        against,
        lacks: Vec::new(),
        notes: Vec::new(),
    }
}

fn against_program(found: &ProbeReport) -> Option<Reason> {
    let what = found.against(KEY, KEY, MIN_VERSION, "told to quit, it would not ask the guest")?;
    Some(Reason::new(
        what,
        format!(
            "install vfkit {MIN_VERSION} or later (brew install vfkit) and set CAPSA_VFKIT if it \
             is not in PATH"
        ),
    ))
}
