//! Chooses the accelerator.

use alloc::vec::Vec;

use capsa_proto::host::{HostFacts, Os, Reason};
use capsa_proto::plan::Note;
use capsa_proto::spec::Accelerator;

use crate::emulation_note;

/// The chosen accelerator.
#[derive(Debug)]
pub(crate) struct AcceleratorChoice {
    /// The argument of `-accel`.
    pub(crate) accel: &'static str,
    /// Warnings and notes for the user.
    pub(crate) notes: Vec<Note>,
    /// Why the requested accelerator cannot be used.
    pub(crate) blockers: Vec<Reason>,
}

impl AcceleratorChoice {
    const fn of(accel: &'static str) -> Self {
        Self { accel, notes: Vec::new(), blockers: Vec::new() }
    }
}

const KVM: &str = "kvm";
const HVF: &str = "hvf";
/// One host thread per vCPU.
const EMULATION: &str = "tcg,thread=multi";

pub(crate) fn choose(requested: Accelerator, host: &HostFacts) -> AcceleratorChoice {
    match requested {
        Accelerator::Kvm => kvm(host),
        Accelerator::Hvf if host.os == Os::MacOs => AcceleratorChoice::of(HVF),
        Accelerator::Hvf => {
            let reason = Reason::new("HVF is available on macOS only", "set accelerator to auto");
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
    // One line without remedies: `capsa backends` and `capsa doctor` print them.
    let blockers: Vec<_> = host.kvm.blockers().into_iter().map(|reason| reason.what).collect();
    choice.notes = [emulation_note(&blockers.join("; "))].into();
    choice
}

/// KVM was requested explicitly. If the device works but the CPU has no virtualisation flag, a guest may
/// run or hang: the plan is accepted with a warning.
fn kvm(host: &HostFacts) -> AcceleratorChoice {
    let blockers = host.kvm.blockers();
    if host.kvm.answers() {
        let notes = host.kvm.explicit_use_warning().into_iter().collect();
        AcceleratorChoice { notes, ..AcceleratorChoice::of(KVM) }
    } else {
        AcceleratorChoice { blockers, ..AcceleratorChoice::of(KVM) }
    }
}
