//! Tests of exact plans, of each blocker and of each violation.

mod agent;
mod reply;
mod virtio_console;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use serde_json::{Value, json};

use capsa_proto::backend::{Feature, ProbeResult};
use capsa_proto::capabilities::validate;
use capsa_proto::host::{FileFacts, KVM_API, KvmDevice, KvmFacts, Os};
use capsa_proto::path::HostPath;
use capsa_proto::plan::{AgentProgram, Body, MacAddress, NetworkLink, OverlayPlan};
use capsa_proto::qcow2::Overlay;
use capsa_proto::spec::{
    Accelerator, Disk, ImageFormat, MountMode, NetworkMode, RebootPolicy, Share, ShareMechanism,
    Virtio9pConfig, VirtioFsConfig,
};

use super::*;

const BACKEND: CloudHypervisor = CloudHypervisor::new();

fn path(text: &str) -> HostPath {
    HostPath::new(text).unwrap()
}

fn file(head: Vec<u8>) -> FileFacts {
    FileFacts::File { size: 1 << 20, head, writable: true, device: false }
}

/// A qcow2 image with a raw backing file.
fn over(base: &str) -> FileFacts {
    over_of(base, ImageFormat::Raw)
}

fn over_qcow2(base: &str) -> FileFacts {
    over_of(base, ImageFormat::Qcow2)
}

fn over_of(base: &str, format: ImageFormat) -> FileFacts {
    let overlay = Overlay { over: path(base), format, virtual_size: 1 << 30 };
    file(overlay.image().pieces[0].1.clone())
}

/// A qcow2 image without a backing file.
fn standalone() -> FileFacts {
    let FileFacts::File { mut head, .. } = over("/none") else { unreachable!() };
    head[8..20].fill(0);
    file(head)
}

fn host() -> HostFacts {
    let mut kernel = vec![0; 1024];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x38..0x3c].copy_from_slice(b"ARM\x64");
    HostFacts {
        os: Os::Linux,
        arch: Arch::X86_64,
        memory_mb: 65536,
        kvm: KvmFacts { device: KvmDevice::Answers { api: KVM_API }, cpu_flag: true },
        landlock: Some(3),
        socket_path_max: 107,
        image_locks: Default::default(),
        used_devices: Default::default(),
        share_files: None,
        agent: Ok(AgentProgram(b"agent")),
        run_dir: path("/run/c/1"),
        resolved: Default::default(),
        files: BTreeMap::from([
            (path("/k"), file(kernel)),
            (path("/i"), file(b"\x1f\x8b".to_vec())),
            (path("/raw"), file(vec![0; 1024])),
            (path("/plain.qcow2"), standalone()),
            (path("/over.qcow2"), over("/raw")),
            (path("/"), FileFacts::Directory { writable: false }),
            (path("/work"), FileFacts::Directory { writable: true }),
            (path("/data"), FileFacts::Directory { writable: true }),
        ]),
    }
}

fn output(output: &str) -> ProbeResult {
    ProbeResult::Output { program: "/opt/bin/ch".into(), output: output.into() }
}

fn found(hypervisor: &str, helper: &str) -> ProbeReport {
    let mut found = ProbeReport::default();
    found.insert(KEY, output(hypervisor));
    found.insert(virtiofsd::KEY, output(helper));
    found
}

