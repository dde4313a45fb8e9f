//! Tests of exact plans, of each blocker and of each violation.

mod agent;
mod disks;
mod events;

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::time::Duration;

use super::*;
use capsa_proto::backend::{Feature, ProbeResult};
use capsa_proto::capabilities::{ViolationKind as Kind, validate};
use capsa_proto::host::{FileFacts, KVM_API, KvmDevice, KvmFacts};
use capsa_proto::path::HostPath;
use capsa_proto::plan::{AgentProgram, Body, DescriptorKind, NetworkLink};
use capsa_proto::qcow2::Overlay;
use capsa_proto::spec::NetworkMode;
use capsa_proto::spec::{
    Accelerator, ConsoleMode, Disk, DiskErrorPolicy, ImageFormat, MountMode, RebootPolicy, Share,
    Virtio9pConfig, VirtioFsConfig,
};
use serde_json::json;

const HELP: &str = "QEMU emulator version 10.0.2 (Debian)\n-netdev stream,id=str\n-sandbox on[,\n";
const ALL_DEVICES: &str = "name \"virtio-9p-pci\", bus PCI\nname \"vhost-user-fs-pci\", bus PCI\n\
                           name \"vhost-user-vsock-pci\", bus PCI\nname \"virtconsole\"\n";

fn path(text: &str) -> HostPath {
    HostPath::new(text).unwrap()
}

fn file(head: &[u8], size: u64) -> FileFacts {
    FileFacts::File { size, head: head.to_vec(), writable: true, device: false }
}

fn bz_image() -> Vec<u8> {
    let mut head = vec![0; 0x206];
    head[0x202..].copy_from_slice(b"HdrS");
    head
}

/// The header of a qcow2 image without a backing file.
fn qcow2() -> Vec<u8> {
    let overlay = Overlay { over: path("/none"), format: ImageFormat::Raw, virtual_size: 512 };
    let mut head = overlay.image().pieces[0].1.clone();
    head[8..20].fill(0);
    head
}

/// The header of a qcow2 image with this backing file.
fn over(base: &str, format: ImageFormat) -> Vec<u8> {
    let overlay = Overlay { over: path(base), format, virtual_size: 512 };
    overlay.image().pieces[0].1.clone()
}

fn disk(at: &str, format: ImageFormat) -> Disk {
    Disk {
        path: path(at),
        format,
        read_only: false,
        ephemeral: false,
        backing: Vec::new(),
        allow_mounted: false,
    }
}

fn host() -> HostFacts {
    let files = BTreeMap::from([
        (path("/k"), file(&bz_image(), 9)),
        (path("/i"), file(b"070701", 9)),
        (path("/d.raw"), file(&[0; 8], 1024)),
        (path("/e.raw"), file(&[0; 8], 1024)),
        (path("/d,1.qcow2"), file(&qcow2(), 1024)),
        (path("/top.qcow2"), file(&over("/middle.qcow2", ImageFormat::Qcow2), 1024)),
        (path("/middle.qcow2"), file(&over("/work/../d.raw", ImageFormat::Raw), 1024)),
        (
            path("/dev/vg"),
            FileFacts::File { size: 4096, head: vec![0; 8], writable: true, device: true },
        ),
        (path("/work"), FileFacts::Directory { writable: true }),
    ]);
    HostFacts {
        os: Os::Linux,
        arch: Arch::X86_64,
        memory_mb: 4096,
        kvm: KvmFacts { device: KvmDevice::Answers { api: KVM_API }, cpu_flag: true },
        landlock: None,
        socket_path_max: 107,
        image_locks: Default::default(),
        used_devices: Default::default(),
        share_files: None,
        agent: Ok(AgentProgram(b"agent")),
        run_dir: path("/run/capsa/x"),
        resolved: [(path("/work/../d.raw"), path("/d.raw"))].into(),
        files,
    }
}

fn found() -> ProbeReport {
    let mut found = ProbeReport::default();
    let output_of =
        |output: &str| ProbeResult::Output { program: "/bin/q".into(), output: output.into() };
    found.insert(PROGRAM, output_of(HELP));
    found.insert(DEVICES, output_of(ALL_DEVICES));
    found.insert(
        virtiofsd::KEY,
        ProbeResult::Output { program: "/bin/virtiofsd".into(), output: "virtiofsd 1.14.0".into() },
    );
    found
}

