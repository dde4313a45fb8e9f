//! Every backend held to the suite (`testing/conformance/`): a test for each scenario and subject,
//! and the laws that keep the suite whole.

use std::collections::BTreeSet;
use std::process::Command;

use capsa_conformance::{Subject, Verdict};
use capsa_conformance::{claims, scenarios, subject};
use capsa_testkit::programs::TestProgram;
use capsa_testkit::skip;

/// Holds the subject to one scenario. Where it cannot run, says so.
fn hold(backend: &str, name: &str) {
    let subject = match Subject::named(backend) {
        Ok(subject) => subject,
        Err(why) => return skip(why),
    };
    let scenario = scenarios().find(|scenario| scenario.name == name).expect("it is listed");
    if scenario.alone && scenario.unclaimed(&subject).is_none() {
        return match scenario.stage(&subject) {
            Ok(_) => alone(backend, name),
            Err(why) => skip(why),
        };
    }
    match scenario.run(&subject) {
        Verdict::Passed => {}
        Verdict::NotClaimed(leaf) => println!("{backend} does not claim {leaf}, and refuses it"),
        Verdict::CannotRun(why) => skip(why),
    }
}

/// Runs one in a program of its own, with run directories of its own.
fn alone(backend: &str, name: &str) {
    let run_dir = tempfile::tempdir_in("/tmp").unwrap();
    let run = Command::new(TestProgram::new("conformance"))
        .args(["--backend", backend, "--filter", name])
        .env("CAPSA_RUN_DIR", run_dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(said.contains("1 passed, 0 failed"), "{said}");
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
        what_was_asked_for_arrives_and_nothing_else,
        a_kernel_boots_without_an_initrd,
        a_kernel_that_is_none_fails_the_start_with_a_reason,
        more_cpus_than_claimed_are_refused,
        the_console_goes_both_ways,
        not_one_byte_of_early_output_is_lost,
        a_flood_that_nobody_reads_arrives_whole,
        a_reader_that_is_behind_loses_nothing,
        a_machine_without_console_has_none,
        a_power_off_of_the_guest_is_its_own,
        a_reboot_of_the_guest_ends_the_machine,
        a_reboot_restarts_where_that_was_asked_for,
        a_reboot_forgets_what_was_in_memory,
        a_kernel_panic_ends_the_machine,
        a_kernel_panic_is_told_from_a_reboot,
        the_time_limit_ends_it_and_says_so,
        a_stop_reaches_the_guest,
        a_deaf_guest_loses_its_power_after_the_grace,
        a_hypervisor_that_hangs_is_killed_in_the_end,
        a_kill_does_not_ask,
        a_kill_ends_the_grace,
        dropping_the_last_handle_kills_and_leaves_nothing,
        any_number_of_waits_return,
        a_machine_starts_once_and_stops_only_after_that,
        a_stop_while_starting_kills_at_once,
        a_guest_that_dies_ends_a_wait_for_its_words,
        a_hypervisor_killed_from_outside_is_lost,
        a_hypervisor_terminated_from_outside_ends_as_documented,
        a_virtiofsd_killed_from_outside_is_named,
        raw_disks_come_in_order_and_read_only_holds,
        qcow2_disks_are_written_and_their_backing_file_is_not,
        what_is_written_to_a_throw_away_disk_is_gone,
        a_machine_with_shares_ends_and_so_do_its_helpers,
        virtio_fs_shares_go_both_ways,
        a_read_only_virtio_fs_share_holds_on_the_host,
        virtio_9p_shares_go_both_ways_and_read_only_holds,
        nat_gives_an_address_and_reaches_the_host,
        vsock_streams_go_both_ways_many_at_once,
        a_machine_without_vsock_says_so,
        a_hundred_lives_leave_nothing_behind,
    }
}

/// Where none of it can ever run, one line for all.
#[cfg(not(target_os = "macos"))]
#[test]
fn vfkit() {
    skip(Subject::named("vfkit").unwrap_err());
}

#[test]
fn every_scenario_is_listed() {
    let there: Vec<_> = scenarios().map(|scenario| scenario.name).collect();
    assert_eq!(LISTED, there, "the list above and the suite differ");
    let names: BTreeSet<_> = there.iter().collect();
    assert_eq!(names.len(), there.len(), "two scenarios have one name");
}

#[test]
fn every_claimed_capability_has_a_scenario() {
    let uses: BTreeSet<&str> = scenarios().flat_map(|scenario| scenario.uses).copied().collect();
    let mut unproven = Vec::new();
    for report in subject::backends() {
        let leaves = claims::leaves(&report.capabilities);
        let claimed = leaves.iter().filter(|(_, claimed)| **claimed).map(|(leaf, _)| leaf);
        let lacking = claimed.filter(|leaf| !uses.contains(leaf.as_str()));
        unproven.extend(lacking.map(|leaf| format!("{} claims {leaf}", report.name)));
        for used in &uses {
            assert!(leaves.contains_key(*used), "{used} is no leaf of {leaves:?}");
        }
    }
    assert!(!uses.is_empty() && !subject::backends().is_empty());
    assert_eq!(unproven, Vec::<String>::new(), "no scenario uses what is claimed");
}

#[test]
fn every_subject_has_a_backend_and_its_own_name() {
    for (name, find) in subject::SUBJECTS {
        match find() {
            Ok(subject) => {
                assert_eq!(subject.name, *name);
                assert!(subject.claims("guest_os.linux"), "{name} runs nothing");
            }
            Err(why) => assert!(!why.is_empty(), "{name}"),
        }
    }
}