fn all_found() -> ProbeReport {
    found("cloud-hypervisor v53.0", "virtiofsd 1.14.0")
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

fn share(host: &str, guest: &str, mode: MountMode, mechanism: ShareMechanism) -> Share {
    Share { host: path(host), guest: guest.into(), mode, mechanism }
}

/// The smallest VM: no disk, no network, no console.
fn spec() -> VmSpec {
    VmSpec { network: NetworkMode::None, ..VmSpec::new(path("/k")) }
}

fn plan(spec: VmSpec) -> LaunchPlan {
    let (host, found) = (host(), all_found());
    let vm = validate(spec, &BACKEND, &host, &found).unwrap();
    BACKEND.plan(&vm, &RunDirPlan::new(host.run_dir.clone()), &host, &found)
}

fn created(plan: &LaunchPlan) -> &Value {
    match &plan.boot[0].body {
        Body::Http { method: "PUT", path: "/api/v1/vm.create", body: Some(body) } => body,
        other => panic!("the first message is {other:?}"),
    }
}

fn rejected(spec: VmSpec, host: &HostFacts, found: &ProbeReport) -> String {
    let violations = validate(spec, &BACKEND, host, found).unwrap_err();
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn plan_smallest_vm() {
    let plan = plan(spec());
    assert_eq!(plan.processes.len(), 1);
    assert_eq!(plan.processes[0].program, "/opt/bin/ch");
    assert_eq!(
        plan.processes[0].args.join(" "),
        "--api-socket fd=3 --event-monitor fd=4 --seccomp true"
    );
    let descriptors: Vec<_> =
        plan.processes[0].descriptors.iter().map(ToString::to_string).collect();
    assert_eq!(
        descriptors,
        ["3: a socket that listens on /run/c/1/api.sock", "4: the write end of a pipe: events"]
    );
    assert_eq!(plan.console, ConsolePlan::None);
    assert_eq!(
        created(&plan),
        &json!({
            "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
            "memory": { "size": 512 << 20 },
            "payload": { "kernel": "/k", "cmdline": "reboot=t panic=-1" },
            "serial": { "mode": "Off" },
            "console": { "mode": "Off" },
            "pvpanic": true,
            "landlock_enable": true,
        })
    );
}

#[test]
fn plan_has_boot_and_stop_messages() {
    let plan = plan(spec());
    let http = |path| Body::Http { method: "PUT", path, body: None };
    assert_eq!(plan.boot[1].body, http("/api/v1/vm.boot"));
    assert_eq!(plan.power_button.unwrap().body, http("/api/v1/vm.power-button"));
    let StopAction::Control(quit) = plan.quit else { panic!("quits by {:?}", plan.quit) };
    assert_eq!(quit.body, http("/api/v1/vmm.shutdown"));
    assert_eq!(plan.control.protocol, Protocol::Http);
    assert_eq!(plan.control.endpoint, ControlEndpoint::Socket(path("/run/c/1/api.sock")));
}

#[test]
fn plan_vm_with_all_devices() {
    let mut spec = spec();
    spec.initrd = Some(path("/i"));
    spec.resources.cpus = 4;
    spec.resources.memory_mb = 1023;
    spec.console = ConsoleMode::Enabled;
    spec.disks = vec![
        disk("/raw", ImageFormat::Raw),
        disk("/plain.qcow2", ImageFormat::Qcow2),
        Disk {
            read_only: true,
            backing: vec![path("/raw")],
            ..disk("/over.qcow2", ImageFormat::Qcow2)
        },
    ];
    let fs = VirtioFsConfig { tag: Some("d".into()), cache: Some("always".into()) };
    spec.shares = vec![
        share("/work", "/workspace", MountMode::ReadOnly, ShareMechanism::Auto),
        share("/data", "/d", MountMode::ReadWrite, ShareMechanism::VirtioFs(fs)),
    ];
    let plan = plan(spec);

    let names: Vec<_> = plan.processes.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["virtiofsd for /workspace", "virtiofsd for /d", "cloud-hypervisor"]);
    let listener = DescriptorKind::Listener { socket: path("/run/c/1/fs1.sock") };
    assert_eq!(plan.processes[1].descriptors[0].kind, listener);
    assert_eq!(plan.hypervisor().0, 2);
    assert_eq!(plan.console, ConsolePlan::Pty { mode: ConsoleMode::Enabled });
    assert_eq!(
        created(&plan),
        &json!({
            "cpus": { "boot_vcpus": 4, "max_vcpus": 4 },
            "memory": { "size": 1024 << 20, "shared": true },
            "payload": {
                "kernel": "/k",
                "initramfs": "/i",
                "cmdline": "console=ttyS0 reboot=t panic=-1 root=/dev/vda \
                            systemd.mount-extra=capsa0:/workspace:virtiofs:ro \
                            systemd.mount-extra=d:/d:virtiofs:rw",
            },
            "serial": { "mode": "Tty" },
            "console": { "mode": "Off" },
            "pvpanic": true,
            "landlock_enable": true,
            "landlock_rules": [{ "path": "/raw", "access": "r" }],
            "disks": [
                { "path": "/raw", "readonly": false, "image_type": "Raw" },
                { "path": "/plain.qcow2", "readonly": false, "image_type": "Qcow2" },
                {
                    "path": "/over.qcow2",
                    "readonly": true,
                    "image_type": "Qcow2",
                    "backing_files": true,
                },
            ],
            "fs": [
                {
                    "tag": "capsa0",
                    "socket": "/run/c/1/fs0.sock",
                    "num_queues": 1,
                    "queue_size": 1024,
                },
                {
                    "tag": "d",
                    "socket": "/run/c/1/fs1.sock",
                    "num_queues": 1,
                    "queue_size": 1024,
                },
            ],
        })
    );
    let notes: Vec<_> = plan.notes.iter().map(|note| note.text.as_str()).collect();
    assert!(notes[0].starts_with("cloud-hypervisor reports no disk errors"), "{notes:?}");
    assert!(notes[1].ends_with("mount -t virtiofs -o ro capsa0 /workspace"), "{notes:?}");
    assert!(notes[2].ends_with("mount -t virtiofs -o rw d /d"), "{notes:?}");
    assert!(notes[3].contains("1024 MiB instead of 1023"), "{notes:?}");
    assert!(notes[4].contains("/over.qcow2 has a backing file"), "{notes:?}");
}

#[test]
fn pipe_event_maps_guest_events() {
    let event = |source: &str, event: &str| json!({ "source": source, "event": event });
    for (source, name, want) in [
        ("vm", "shutdown", Some(GuestEvent::PoweredOff)),
        ("vm", "rebooting", Some(GuestEvent::Reset)),
        ("guest", "panic", Some(GuestEvent::Panicked)),
        ("vm", "booted", None),
        ("vmm", "shutdown", None),
    ] {
        assert_eq!(BACKEND.pipe_event(&event(source, name)), want, "{source} {name}");
    }
}

#[test]
fn stderr_line_reports_failed_vcpu() {
    let line = "cloud-hypervisor:  28.703409s: <vcpu0> ERROR:vmm/src/cpu.rs:1487 -- \
                VCPU generated error: VcpuRun(Failed to run vcpu";
    assert_eq!(BACKEND.stderr_line(line), Some(GuestEvent::CpuFailed));
    let line = "cloud-hypervisor: <vcpu0> WARN:vmm/src/cpu.rs:278 -- no SMT isolation";
    assert_eq!(BACKEND.stderr_line(line), None);
}

#[test]
fn plan_without_programs_has_bare_names() {
    let mut spec = spec();
    spec.shares = vec![share("/work", "/w", MountMode::ReadOnly, ShareMechanism::Auto)];
    let (host, mut found) = (host(), ProbeReport::default());
    for probe in BACKEND.probe(Arch::X86_64, Some(&spec)).probes {
        found.insert(probe.key, ProbeResult::NotFound { tried: probe.candidates });
    }
    let vm = validate(spec, &BACKEND, &host, &found).unwrap();
    let plan = BACKEND.plan(&vm, &RunDirPlan::new(host.run_dir.clone()), &host, &found);
    let programs: Vec<_> = plan.processes.iter().map(|p| p.program.as_str()).collect();
    assert_eq!(programs, ["virtiofsd", "cloud-hypervisor"]);
}

#[test]
fn probe_covers_needed_helpers_only() {
    let keys = |spec: Option<&VmSpec>| -> Vec<_> {
        BACKEND.probe(Arch::X86_64, spec).probes.iter().map(|q| q.key).collect()
    };
    assert_eq!(keys(Some(&spec())), [KEY]);
    assert_eq!(keys(None), [KEY, virtiofsd::KEY]);
}

#[test]
fn cmdline_console_depends_on_architecture() {
    for (arch, want) in [(Arch::X86_64, "ttyS0"), (Arch::Aarch64, "ttyAMA0")] {
        let line = BACKEND.kernel_cmdline_defaults(&spec(), &HostFacts { arch, ..host() });
        assert_eq!(line.get("console"), Some(want));
    }
}

#[test]
fn availability_lists_blockers() {
    let availability = |host: &HostFacts, found: &ProbeReport| -> Vec<String> {
        BACKEND.availability(host, found).blockers.iter().map(ToString::to_string).collect()
    };
    let fine = BACKEND.availability(&host(), &all_found());
    assert!(fine.is_usable());
    assert_eq!(fine.version, Some(Version::new(53, 0, 0)));
    assert_eq!(fine.warnings, []);

    let mac = HostFacts { os: Os::MacOs, kvm: KvmFacts::ABSENT, ..host() };
    let blockers = availability(&mac, &ProbeReport::default());
    assert_eq!(blockers.len(), 1, "{blockers:?}");
    assert!(blockers[0].contains("Linux only") && blockers[0].contains("vfkit"));

    let other = HostFacts { arch: Arch::Other, ..host() };
    assert!(availability(&other, &all_found())[0].contains("x86-64 and arm64"));

    let mut missing = ProbeReport::default();
    missing.insert(KEY, ProbeResult::NotFound { tried: vec![KEY.into()] });
    let no_kvm = HostFacts { kvm: KvmFacts::ABSENT, ..host() };
    let blockers = availability(&no_kvm, &missing);
    assert_eq!(blockers.len(), 2, "{blockers:?}");
    assert!(blockers[0].contains("not found") && blockers[1].contains("/dev/kvm"));

    for (output, want) in [
        ("cloud-hypervisor v50.0", Some("50.0.0 is too old: expected 50.1.0")),
        ("cloud-hypervisor v50.1.0", None),
        ("cloud-hypervisor v51.0", None),
        ("hello", Some("did not print a version")),
    ] {
        let blockers = availability(&host(), &found(output, "virtiofsd 1.14.0"));
        match want {
            None => assert!(blockers.is_empty(), "{output}: {blockers:?}"),
            Some(want) => assert!(blockers[0].contains(want), "{output}: {blockers:?}"),
        }
    }
    missing.insert(
        KEY,
        ProbeResult::Failed { program: "/x".into(), reason: "status 1".into(), remedy: None },
    );
    assert!(availability(&host(), &missing)[0].contains("/x does not work: status 1"));
}

#[test]
fn availability_old_virtiofsd_is_missing_feature() {
    let found = found("cloud-hypervisor v53.0", "virtiofsd 1.10.1");
    let availability = BACKEND.availability(&host(), &found);
    assert!(availability.is_usable());
    assert_eq!(
        availability.missing_features[0].feature,
        Feature::VirtioFs,
        "{:?}",
        availability.missing_features
    );
    assert!(
        availability.missing_features[0].reason.remedy.contains("install"),
        "{:?}",
        availability.missing_features
    );
    assert!(validate(spec(), &BACKEND, &host(), &found).is_ok());
}

#[test]
fn plan_nat_is_vhost_user_vsock_is_builtin() {
    let spec = VmSpec {
        network: NetworkMode::Nat,
        on_reboot: RebootPolicy::Restart,
        vsock: true,
        ..spec()
    };
    let plan = plan(spec);
    let names: Vec<_> = plan.processes.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, [KEY]);
    let network = plan.network.as_ref().unwrap();
    let socket = path("/run/c/1/net.sock");
    assert_eq!((&network.link, network.mtu), (&NetworkLink::VhostUser { socket }, 1500));
    let body = created(&plan);
    let net = json!([{
        "vhost_user": true,
        "vhost_socket": "/run/c/1/net.sock",
        "mac": MacAddress::GUEST.to_string(),
        "num_queues": 2,
        "queue_size": 1024,
    }]);
    assert_eq!(body["net"], net);
    assert_eq!(body["memory"]["shared"], json!(true));
    assert_eq!(body["vsock"], json!({ "cid": 3, "socket": "/run/c/1/vsock" }));
    assert_eq!(plan.vsock.unwrap().listener(7).unwrap().as_str(), "/run/c/1/vsock_7");
}

