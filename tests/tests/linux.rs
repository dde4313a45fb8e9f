//! A real Linux guest through the library: console, disks, shares, network, how it ends.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use capsa::blocking::{VmConsole, VmHandle};
use capsa::{
    Capsa, DiskImage, EndedBy, Error, ImageFormat, LinuxVmBuilder, MountMode, RebootPolicy,
    ShareMechanism, StopStep, Virtio9pConfig, VirtioFsConfig, VmStatus,
};
use capsa_test::guest::{self, LinuxGuest, Variant};
use capsa_test::{host, skip, vm};

/// Emulated, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The guest, unless it cannot be had here, which is said aloud.
fn guest(test: &str, variant: Variant) -> Option<LinuxGuest> {
    if host::find_program("qemu-system-x86_64").is_none() {
        skip(test, "qemu-system-x86_64 is not installed");
        return None;
    }
    guest::linux(variant).map_err(|why| skip(test, why)).ok()
}

/// Boots it and logs in as root.
fn logged_in(builder: LinuxVmBuilder) -> (VmHandle, VmConsole) {
    let vm = builder.build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.login_timeout("root", None, PATIENCE).unwrap();
    (vm, console)
}

/// What a command that must succeed prints.
fn sh(console: &mut VmConsole, command: &str) -> String {
    let reply = console.run(command, Some(PATIENCE)).unwrap();
    let output = String::from_utf8(reply.output).unwrap();
    assert_eq!(reply.status, Some(0), "{command}: {output}");
    output.trim_end().to_owned()
}

fn status(console: &mut VmConsole, command: &str) -> i32 {
    console.run(command, Some(PATIENCE)).unwrap().status.unwrap()
}

/// Its last status, in good time.
fn ended(vm: &VmHandle) -> VmStatus {
    vm.wait_timeout(PATIENCE).unwrap().expect("it ends")
}

