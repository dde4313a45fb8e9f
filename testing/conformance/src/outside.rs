//! Hypervisors and helpers that somebody else kills.

use capsa::{EndedBy, MountMode, ShareMechanism, VirtioFsConfig, VmStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::subject::Sigterm;
use super::{Scenario, Stage};
use capsa_testkit::processes::{self, Process, runs};
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::any("a_hypervisor_killed_from_outside_is_lost", sigkill),
    Scenario::any("a_hypervisor_terminated_from_outside_ends_as_documented", sigterm),
    Scenario::any("a_virtiofsd_killed_from_outside_is_named", virtiofsd_killed)
        .uses(&["virtio_fs"]),
];

/// Sends a signal to a process of the machine under test.
pub(super) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().expect("a process id")), signal).expect("it is ours");
}

/// The processes that have `text` among their arguments.
pub(super) fn processes_with(text: &str) -> Vec<u32> {
    processes::with_argument(text).into_iter().map(|process| process.pid).collect()
}

fn sigkill(stage: &Stage<'_>) {
    let machine = stage.boot(stage.builder());
    signal(machine.pid(), Signal::SIGKILL);
    let report = machine.ended();
    let EndedBy::HypervisorLost { reason } = &report.ended_by else { panic!("{report:?}") };
    assert!(
        reason.contains(&format!("{} was killed by signal 9", stage.subject.backend)),
        "{reason}"
    );
    assert!(matches!(machine.vm.status(), VmStatus::Failed { .. }), "{}", machine.vm.status());
}

fn sigterm(stage: &Stage<'_>) {
    let machine = stage.boot(stage.builder());
    signal(machine.pid(), Signal::SIGTERM);
    let report = machine.ended();
    match stage.subject.nature.sigterm {
        Sigterm::Lost => {
            let EndedBy::HypervisorLost { reason } = &report.ended_by else { panic!("{report:?}") };
            assert!(reason.contains("another process"), "{reason}");
        }
        Sigterm::PowerOff => assert_eq!(report.ended_by, EndedBy::GuestPowerOff),
    }
}

fn virtiofsd_killed(stage: &Stage<'_>) {
    let mechanism = ShareMechanism::VirtioFs(VirtioFsConfig::default());
    let builder = stage.builder().share_with_mechanism(
        stage.dir(),
        "/share",
        MountMode::ReadWrite,
        mechanism,
    );
    if !stage.subject.nature.share_helpers {
        let plan = builder.plan().unwrap();
        assert_eq!(plan.processes.len(), 1, "beside the hypervisor there is {:?}", plan.processes);
        return;
    }
    let machine = stage.boot(builder);
    let hypervisor = machine.pid();
    let run_dir = machine.vm.launch_plan().run_dir.to_string();
    let is_helper = |process: &Process| {
        let program = process.arguments.split(' ').next().unwrap_or_default();
        process.pid != hypervisor && program.ends_with("virtiofsd")
    };
    let mut helpers = processes::with_argument(&run_dir);
    helpers.retain(is_helper);
    assert!(!helpers.is_empty(), "no virtiofsd has {run_dir}");
    for helper in &helpers {
        signal(helper.pid, Signal::SIGKILL);
    }
    let report = machine.ended();
    let EndedBy::HelperLost { reason } = &report.ended_by else { panic!("{report:?}") };
    assert!(reason.contains("virtiofsd for /share was killed by signal 9"), "{reason}");
    // Its guest cannot live without it.
    eventually("the hypervisor is gone", || !runs(hypervisor));
}