#[test]
fn plan_ephemeral_disk_has_overlay_and_rule() {
    let ephemeral_disk = |at, format| Disk { ephemeral: true, ..disk(at, format) };
    let plan = plan(VmSpec {
        disks: vec![
            ephemeral_disk("/raw", ImageFormat::Raw),
            Disk {
                backing: vec![path("/raw")],
                ..ephemeral_disk("/over.qcow2", ImageFormat::Qcow2)
            },
            Disk { read_only: true, ..ephemeral_disk("/plain.qcow2", ImageFormat::Qcow2) },
        ],
        ..spec()
    });
    let body = created(&plan);
    assert_eq!(
        body["disks"][0],
        json!({
            "path": "/run/c/1/disk0.overlay",
            "readonly": false,
            "image_type": "Qcow2",
            "backing_files": true,
        })
    );
    assert_eq!(body["disks"][2]["path"], json!("/plain.qcow2"));
    let made = plan.overlays.iter().map(|plan| match plan {
        OverlayPlan::Qcow2 { at, overlay } => (at.as_str(), overlay.virtual_size),
        OverlayPlan::Clone { .. } => panic!("{plan:?}"),
    });
    let want = [("/run/c/1/disk0.overlay", 1 << 20), ("/run/c/1/disk1.overlay", 1 << 30)];
    assert_eq!(made.collect::<Vec<_>>(), want);
    assert_eq!(
        body["landlock_rules"],
        json!([{ "path": "/over.qcow2", "access": "r" }, { "path": "/raw", "access": "r" }])
    );
}

