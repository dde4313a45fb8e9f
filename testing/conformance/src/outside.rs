//! Hypervisors and helper processes that another process kills.

use capsa::{EndedBy, MountMode, ShareMechanism, VirtioFsConfig, VmStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::subject::SigtermResult;
use super::{Fixture, Scenario};
use capsa_testkit::processes::{self, Process, runs};
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::any("hypervisor_killed_is_reported_lost", sigkill),
    Scenario::any("hypervisor_sigterm_ends_as_documented", sigterm),
    Scenario::any("virtiofsd_killed_is_reported_by_name", virtiofsd_killed).uses(&["virtio_fs"]),
];

/// Sends a signal to a process of the VM.
pub(super) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().expect("a process id")), signal).expect("the process exists");
}

/// The processes that have `text` among their arguments.
pub(super) fn processes_with(text: &str) -> Vec<u32> {
    processes::with_argument(text).into_iter().map(|process| process.pid).collect()
}

fn sigkill(fixture: &Fixture<'_>) {
    let vm = fixture.boot(fixture.builder());
    signal(vm.pid(), Signal::SIGKILL);
    let report = vm.wait_for_end();
    let EndedBy::HypervisorLost { reason } = &report.ended_by else { panic!("{report:?}") };
    assert!(
        reason.contains(&format!("{} was killed by signal 9", fixture.subject.backend)),
        "{reason}"
    );
    assert!(reason.contains("which Capsa did not send"), "{reason}");
    assert!(matches!(vm.handle.status(), VmStatus::Failed { .. }), "{}", vm.handle.status());
}

fn sigterm(fixture: &Fixture<'_>) {
    let vm = fixture.boot(fixture.builder());
    signal(vm.pid(), Signal::SIGTERM);
    let report = vm.wait_for_end();
    match fixture.subject.traits.sigterm {
        SigtermResult::Lost => {
            let EndedBy::HypervisorLost { reason } = &report.ended_by else { panic!("{report:?}") };
            assert!(reason.contains("another process"), "{reason}");
        }
        SigtermResult::PowerOff => assert_eq!(report.ended_by, EndedBy::GuestPowerOff),
    }
}

fn virtiofsd_killed(fixture: &Fixture<'_>) {
    let mechanism = ShareMechanism::VirtioFs(VirtioFsConfig::default());
    let builder = fixture.builder().share_with_mechanism(
        fixture.dir(),
        "/share",
        MountMode::ReadWrite,
        mechanism,
    );
    if !fixture.subject.traits.share_helpers {
        let plan = builder.plan().unwrap();
        assert_eq!(plan.processes().len(), 1, "{plan}");
        return;
    }
    let vm = fixture.boot(builder);
    let hypervisor = vm.pid();
    let share = fixture.dir().display().to_string();
    let is_helper = |process: &Process| {
        let program = process.arguments.split(' ').next().unwrap_or_default();
        process.pid != hypervisor && program.ends_with("virtiofsd")
    };
    let mut helpers = processes::with_argument(&share);
    helpers.retain(is_helper);
    assert!(!helpers.is_empty(), "no virtiofsd serves {share}");
    for helper in &helpers {
        signal(helper.pid, Signal::SIGKILL);
    }
    let report = vm.wait_for_end();
    let EndedBy::HelperLost { reason } = &report.ended_by else { panic!("{report:?}") };
    assert!(reason.contains("virtiofsd for /share was killed by signal 9"), "{reason}");
    // The VM cannot continue without its share.
    eventually("the hypervisor has exited", || !runs(hypervisor));
}