fn spec() -> VmSpec {
    VmSpec { network: NetworkMode::None, ..VmSpec::new(path("/k")) }
}

fn try_plan(
    spec: VmSpec,
    host: &HostFacts,
    found: &ProbeReport,
) -> Result<LaunchPlan, Vec<Violation>> {
    let checked = validate(spec, &Qemu, host, found)?;
    Ok(Qemu.plan(&checked, &RunDirPlan::new(host.run_dir.clone()), host, found))
}

fn plan(spec: VmSpec) -> LaunchPlan {
    try_plan(spec, &host(), &found()).unwrap()
}

fn args(plan: &LaunchPlan) -> String {
    plan.processes.last().unwrap().args.join(" ")
}

fn rejected(spec: VmSpec) -> Vec<(String, Kind)> {
    rejected_on(spec, &host(), &found())
}

fn rejected_on(spec: VmSpec, host: &HostFacts, found: &ProbeReport) -> Vec<(String, Kind)> {
    let violations = try_plan(spec, host, found).unwrap_err();
    assert!(violations.iter().all(|v| !v.reason.is_empty() && !v.remedy.is_empty()));
    violations.into_iter().map(|v| (v.field, v.kind)).collect()
}

#[test]
fn plan_smallest_vm() {
    assert_eq!(
        args(&plan(spec())),
        "-nodefaults -no-user-config -display none -S -machine q35 -accel kvm -cpu max -smp 1 \
         -m 512M -action reboot=shutdown,panic=shutdown -device virtio-rng-pci -device pvpanic-pci \
         -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
         -kernel /k -append reboot=t panic=-1 \
         -chardev socket,id=control,fd=3 -mon chardev=control,mode=control"
    );
}

#[test]
fn plan_control_and_console_are_inherited() {
    let plan = plan(VmSpec { console: ConsoleMode::Enabled, ..spec() });
    assert!(args(&plan).contains("-chardev socket,id=console,fd=4 -serial chardev:console"));
    let kinds: Vec<_> = plan.processes[0].descriptors.iter().map(|d| &d.kind).collect();
    assert_eq!(kinds, [&DescriptorKind::Control, &DescriptorKind::Console]);
    assert!(plan.cmdline.starts_with("console=ttyS0 "), "{}", plan.cmdline);
}

#[test]
fn plan_virtio_console_keeps_serial_port() {
    let console = ConsoleMode::Enabled;
    let virtio = || VmSpec { console, virtio_console: true, ..spec() };
    let plan = plan(virtio());
    let want = "-chardev file,id=serial,path=/run/capsa/x/serial -serial chardev:serial \
                -chardev socket,id=console,fd=4 -device virtio-serial-pci,ioeventfd=off \
                -device virtconsole,id=console,chardev=console";
    assert!(args(&plan).contains(want), "{}", args(&plan));
    assert_eq!(plan.serial_port, Some(path("/run/capsa/x/serial")));
    assert_eq!(plan.processes[0].descriptors[1].kind, DescriptorKind::BlockingConsole);
    assert!(plan.cmdline.starts_with("console=ttyS0 console=hvc0 noirqdebug "), "{}", plan.cmdline);
    let disabled = VmSpec { console: ConsoleMode::Disabled, ..virtio() };
    assert_eq!(rejected(disabled), [("virtio_console".into(), Kind::Malformed)]);
    let without = ALL_DEVICES.replace("name \"virtconsole\"\n", "");
    let mut found = found();
    found.insert(DEVICES, ProbeResult::Output { program: "/bin/q".into(), output: without });
    let want = [("virtio_console".into(), Kind::Unsupported)];
    assert_eq!(rejected_on(virtio(), &host(), &found), want);
}

#[test]
fn plan_network_card_is_inherited() {
    let plan = plan(VmSpec { network: NetworkMode::Nat, ..spec() });
    let want = "-netdev stream,id=net0,server=off,addr.type=fd,addr.str=4 -device \
                virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:12:34:56,host_mtu=65520";
    assert!(args(&plan).contains(want), "{}", args(&plan));
    assert_eq!(plan.processes[0].descriptors[1].kind, DescriptorKind::Network);
    let network = plan.network.unwrap();
    assert_eq!((network.link, network.mtu), (NetworkLink::Stream, 65520));
    let carrier = network.carrier.unwrap();
    for (message, up) in [(carrier.up, true), (carrier.down, false)] {
        let want =
            Body::Qmp { execute: "set_link", arguments: Some(json!({"name": "net0", "up": up})) };
        assert_eq!(message.body, want);
    }
    assert!(self::plan(spec()).network.is_none());
}

