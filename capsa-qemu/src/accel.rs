//! Which accelerator, and why.

use alloc::string::ToString;
use alloc::vec::Vec;

use capsa_proto::host::{HostFacts, Os, Reason};
use capsa_proto::plan::Note;
use capsa_proto::spec::Accelerator;

use crate::emulation_note;

/// A choice of accelerator.
#[derive(Debug)]
pub(crate) struct AcceleratorChoice {
    /// The argument of `-accel`.
    pub(crate) accel: &'static str,
    /// What the user should know about it.
    pub(crate) notes: Vec<Note>,
    /// Why what was asked for cannot be had.
    pub(crate) blockers: Vec<Reason>,
}

impl AcceleratorChoice {
    const fn of(accel: &'static str) -> Self {
        Self { accel, notes: Vec::new(), blockers: Vec::new() }
    }
}

const KVM: &str = "kvm";
const HVF: &str = "hvf";
/// One host thread per virtual CPU.
const EMULATION: &str = "tcg,thread=multi";

pub(crate) fn choose(asked: Accelerator, host: &HostFacts) -> AcceleratorChoice {
    match asked {
        Accelerator::Kvm => kvm(host),
        Accelerator::Hvf if host.os == Os::MacOs => AcceleratorChoice::of(HVF),
        Accelerator::Hvf => {
            let reason = Reason::new("Hypervisor.framework is macOS' own", "ask for auto");
            AcceleratorChoice { blockers: [reason].into(), ..AcceleratorChoice::of(HVF) }
        }
        Accelerator::Emulation => AcceleratorChoice::of(EMULATION),
        _ => automatic(host),
    }
}

fn automatic(host: &HostFacts) -> AcceleratorChoice {
    let mut choice = match host.os {
        Os::MacOs => return AcceleratorChoice::of(HVF),
        Os::Linux if host.kvm.is_usable() => return AcceleratorChoice::of(KVM),
        _ => AcceleratorChoice::of(EMULATION),
    };
    // One line, and no remedies: whoever runs a machine here has read them, or has no choice.
    let blockers: Vec<_> = host.kvm.blockers().into_iter().map(|reason| reason.what).collect();
    choice.notes = [emulation_note(&blockers.join("; "))].into();
    choice
}

/// KVM was forced. Where it answers but the CPU shows no flag, a guest may run or hang: whoever
/// forces it is told, and gets it.
fn kvm(host: &HostFacts) -> AcceleratorChoice {
    let blockers = host.kvm.blockers();
    if host.kvm.answers() {
        let notes = blockers.iter().map(|reason| Note::warning(reason.to_string())).collect();
        AcceleratorChoice { notes, ..AcceleratorChoice::of(KVM) }
    } else {
        AcceleratorChoice { blockers, ..AcceleratorChoice::of(KVM) }
    }
}