/// The violations of a spec with one disk, on this version and with these images.
fn blockers(disk: Disk, version: &str, images: &[(&str, FileFacts)]) -> Vec<String> {
    let mut host = host();
    host.files.extend(images.iter().map(|(at, facts)| (path(at), facts.clone())));
    let found = found(version, "virtiofsd 1.14.0");
    match validate(VmSpec { disks: vec![disk], ..spec() }, &BACKEND, &host, &found) {
        Ok(_) => Vec::new(),
        Err(violations) => violations.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn validate_unsupported_images_rejected() {
    const V53: &str = "cloud-hypervisor v53.0";
    let qcow2 =
        |at| Disk { backing: vec![path("/raw"), path("/")], ..disk(at, ImageFormat::Qcow2) };
    let ephemeral_disk = |disk| Disk { ephemeral: true, ..disk };

    let huge = FileFacts::File { size: 1 << 45, head: vec![], writable: true, device: false };
    let found = blockers(ephemeral_disk(disk("/huge", ImageFormat::Raw)), V53, &[("/huge", huge)]);
    assert!(found[0].contains("16 TiB"), "{found:?}");

    let relative = [("/rel.qcow2", {
        let FileFacts::File { mut head, .. } = over("/raw") else { unreachable!() };
        let at = head.len() - "/raw".len();
        head.remove(at);
        head[16..20].copy_from_slice(&3_u32.to_be_bytes());
        file(head)
    })];
    assert_eq!(blockers(qcow2("/rel.qcow2"), V53, &relative), [""; 0]);
    let found = blockers(qcow2("/rel.qcow2"), "cloud-hypervisor v52.1", &relative);
    assert!(found[0].contains("relative backing file name"), "{found:?}");
    assert_eq!(blockers(qcow2("/over.qcow2"), "cloud-hypervisor v52.1", &[]), [""; 0]);

    let names: Vec<_> = (0..11).map(|n| format!("/{n}.qcow2")).collect();
    let mut chain: Vec<_> = names
        .iter()
        .zip(&names[1..])
        .map(|(at, beneath)| (at.as_str(), over_qcow2(beneath)))
        .collect();
    chain.push(("/10.qcow2", standalone()));
    assert_eq!(blockers(qcow2("/0.qcow2"), V53, &chain), [""; 0]);
    let found = blockers(ephemeral_disk(qcow2("/0.qcow2")), V53, &chain);
    assert!(found[0].contains("backing chain has 10 images; the limit is 10"), "{found:?}");
}

#[test]
fn validate_backing_file_not_allowed_rejected() {
    for ephemeral in [false, true] {
        let over = Disk { ephemeral, ..disk("/over.qcow2", ImageFormat::Qcow2) };
        let found = blockers(over.clone(), "cloud-hypervisor v53.0", &[]);
        assert!(found[0].contains("/raw is not allowed: /over.qcow2 -> /raw"), "{found:?}");
        let allowed = Disk { backing: vec![path("/raw")], ..over };
        assert_eq!(blockers(allowed, "cloud-hypervisor v53.0", &[]), [""; 0]);
    }
}

#[test]
fn validate_more_devices_than_slots_rejected() {
    let disks = |count| VmSpec {
        disks: vec![Disk { read_only: true, ..disk("/raw", ImageFormat::Raw) }; count],
        ..spec()
    };
    assert!(validate(disks(29), &BACKEND, &host(), &all_found()).is_ok());
    let text = rejected(disks(30), &host(), &all_found());
    assert!(text.contains("disks: 30 devices exceed the limit of 29"), "{text}");
}

#[test]
fn plan_explicit_kvm_without_cpu_flag_has_warning() {
    let mut host = host();
    let plan_on = |host: &HostFacts| {
        let spec = VmSpec { accelerator: Accelerator::Kvm, ..spec() };
        let vm = validate(spec, &BACKEND, host, &all_found()).unwrap();
        BACKEND.plan(&vm, &RunDirPlan::new(host.run_dir.clone()), host, &all_found())
    };
    let warns =
        |plan: &LaunchPlan| plan.notes.iter().any(|n| n.text.contains("KVM is used as requested"));
    assert!(!warns(&plan_on(&host)));
    host.kvm.cpu_flag = false;
    assert!(warns(&plan_on(&host)));
}

#[test]
fn landlock_unavailable_adds_note() {
    for (landlock, on) in [(None, false), (Some(2), false), (Some(3), true), (Some(7), true)] {
        let host = HostFacts { landlock, ..host() };
        let vm = validate(spec(), &BACKEND, &host, &all_found()).unwrap();
        let at = RunDirPlan::new(host.run_dir.clone());
        let plan = BACKEND.plan(&vm, &at, &host, &all_found());
        assert_eq!(created(&plan).get("landlock_enable").is_some(), on, "{landlock:?}");
        let has_note = |notes: &[Note]| notes.iter().any(|note| note.text.contains("no Landlock"));
        assert_eq!(has_note(&plan.notes), !on);
        assert_eq!(has_note(&BACKEND.availability(&host, &all_found()).warnings), !on);
    }
}

#[test]
fn validate_rejects_unsupported_specs() {
    type Change = Box<dyn Fn(&mut VmSpec)>;
    let p9 = || ShareMechanism::Virtio9p(Virtio9pConfig::default());
    let auto = |mechanism| vec![share("/work", "/w", MountMode::ReadOnly, mechanism)];
    let cases: Vec<(Change, &str)> = vec![
        (
            Box::new(|s| s.accelerator = Accelerator::Emulation),
            "accelerator: only KVM is supported",
        ),
        (Box::new(|s| s.accelerator = Accelerator::Hvf), "accelerator: only KVM is supported"),
        (
            Box::new(move |s| s.shares = auto(p9())),
            "shares[0].mechanism: virtio-9p is not supported",
        ),
        (
            Box::new(move |s| {
                s.shares = auto(ShareMechanism::Auto);
                s.on_reboot = RebootPolicy::Restart;
            }),
            "on_reboot: rebooting with shares is",
        ),
        (Box::new(|s| s.resources.cpus = 256), "cpus: 256 CPUs exceed the limit of 255"),
    ];
    for (change, want) in cases {
        let mut spec = spec();
        change(&mut spec);
        let text = rejected(spec, &host(), &all_found());
        assert!(text.contains(want), "wanted {want:?}, got {text:?}");
        assert!(text.contains("[cloud-hypervisor]"), "{text}");
    }
}

#[test]
fn validate_rejects_by_probe_report() {
    let mut shared = spec();
    shared.shares = vec![share("/work", "/w", MountMode::ReadOnly, ShareMechanism::Auto)];
    let old_helper = found("cloud-hypervisor v53.0", "virtiofsd 1.10.1");
    assert!(rejected(shared, &host(), &old_helper).starts_with("shares: "));

    let old = found("cloud-hypervisor v51.1", "virtiofsd 1.14.0");
    let nat = VmSpec { network: NetworkMode::Nat, ..spec() };
    assert!(rejected(nat, &host(), &old).contains("NAT is not supported with version 51.1.0"));
    let with = |read_only| VmSpec {
        disks: vec![Disk { read_only, ..disk("/plain.qcow2", ImageFormat::Qcow2) }],
        ..spec()
    };
    assert!(rejected(with(false), &host(), &old).contains("may corrupt qcow2 images"));
    assert!(validate(with(true), &BACKEND, &host(), &old).is_ok());
}