#[test]
fn plan_shares_use_virtio_fs() {
    let share = Share {
        host: path("/work"),
        guest: "/workspace".into(),
        mode: MountMode::ReadOnly,
        mechanism: ShareMechanism::Auto,
    };
    let with_share = VmSpec { shares: vec![share], ..spec() };
    for (share_files, is_noted) in [(None, false), (Some(4096), true), (Some(1 << 20), false)] {
        let plan = try_plan(with_share.clone(), &HostFacts { share_files, ..host() }, &found());
        let plan = plan.unwrap();
        let noted = plan.notes.iter().any(|note| note.text.contains("about 4096 files of a share"));
        assert_eq!(noted, is_noted, "{share_files:?}");
    }
    let plan = plan(with_share);
    assert_eq!(plan.processes.len(), 2);
    assert!(plan.processes[0].args.contains(&"--readonly".into()));
    let args = args(&plan);
    assert!(args.contains("memory-backend-memfd,id=ram,size=512M,share=on"), "{args}");
    assert!(args.contains("-machine q35,memory-backend=ram"), "{args}");
    assert!(args.contains("vhost-user-fs-pci,chardev=fs0,tag=capsa0"), "{args}");
    assert!(plan.cmdline.contains("systemd.mount-extra=capsa0:/workspace:virtiofs:ro"));
}

#[test]
fn plan_nested_share_is_mounted_after_outer() {
    let share = |host: &str, guest: &str, mode| Share {
        host: path(host),
        guest: guest.into(),
        mode,
        mechanism: ShareMechanism::Auto,
    };
    let nested = |mode| VmSpec {
        shares: vec![share("/dev", "/mnt/in/", mode), share("/work", "/mnt", mode)],
        ..spec()
    };
    let mut host = host();
    host.files.insert(path("/dev"), FileFacts::Directory { writable: true });
    let spec = nested(MountMode::ReadOnly);
    assert_eq!(
        rejected_on(spec.clone(), &host, &found()),
        [("shares[0].guest".into(), Kind::Missing)]
    );
    let created = try_plan(nested(MountMode::ReadWrite), &host, &found()).unwrap();
    let has = |plan: &LaunchPlan, words: &str| plan.notes.iter().any(|n| n.text.contains(words));
    assert!(has(&created, "the guest creates the directory on the host"), "{:?}", created.notes);

    host.files.insert(path("/work/in"), FileFacts::Directory { writable: true });
    let plan = try_plan(spec, &host, &found()).unwrap();
    assert!(has(&plan, "/mnt/in/ is mounted inside the share /mnt, and covers /work/in there"));
    let outer = "systemd.mount-extra=capsa1:/mnt:virtiofs:ro";
    let inner = "systemd.mount-extra=capsa0:/mnt/in/:virtiofs:ro";
    assert!(plan.cmdline.find(outer) < plan.cmdline.find(inner), "{}", plan.cmdline);
    let commands: Vec<_> = plan.notes.iter().filter(|n| n.text.contains("must run")).collect();
    assert!(commands[0].text.ends_with("capsa1 /mnt"), "{commands:?}");
    assert!(commands[1].text.ends_with("capsa0 /mnt/in/"), "{commands:?}");
    let command = plan.mount_shares_command().unwrap();
    let mounts = ["virtiofs -o ro capsa1 /mnt; }", "virtiofs -o ro capsa0 /mnt/in/; }"];
    let at = mounts.map(|mount| command.find(mount));
    assert!(at[0].is_some() && at[0] < at[1], "{command}");
}

