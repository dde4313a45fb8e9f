//! Whether vfkit can be used on a host.

use alloc::format;
use alloc::vec::Vec;

use capsa_proto::backend::{Answer, Availability, ProbeReport, Version};
use capsa_proto::host::{HostFacts, Os, Reason};

use crate::{KEY, MIN_VERSION};

pub(crate) fn judge(host: &HostFacts, found: &ProbeReport) -> Availability {
    let (program, version) = match found.get(KEY) {
        Some(Answer::Said { program, output }) => (Some(program.clone()), Version::find(output)),
        Some(Answer::Failed { program, .. }) => (Some(program.clone()), None),
        _ => (None, None),
    };
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
    Availability { version, program, against, notes: Vec::new() }
}

fn against_program(found: &ProbeReport) -> Option<Reason> {
    let what = match found.get(KEY)? {
        Answer::NotFound { tried } => {
            format!("the program was not found (tried {})", tried.join(", "))
        }
        Answer::Failed { program, why } => format!("{program} --version did not work: {why}"),
        Answer::Said { program, output } => match Version::find(output) {
            None => format!("{program} did not say its version"),
            Some(version) if version < MIN_VERSION => format!(
                "{program} is version {version}, older than {MIN_VERSION}: told to quit, it would \
                 not ask the guest"
            ),
            Some(_) => return None,
        },
    };
    Some(Reason::new(
        what,
        format!(
            "install vfkit {MIN_VERSION} or later (brew install vfkit) and set CAPSA_VFKIT if it \
             is not in PATH"
        ),
    ))
}
