//! Hypervisors and helpers that somebody else kills.

use std::fs;

use capsa::{EndedBy, MountMode, ShareMechanism, VirtioFsConfig, VmStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::subject::Sigterm;
use super::{Scenario, Stage};
use crate::vm::{eventually, runs};

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
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(text)
    })
    .collect()
}

fn sigkill(stage: &Stage<'_>) {
    let machine = stage.boot(stage.builder());
    signal(machine.pid(), Signal::SIGKILL);
    let report = machine.ended();
    let EndedBy::HypervisorLost { what } = &report.ended_by else { panic!("{report:?}") };
    assert!(what.contains(&format!("{} was killed by signal 9", stage.subject.backend)), "{what}");
    assert!(matches!(machine.vm.status(), VmStatus::Failed { .. }), "{}", machine.vm.status());
}

fn sigterm(stage: &Stage<'_>) {
    let machine = stage.boot(stage.builder());
    signal(machine.pid(), Signal::SIGTERM);
    let report = machine.ended();
    match stage.subject.nature.sigterm {
        Sigterm::Lost => {
            let EndedBy::HypervisorLost { what } = &report.ended_by else { panic!("{report:?}") };
            assert!(what.contains("another process"), "{what}");
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
    let mut helpers = processes_with(&run_dir);
    helpers.retain(|pid| *pid != hypervisor);
    let named = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "virtiofsd"
    };
    helpers.retain(named);
    assert!(!helpers.is_empty(), "no virtiofsd has {run_dir}");
    for pid in &helpers {
        signal(*pid, Signal::SIGKILL);
    }
    let report = machine.ended();
    let EndedBy::HelperLost { what } = &report.ended_by else { panic!("{report:?}") };
    assert!(what.contains("virtiofsd for /share was killed by signal 9"), "{what}");
    // Its guest cannot live without it.
    eventually("the hypervisor is gone", || !runs(hypervisor));
}