#[test]
fn plan_shares_of_three_levels_are_in_order() {
    let guests = ["/a/b/c", "/a", "/x", "/a/b"];
    let shares = guests.map(|guest| Share {
        host: path("/work"),
        guest: guest.into(),
        mode: MountMode::ReadWrite,
        mechanism: ShareMechanism::Auto,
    });
    let plan = try_plan(VmSpec { shares: shares.into(), ..spec() }, &host(), &found()).unwrap();
    let places = |text: &str, words: [&str; 3]| {
        let places = words.map(|word| text.find(word).unwrap_or_else(|| panic!("{word}: {text}")));
        assert!(places.is_sorted(), "{words:?}: {text}");
    };
    places(&plan.cmdline, ["capsa1:/a:", "capsa3:/a/b:", "capsa0:/a/b/c:"]);
    let mounts = ["capsa1 /a; }", "capsa3 /a/b; }", "capsa0 /a/b/c; }"];
    places(&plan.mount_shares_command().unwrap(), mounts);
    let printed: Vec<_> = plan.notes.iter().map(|note| note.text.as_str()).collect();
    places(&printed.join("\n"), ["capsa1 /a\n", "capsa3 /a/b\n", "capsa0 /a/b/c"]);
    let inside = "/a/b/c is mounted inside the share /a/b,";
    assert!(printed.iter().any(|note| note.contains(inside)), "{printed:?}");
}

#[test]
fn plan_without_virtiofsd_uses_9p_with_note() {
    let mut found = found();
    found.insert(virtiofsd::KEY, ProbeResult::NotFound { tried: vec!["virtiofsd".into()] });
    let share = Share {
        host: path("/work"),
        guest: "/workspace".into(),
        mode: MountMode::ReadWrite,
        mechanism: ShareMechanism::Auto,
    };
    let spec = VmSpec { shares: vec![share.clone()], ..spec() };
    let plan = try_plan(spec.clone(), &host(), &found).unwrap();
    assert_eq!(plan.processes.len(), 1);
    assert!(args(&plan).contains("security_model=none,multidevs=remap,readonly=off"));
    let note = plan.notes.iter().find(|n| n.text.contains("shared with 9p because")).unwrap();
    assert!(note.text.contains("virtiofsd was not found"), "{}", note.text);

    let forced = Share { mechanism: ShareMechanism::VirtioFs(VirtioFsConfig::default()), ..share };
    let spec = VmSpec { shares: vec![forced], ..spec };
    assert_eq!(
        rejected_on(spec, &host(), &found),
        [("shares[0].mechanism".into(), Kind::Unsupported)]
    );
}

#[test]
fn accelerator_emulation_has_warning() {
    let mut host = host();
    host.kvm.cpu_flag = false;
    let automatic = try_plan(spec(), &host, &found()).unwrap();
    assert!(args(&automatic).contains("-accel tcg,thread=multi"));
    assert!(
        automatic.notes[0].text.contains("neither the flag vmx nor svm"),
        "{:?}",
        automatic.notes
    );
    // An explicit request for KVM is accepted with a warning if /dev/kvm works.
    let forced =
        try_plan(VmSpec { accelerator: Accelerator::Kvm, ..spec() }, &host, &found()).unwrap();
    assert!(args(&forced).contains("-accel kvm"));
    assert_eq!(forced.notes.len(), 1);
    assert!(forced.notes[0].text.contains("KVM is used as requested"), "{:?}", forced.notes);
    host.kvm = KvmFacts::ABSENT;
    let forced = VmSpec { accelerator: Accelerator::Kvm, ..spec() };
    assert_eq!(rejected_on(forced, &host, &found()), [("accelerator".into(), Kind::Unsupported)]);
}

#[test]
fn validate_reports_all_violations() {
    let share = |host: &str, guest: &str, tag: Option<&str>| Share {
        host: path(host),
        guest: guest.into(),
        mode: MountMode::ReadWrite,
        mechanism: ShareMechanism::Virtio9p(Virtio9pConfig {
            tag: tag.map(Into::into),
            msize: None,
        }),
    };
    let mut spec = VmSpec {
        kernel: path("/work"),
        initrd: Some(path("/none")),
        disks: vec![
            disk("/d,1.qcow2", ImageFormat::Raw),
            disk("/d.raw", ImageFormat::Qcow2),
            disk("/d.raw", ImageFormat::Raw),
        ],
        shares: vec![
            share("/none", "/a", Some("same")),
            share("/work", "b", Some("same")),
            share("/work", "/c:d", None),
        ],
        time_limit: Some(Duration::ZERO),
        ..spec()
    };
    spec.resources.cpus = 0;
    spec.resources.memory_mb = 5000;
    spec.cmdline.arg("a=b\nc");
    assert_eq!(
        rejected(spec),
        [
            ("kernel".into(), Kind::WrongType),
            ("initrd".into(), Kind::Missing),
            ("disks[0].path".into(), Kind::WrongFormat),
            ("disks[1].path".into(), Kind::WrongFormat),
            ("disks[2].path".into(), Kind::Duplicate),
            ("cpus".into(), Kind::OutOfRange),
            ("memory".into(), Kind::OutOfRange),
            ("timeout".into(), Kind::OutOfRange),
            ("shares[0].host".into(), Kind::Missing),
            ("shares[1].guest".into(), Kind::Malformed),
            ("shares[1].tag".into(), Kind::Duplicate),
            ("shares[2].guest".into(), Kind::Malformed),
            ("cmdline".into(), Kind::Malformed),
        ]
    );
}

