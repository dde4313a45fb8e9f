//! The conformance suite (`testing/conformance/`) on every backend: a test for each scenario and
//! subject, and tests that the suite is complete.

use std::collections::BTreeSet;
use std::process::Command;

use capsa_conformance::{ScenarioResult, Subject};
use capsa_conformance::{capabilities, scenarios, subject};
use capsa_testkit::programs::TestProgram;
use capsa_testkit::skip;

/// Runs one scenario on a subject, or skips the test.
fn hold(backend: &str, name: &str) {
    let subject = match Subject::named(backend) {
        Ok(subject) => subject,
        Err(why) => return skip(why),
    };
    let scenario = scenarios().find(|scenario| scenario.name == name).expect("it is listed");
    if scenario.alone && scenario.first_unsupported(&subject).is_none() {
        // The other process waits until no fixture with a Linux guest is left in this one.
        return match scenario.fixture(&subject).map(drop) {
            Ok(()) => alone(backend, name),
            Err(why) => skip(why),
        };
    }
    match scenario.run(&subject) {
        ScenarioResult::Passed => {}
        ScenarioResult::Unsupported(leaf) => {
            println!("{backend} does not support {leaf}, and rejects it")
        }
        ScenarioResult::Skipped(why) => skip(why),
    }
}

/// Runs one in a process of its own, with its own run directories.
fn alone(backend: &str, name: &str) {
    let run_dir = tempfile::tempdir_in("/tmp").unwrap();
    let run = Command::new(TestProgram::new("conformance"))
        .args(["--backend", backend, "--filter", name])
        .env("CAPSA_RUN_DIR", run_dir.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{output}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(output.contains("1 passed, 0 failed"), "{output}");
}

macro_rules! suite {
    ($($(#[$if:meta])? $module:ident = $backend:literal),+; $scenarios:tt) => {
        $(suite!(@ $(#[$if])? $module $backend $scenarios);)+
        suite!(# $scenarios);
    };
    (@ $(#[$if:meta])? $module:ident $backend:literal { $($scenario:ident,)+ }) => {
        $(#[$if])?
        mod $module {
            $(#[test] fn $scenario() { super::hold($backend, stringify!($scenario)); })+
        }
    };
    (# { $($scenario:ident,)+ }) => {
        const LISTED: &[&str] = &[$(stringify!($scenario)),+];
    };
}

suite! {
    qemu = "qemu",
    cloud_hypervisor = "cloud-hypervisor",
    cloud_hypervisor_stand_in = "cloud-hypervisor-stand-in",
    #[cfg(target_os = "macos")] vfkit = "vfkit",
    vfkit_stand_in = "vfkit-stand-in";
    {
        guest_has_the_described_hardware_only,
        kernel_without_initrd_boots,
        kernel_invalid_start_fails_with_reason,
        cpus_above_maximum_are_rejected,
        devices_above_maximum_are_rejected,
        console_carries_both_directions,
        console_early_output_is_complete,
        console_unread_output_is_complete,
        console_slow_reader_loses_no_byte,
        console_disabled_returns_error,
        virtio_console_is_used_as_hvc0,
        guest_power_off_is_reported,
        guest_reboot_ends_vm,
        guest_reboot_with_policy_restarts,
        guest_reboot_clears_memory,
        kernel_panic_ends_vm,
        kernel_panic_differs_from_reboot,
        time_limit_ends_vm_and_is_reported,
        stop_powers_guest_off,
        stop_without_button_quits_after_grace,
        stop_hung_hypervisor_is_killed,
        kill_ends_vm_at_once,
        kill_ends_grace_period,
        paused_guest_is_silent_until_resume,
        stop_of_paused_vm_powers_guest_off,
        kill_of_paused_vm_ends_it,
        drop_last_handle_kills_and_cleans_up,
        wait_in_many_threads_returns_in_all,
        calls_in_wrong_phase_return_errors,
        stop_while_starting_kills_at_once,
        console_wait_ends_with_the_guest,
        hypervisor_killed_is_reported_lost,
        hypervisor_sigterm_ends_as_documented,
        virtiofsd_killed_is_reported_by_name,
        raw_disks_keep_order_and_read_only,
        qcow2_write_keeps_backing_file_unchanged,
        ephemeral_disk_write_is_discarded,
        disk_error_reaches_guest_and_owner,
        disk_error_pauses_guest_until_resume,
        vm_end_ends_share_helpers,
        virtio_fs_share_carries_both_directions,
        virtio_fs_read_only_holds_on_host,
        virtio_9p_share_and_read_only_work,
        nat_assigns_address_and_reaches_host,
        nat_carries_streams_whole,
        nat_works_after_guest_reboots,
        nat_opens_only_the_allowed_host_port,
        nat_forwards_and_services_carry_streams,
        vsock_carries_many_streams_both_ways,
        vsock_disabled_returns_error,
        hundred_vms_leave_nothing_behind,
    }
}

/// One skipped test, where no scenario can run on vfkit.
#[cfg(not(target_os = "macos"))]
#[test]
fn vfkit() {
    skip(Subject::named("vfkit").unwrap_err());
}

#[test]
fn every_scenario_is_listed() {
    let there: Vec<_> = scenarios().map(|scenario| scenario.name).collect();
    assert_eq!(LISTED, there, "LISTED and the suite differ");
    let names: BTreeSet<_> = there.iter().collect();
    assert_eq!(names.len(), there.len(), "two scenarios have one name");
}

#[test]
fn every_claimed_capability_has_a_scenario() {
    let uses: BTreeSet<&str> = scenarios().flat_map(|scenario| scenario.uses).copied().collect();
    let mut unproven = Vec::new();
    for report in subject::backends() {
        let leaves = capabilities::leaves(&report.capabilities);
        let claimed = leaves.iter().filter(|(_, claimed)| **claimed).map(|(leaf, _)| leaf);
        let lacking = claimed.filter(|leaf| !uses.contains(leaf.as_str()));
        unproven.extend(lacking.map(|leaf| format!("{} supports {leaf}", report.name)));
        for used in &uses {
            assert!(leaves.contains_key(*used), "{used} is not a leaf of {leaves:?}");
        }
    }
    assert!(!uses.is_empty() && !subject::backends().is_empty());
    assert_eq!(unproven, Vec::<String>::new(), "no scenario tests a supported leaf");
}

#[test]
fn every_subject_has_a_backend_and_its_own_name() {
    for (name, find) in subject::SUBJECTS {
        match find() {
            Ok(subject) => {
                assert_eq!(subject.name, *name);
                assert!(subject.supports("guest_os.linux"), "{name} supports no guest");
            }
            Err(why) => assert!(!why.is_empty(), "{name}"),
        }
    }
}