fn checksum(file: &Path) -> String {
    let said = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(said.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn login_commands_and_a_graceful_stop() {
    let Some(guest) = guest("linux guest", Variant::Cloud) else { return };
    let vm = vm::linux(&guest).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    let error = console.login_timeout("user", Some("wrong"), PATIENCE).unwrap_err();
    assert!(matches!(error, Error::Script(_)), "{error}");
    console.login_timeout("user", Some("secret"), PATIENCE).unwrap();
    assert_eq!(sh(&mut console, "id -un"), "user");
    assert_eq!(status(&mut console, "exit_code() { return 7; }; exit_code"), 7);
    assert_eq!(sh(&mut console, "printf 'a # b\\n$ '"), "a # b\n$");
    assert_eq!(sh(&mut console, "seq 20000 | wc -l"), "20000");
    assert_eq!(sh(&mut console, "seq 20000").len(), 108_893);
    let error = console.run("sleep 1000", Some(Duration::from_millis(500))).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(sh(&mut console, "echo usable again"), "usable again");
    vm.stop().unwrap();
    let report = vm.stop_report().unwrap();
    assert_eq!((report.ended_by, report.steps), (EndedBy::GuestPowerOff, vec![StopStep::Asked]));
}

#[test]
fn disks_are_written_in_place_read_only_or_thrown_away() {
    let Some(guest) = guest("disks", Variant::Cloud) else { return };
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &str| {
        let to = dir.path().join(to);
        fs::copy(from, &to).unwrap();
        to
    };
    let raw = copy(&guest.disk_raw, "written.raw");
    let read_only = copy(&guest.disk_raw, "read-only.raw");
    let thrown_away = copy(&guest.disk_qcow2, "a,comma.qcow2");
    let kept = copy(&guest.disk_qcow2, "kept.qcow2");
    let before = [&raw, &read_only, &thrown_away, &kept].map(|file| checksum(file));
    let (vm, mut console) = logged_in(
        vm::linux(&guest)
            .disk(DiskImage::new(&raw))
            .disk(DiskImage::with_format(&read_only, ImageFormat::Raw).read_only())
            .disk(DiskImage::new(&thrown_away).ephemeral())
            .disk(DiskImage::new(&kept)),
    );
    for (disk, writable) in [("vda", true), ("vdb", false), ("vdc", true), ("vdd", true)] {
        // The first is mounted by the guest already, as its root device.
        sh(
            &mut console,
            &format!(
                "umount /mnt/root; mkdir -p /d; mount -t ext4 /dev/{disk} /d || mount -t ext4 -o ro /dev/{disk} /d"
            ),
        );
        assert!(!sh(&mut console, "cat /d/hello").is_empty());
        assert_eq!(status(&mut console, "echo written >/d/new") == 0, writable, "{disk}");
        sh(&mut console, "umount /d");
    }
    vm.stop().unwrap();
    let after = [&raw, &read_only, &thrown_away, &kept].map(|file| checksum(file));
    let changed: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
    assert_eq!(changed, [true, false, false, true]);
}

/// A read-write and a read-only share, and what the guest can do with each.
fn shares_hold(guest: &LinuxGuest, mechanism: &ShareMechanism, fs_type: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (open, closed) = (dir.path().join("open, dir"), dir.path().join("closed"));
    for share in [&open, &closed] {
        fs::create_dir(share).unwrap();
        fs::write(share.join("from-host"), "hello guest").unwrap();
    }
    let (vm, mut console) = logged_in(
        vm::linux(guest)
            .share_with_mechanism(&open, "/open", MountMode::ReadWrite, mechanism.clone())
            .share_with_mechanism(&closed, "/closed", MountMode::ReadOnly, mechanism.clone()),
    );
    let mounts = sh(&mut console, "mount");
    assert!(mounts.contains(&format!("on /open type {fs_type} (rw")), "{mounts}");
    assert!(mounts.contains(&format!("on /closed type {fs_type} (ro")), "{mounts}");
    assert_eq!(sh(&mut console, "cat /open/from-host /closed/from-host"), "hello guesthello guest");
    sh(&mut console, "echo hello host >/open/from-guest");
    assert_eq!(fs::read_to_string(open.join("from-guest")).unwrap(), "hello host\n");
    // The guest's own mount option is no obstacle to a guest: the host has to hold.
    status(&mut console, "mount -o remount,rw /closed");
    assert_ne!(status(&mut console, "echo x >/closed/from-guest"), 0);
    assert_ne!(status(&mut console, "echo x >/closed/from-host"), 0);
    assert_ne!(status(&mut console, "rm /closed/from-host"), 0);
    assert_eq!(fs::read_to_string(closed.join("from-host")).unwrap(), "hello guest");
    assert_eq!(fs::read_dir(&closed).unwrap().count(), 1);
    vm.stop().unwrap();
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
}

#[test]
fn virtio_fs_shares_are_mounted_and_read_only_holds_on_the_host() {
    let Some(guest) = guest("virtio-fs", Variant::Cloud) else { return };
    if host::find_program("virtiofsd").is_none() {
        skip("virtio-fs", "virtiofsd is not installed");
        return;
    }
    shares_hold(&guest, &ShareMechanism::VirtioFs(VirtioFsConfig::default()), "virtiofs");
}

#[test]
fn virtio_9p_shares_are_mounted_and_read_only_holds_on_the_host() {
    let Some(guest) = guest("virtio-9p", Variant::Generic) else { return };
    shares_hold(&guest, &ShareMechanism::Virtio9p(Virtio9pConfig::default()), "9p");
}

#[test]
fn a_helper_killed_from_outside_is_named() {
    let Some(guest) = guest("virtiofsd killed", Variant::Cloud) else { return };
    if host::find_program("virtiofsd").is_none() {
        skip("virtiofsd killed", "virtiofsd is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let vm = vm::linux(&guest)
        .share_with_mechanism(
            dir.path(),
            "/share",
            MountMode::ReadOnly,
            ShareMechanism::VirtioFs(VirtioFsConfig::default()),
        )
        .build_blocking()
        .unwrap();
    vm.start().unwrap();
    let socket = format!("{}/fs0.sock", vm.launch_plan().run_dir);
    let helper = format!("--socket-path {socket}");
    let found = Command::new("pkill").args(["-KILL", "-f", "--", &helper]).status().unwrap();
    assert!(found.success(), "no virtiofsd has {socket}");
    let status = ended(&vm);
    let report = vm.stop_report().unwrap();
    let EndedBy::HelperLost { what } = report.ended_by else { panic!("{status} {report:?}") };
    assert!(what.contains("virtiofsd for /share was killed by signal 9"), "{what}");
}

#[test]
fn nat_gives_an_address_and_no_network_gives_no_device() {
    let Some(guest) = guest("network", Variant::Cloud) else { return };
    let (_vm, mut console) = logged_in(vm::linux(&guest).network(capsa::NetworkMode::Nat));
    let address = sh(
        &mut console,
        "for i in $(seq 100); do ip -4 addr show eth0 | grep -o '10.0.2.15' && break; sleep 0.1; done",
    );
    assert_eq!(address, "10.0.2.15");
    let (_vm, mut console) = logged_in(vm::linux(&guest));
    assert_eq!(sh(&mut console, "ls /sys/class/net"), "lo");
}

#[test]
fn a_kernel_panic_is_told_from_a_reboot() {
    let Some(guest) = guest("panic", Variant::Cloud) else { return };
    let (vm, mut console) = logged_in(vm::linux(&guest));
    console.write_line("echo c >/proc/sysrq-trigger").unwrap();
    ended(&vm);
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPanic);

    let (vm, mut console) = logged_in(vm::linux(&guest));
    console.write_line("reboot").unwrap();
    ended(&vm);
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestReboot);
}

#[test]
fn a_reboot_comes_back_where_that_was_asked_for() {
    let Some(guest) = guest("reboot", Variant::Cloud) else { return };
    let (vm, mut console) = logged_in(vm::linux(&guest).on_reboot(RebootPolicy::Restart));
    sh(&mut console, "touch /in-memory");
    console.write_line("reboot").unwrap();
    console.wait_for_timeout("capsa login: ", PATIENCE).unwrap();
    console.write_line("root").unwrap();
    console.wait_for_timeout("# ", PATIENCE).unwrap();
    assert_ne!(status(&mut console, "test -e /in-memory"), 0);
    vm.stop().unwrap();
}

#[test]
fn several_cpus_and_the_memory_asked_for_arrive() {
    let Some(guest) = guest("resources", Variant::Cloud) else { return };
    let (_vm, mut console) = logged_in(vm::linux(&guest).cpus(2).memory_mb(300));
    assert_eq!(sh(&mut console, "grep -c ^processor /proc/cpuinfo"), "2");
    let kib: u32 = sh(&mut console, "awk '/MemTotal/ { print $2 }' /proc/meminfo").parse().unwrap();
    assert!((230_000..300_000).contains(&kib), "{kib}");
}

#[test]
fn debian_with_systemd_logs_in_and_powers_off_when_asked() {
    if host::find_program("qemu-system-x86_64").is_none() {
        return skip("debian", "qemu-system-x86_64 is not installed");
    }
    let guest = match guest::debian() {
        Ok(guest) => guest,
        Err(why) => return skip("debian", why),
    };
    let vm = Capsa::vm(capsa::LinuxDirectBootConfig {
        kernel: guest.kernel,
        initrd: guest.initrd,
        disk: DiskImage::new(guest.disk).ephemeral(),
    })
    .backend("qemu")
    .cpus(2)
    .memory_mb(512)
    .no_network()
    .console_enabled()
    // It has no fstab that would make the root file system writable.
    .cmdline_args(["rw", "quiet", "mitigations=off"])
    .build_blocking()
    .unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.login_timeout("root", Some("capsa"), PATIENCE).unwrap();
    assert_eq!(sh(&mut console, "cat /proc/1/comm"), "systemd");
    assert_eq!(sh(&mut console, "systemctl is-active getty.target"), "active");
    assert_eq!(sh(&mut console, "systemctl is-active systemd-logind"), "active");
    vm.stop_with_timeout(PATIENCE).unwrap();
    let report = vm.stop_report().unwrap();
    assert_eq!((report.ended_by, report.steps), (EndedBy::GuestPowerOff, vec![StopStep::Asked]));
}