#[test]
fn validate_devices_share_one_limit() {
    let share = |n: u32| Share {
        host: path("/work"),
        guest: format!("/w{n}"),
        mode: MountMode::ReadOnly,
        mechanism: ShareMechanism::Auto,
    };
    let with = |disks: usize, shares, network, vsock| VmSpec {
        disks: vec![Disk { read_only: true, ..disk("/d.raw", ImageFormat::Raw) }; disks],
        shares: (0..shares).map(share).collect(),
        network,
        vsock,
        ..spec()
    };
    for spec in [
        with(28, 0, NetworkMode::None, false),
        with(27, 0, NetworkMode::Nat, false),
        with(20, 6, NetworkMode::Nat, true),
    ] {
        try_plan(spec, &host(), &found()).unwrap();
    }
    for spec in [
        with(29, 0, NetworkMode::None, false),
        with(28, 0, NetworkMode::Nat, false),
        with(20, 7, NetworkMode::Nat, true),
    ] {
        assert_eq!(rejected(spec), [("disks".into(), Kind::Unsupported)]);
    }
}

#[test]
fn validate_cmdline_too_long_rejected() {
    let mut spec = spec();
    spec.cmdline.arg(format!("a={}", "x".repeat(2048)).as_str());
    assert_eq!(rejected(spec), [("cmdline".into(), Kind::TooLong)]);
}

#[test]
fn validate_run_dir_too_long_rejected() {
    let mut host = host();
    host.run_dir = path(&format!("/{}", "r".repeat(100)));
    let share = Share {
        host: path("/work"),
        guest: "/workspace".into(),
        mode: MountMode::ReadOnly,
        mechanism: ShareMechanism::Auto,
    };
    let with_share = || VmSpec { shares: vec![share.clone()], ..spec() };
    for spec in [VmSpec { vsock: true, ..spec() }, with_share()] {
        assert_eq!(rejected_on(spec, &host, &found()), [("run_dir".into(), Kind::TooLong)]);
    }
    assert!(try_plan(spec(), &host, &found()).is_ok(), "no program uses a path");
    let short = HostFacts { run_dir: path(&format!("/{}", "r".repeat(95))), ..host };
    assert!(try_plan(with_share(), &short, &found()).is_ok(), "107 bytes with fs0.sock");
}

#[test]
fn validate_bad_files_rejected() {
    let mut host = host();
    host.files.insert(path("/d.raw"), file(&[], 0));
    host.files.insert(path("/i"), FileFacts::Unreadable("permission denied".into()));
    host.files.insert(path("/k"), file(b"#!/bin/sh", 9));
    let disk = disk("/d.raw", ImageFormat::Raw);
    let spec = VmSpec { initrd: Some(path("/i")), disks: vec![disk], ..spec() };
    assert_eq!(
        rejected_on(spec, &host, &found()),
        [
            ("kernel".into(), Kind::WrongFormat),
            ("initrd".into(), Kind::NoAccess),
            ("disks[0].path".into(), Kind::Empty),
        ]
    );
}

#[test]
fn validate_missing_build_features_rejected() {
    let mut found = found();
    let output_of =
        |output: &str| ProbeResult::Output { program: "/bin/q".into(), output: output.into() };
    found.insert(PROGRAM, output_of("QEMU emulator version 7.2.22\n"));
    found.insert(DEVICES, output_of(""));
    let share = Share {
        host: path("/work"),
        guest: "/w".into(),
        mode: MountMode::ReadWrite,
        mechanism: ShareMechanism::Virtio9p(Virtio9pConfig::default()),
    };
    let spec = VmSpec { network: NetworkMode::Nat, shares: vec![share], ..spec() };
    assert_eq!(
        rejected_on(spec, &host(), &found),
        [("network".into(), Kind::Unsupported), ("shares".into(), Kind::Unsupported),]
    );
}

#[test]
fn plan_vsock_helper_needs_stop_signal() {
    let mut found = found();
    let with = VmSpec { vsock: true, ..spec() };
    let missing = ProbeResult::NotFound { tried: vec!["vhost-device-vsock".into()] };
    found.insert(vhost_device_vsock::KEY, missing);
    assert_eq!(rejected_on(with.clone(), &host(), &found), [("vsock".into(), Kind::Unsupported)]);
    let installed =
        ProbeResult::Output { program: "/bin/v".into(), output: "vhost-device-vsock 0.3.0".into() };
    found.insert(vhost_device_vsock::KEY, installed);
    let plan = try_plan(with, &host(), &found).unwrap();
    let helper = &plan.processes[0];
    assert!(!helper.ends_with_hypervisor);
    assert_eq!(
        helper.args.join(" "),
        "--guest-cid 3 --socket /run/capsa/x/vsock.device --uds-path /run/capsa/x/vsock"
    );
    let args = args(&plan);
    assert!(args.contains("memory-backend-memfd,id=ram,size=512M,share=on"), "{args}");
    assert!(args.contains("-chardev socket,id=vsock,path=/run/capsa/x/vsock.device"), "{args}");
    assert!(args.contains("-device vhost-user-vsock-pci,chardev=vsock"), "{args}");
}

#[test]
fn missing_device_remedy_fits_feature() {
    let mut found = found();
    let output = ProbeResult::Output { program: "/bin/q".into(), output: String::new() };
    found.insert(DEVICES, output);
    let missing = Qemu.availability(&host(), &found).missing_features;
    let has = |feature, words: &str| {
        let mut of_feature = missing.iter().filter(|missing| missing.feature == feature);
        of_feature.any(|missing| missing.reason.remedy.ends_with(words))
    };
    assert!(has(Feature::Virtio9p, "or use virtio-fs"), "{missing:?}");
    assert!(has(Feature::VirtioFs, "or use virtio-9p"), "{missing:?}");
    assert!(has(Feature::Vsock, "or disable vsock"), "{missing:?}");
}

#[test]
fn availability_lists_missing_features() {
    let mut found = found();
    found.insert(vhost_device_vsock::KEY, ProbeResult::NotFound { tried: vec!["vdv".into()] });
    found.insert(virtiofsd::KEY, ProbeResult::NotFound { tried: vec!["vfs".into()] });
    let availability = Qemu.availability(&host(), &found);
    assert!(availability.is_usable());
    let missing_features: Vec<_> =
        availability.missing_features.iter().map(|missing| missing.feature).collect();
    assert_eq!(
        missing_features,
        [Feature::VirtioFs, Feature::Vsock],
        "{:?}",
        availability.missing_features
    );
    assert!(
        availability
            .missing_features
            .iter()
            .all(|missing| missing.reason.remedy.contains("install"))
    );
}

#[test]
fn availability_blockers_have_remedies() {
    let availability = |answer: ProbeResult| {
        let mut found = ProbeReport::default();
        found.insert(PROGRAM, answer);
        Qemu.availability(&host(), &found)
    };
    assert!(Qemu.availability(&host(), &found()).is_usable());
    let missing = availability(ProbeResult::NotFound { tried: vec![] });
    assert!(missing.blockers[0].what.contains("qemu-system-x86_64 was not found"));
    assert!(missing.blockers[0].remedy.contains("apt-get install"));
    let old = availability(ProbeResult::Output {
        program: "/bin/q".into(),
        output: "QEMU emulator version 5.2.0".into(),
    });
    assert!(old.blockers[0].what.contains("5.2.0"));
    assert!(old.blockers[0].remedy.contains("6.2.0"));
}

#[test]
fn plan_reboot_restart_resets() {
    let plan = plan(VmSpec { on_reboot: RebootPolicy::Restart, ..spec() });
    assert!(args(&plan).contains("-action reboot=reset,panic=shutdown"));
}
