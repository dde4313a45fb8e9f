//! Tests of exact plans, and a property test that parses plans with [`grammar`].

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::Value;

use capsa_proto::backend::ProbeResult;
use capsa_proto::capabilities::validate;
use capsa_proto::host::{Arch, FileFacts, KvmFacts, Os};
use capsa_proto::path::HostPath;
use capsa_proto::plan::{AgentProgram, Body, DescriptorKind, OverlayPlan, VsockRoute};
use capsa_proto::spec::{
    Accelerator, AgentMode, Disk, ImageFormat, MountMode, NetworkMode, RebootPolicy, Share,
    ShareMechanism, Virtio9pConfig, VirtioFsConfig, VsockDirection, VsockPort,
};

use super::*;
use crate::grammar;

const BACKEND: Vfkit = Vfkit::new();

pub(crate) fn path(text: &str) -> HostPath {
    HostPath::new(text).unwrap()
}

fn file(head: &[u8]) -> FileFacts {
    FileFacts::File { size: 1 << 20, head: head.into(), writable: true, device: false }
}

fn kernel() -> FileFacts {
    let mut head = [0; 1024];
    head[0x38..0x3c].copy_from_slice(b"ARM\x64");
    file(&head)
}

/// A macOS host on which each file that `spec` names exists and is valid.
fn host(spec: &VmSpec) -> HostFacts {
    let disks = spec.disks.iter().map(|disk| match disk.format {
        ImageFormat::Raw => (disk.path.clone(), file(&[0; 16])),
        ImageFormat::Qcow2 => (disk.path.clone(), file(b"QFI\xfb")),
    });
    let dirs = spec
        .shares
        .iter()
        .map(|share| (share.host.clone(), FileFacts::Directory { writable: true }));
    let initrd = spec.initrd.iter().map(|initrd| (initrd.clone(), file(b"070701")));
    let mut files: alloc::collections::BTreeMap<_, _> = disks.chain(dirs).chain(initrd).collect();
    files.insert(spec.kernel.clone(), kernel());
    HostFacts {
        os: Os::MacOs,
        arch: Arch::Aarch64,
        memory_mb: 65536,
        kvm: KvmFacts::ABSENT,
        landlock: None,
        socket_path_max: 103,
        resolved: Default::default(),
        image_locks: Default::default(),
        used_devices: Default::default(),
        share_files: None,
        agent: Ok(AgentProgram(b"agent")),
        run_dir: path("/tmp/c/1"),
        files,
    }
}

fn found(output: &str) -> ProbeReport {
    let mut found = ProbeReport::default();
    found.insert(KEY, ProbeResult::Output { program: "/opt/vfkit".into(), output: output.into() });
    found
}

pub(crate) fn disk(at: &str) -> Disk {
    Disk {
        path: path(at),
        format: ImageFormat::Raw,
        read_only: false,
        ephemeral: false,
        backing: Vec::new(),
        allow_mounted: false,
    }
}

fn share(host: &str, mechanism: ShareMechanism) -> Share {
    Share { host: path(host), guest: "/w".into(), mode: MountMode::ReadWrite, mechanism }
}

/// The smallest VM.
pub(crate) fn spec() -> VmSpec {
    VmSpec { initrd: Some(path("/i")), network: NetworkMode::None, ..VmSpec::new(path("/k")) }
}

pub(crate) fn try_plan_in(run_dir: &str, spec: VmSpec) -> Result<LaunchPlan, Vec<Violation>> {
    let host = HostFacts { run_dir: path(run_dir), ..host(&spec) };
    let found = found("vfkit version: v0.6.4");
    let vm = validate(spec, &BACKEND, &host, &found)?;
    Ok(BACKEND.plan(&vm, &RunDirPlan::new(host.run_dir.clone()), &host, &found))
}

fn plan(spec: VmSpec) -> LaunchPlan {
    try_plan_in("/tmp/c/1", spec).unwrap()
}

fn rejected(spec: VmSpec) -> String {
    let violations = try_plan_in("/tmp/c/1", spec).unwrap_err();
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

pub(crate) fn args(plan: &LaunchPlan) -> &[String] {
    &plan.processes[0].args
}

#[test]
fn plan_agent_adds_vsock_port_and_initrd() {
    let plan = plan(VmSpec { agent: AgentMode::Required, ..spec() });
    let args = args(&plan).join(" ");
    assert!(
        args.contains("virtio-vsock,port=1023,socketURL=/tmp/c/1/guest_1023,connect"),
        "{args}"
    );
    assert!(args.contains("--initrd /tmp/c/1/initrd "), "{args}");
    let agent = plan.agent.unwrap();
    let Some(VsockRoute::Direct(socket)) = agent.vsock_route() else { panic!("{agent:?}") };
    assert_eq!(*socket, path("/tmp/c/1/guest_1023"));
    let port = VsockPort { port: 1023, direction: VsockDirection::ToGuest };
    let taken = VmSpec { vsock: true, vsock_ports: vec![port], ..spec() };
    let reason = rejected(VmSpec { agent: AgentMode::Required, ..taken });
    assert!(reason.contains("it uses the vsock port 1023"), "{reason}");
}

#[test]
fn plan_smallest_vm() {
    let plan = plan(spec());
    assert_eq!(plan.processes.len(), 1);
    assert_eq!(plan.processes[0].program, "/opt/vfkit");
    assert_eq!(
        args(&plan).join("|"),
        "--cpus|1|--memory|512|--kernel|/k|--initrd|/i|--kernel-cmdline|reboot=t panic=0|--device|\
         virtio-rng|--restful-uri|unix:///tmp/c/1/rest.sock"
    );
    assert_eq!(plan.console, ConsolePlan::None);
    assert_eq!(plan.control.endpoint, ControlEndpoint::Socket(path("/tmp/c/1/rest.sock")));
}

#[test]
fn plan_vm_with_all_devices() {
    let mut spec = spec();
    spec.kernel = path("/my kernel,1");
    spec.network = NetworkMode::Nat;
    spec.console = ConsoleMode::Stdio;
    spec.disks = vec![disk("/b=2.raw"), Disk { read_only: true, ..disk("/a \"x\".raw") }];
    let fs = VirtioFsConfig { tag: Some("t.1".into()), cache: Some("auto".into()) };
    spec.shares = vec![share("/work", ShareMechanism::VirtioFs(fs))];
    spec.cmdline.arg("dyndbg=file a,b +p");
    let plan = plan(spec);
    assert_eq!(
        args(&plan).join("|"),
        "--cpus|1|--memory|512|--kernel|/my kernel,1|--initrd|/i|--kernel-cmdline|console=hvc0 \
         reboot=t panic=0 root=/dev/vda systemd.mount-extra=t.1:/w:virtiofs:rw \
         dyndbg=\"file a,b +p\"|--device|virtio-blk,path=/b=2.raw|--device|virtio-blk,\
         path=/a \"x\".raw,readonly|--device|virtio-fs,sharedDir=/work,mountTag=t.1|--device|\
         virtio-net,fd=3,mac=52:54:00:12:34:56|--device|virtio-serial,stdio|--device|virtio-rng|\
         --restful-uri|unix:///tmp/c/1/rest.sock"
    );
    assert_eq!(plan.console, ConsolePlan::Pty { mode: ConsoleMode::Stdio });
    assert!(plan.notes.iter().any(|note| note.text.contains("[GIN]")), "{:?}", plan.notes);
}

#[test]
fn plan_has_boot_and_stop_messages() {
    let plan = plan(spec());
    let state = |method, body| Body::Http { method, path: "/vm/state", body };
    assert_eq!(plan.boot.len(), 1);
    assert_eq!(plan.boot[0].body, state("GET", None));
    assert_eq!(plan.power_button.unwrap().body, state("POST", Some(json!({ "state": "Stop" }))));
    assert_eq!(plan.quit, StopAction::Signal(Signal::Term));
}

/// The VM of the example in the README.
#[test]
fn plan_readme_example_is_accepted() {
    let disks = vec![Disk { ephemeral: true, ..disk("/rootfs.raw") }];
    let console = ConsoleMode::Enabled;
    let plan = plan(VmSpec { initrd: Some(path("/i")), disks, console, ..VmSpec::new(path("/k")) });
    assert_eq!(plan.on_reboot, RebootPolicy::default());
    let network = plan.network.expect("NAT is the default");
    assert_eq!((network.link, network.mtu), (NetworkLink::Datagram, 1500));
    assert_eq!(plan.processes[0].descriptors[0].kind, DescriptorKind::Network);
}

#[test]
fn cmdline_panic_depends_on_reboot_policy() {
    let of = |on_reboot, console| plan(VmSpec { on_reboot, console, ..spec() });
    for (on_reboot, panic) in [(RebootPolicy::Auto, "panic=0"), (RebootPolicy::Restart, "panic=-1")]
    {
        let plan = of(on_reboot, ConsoleMode::Enabled);
        assert!(plan.cmdline.split(' ').any(|arg| arg == panic), "{}", plan.cmdline);
        let CrashReporting::ConsoleOnly { power_off } = &plan.crash_reporting else {
            panic!("{:?}", plan.crash_reporting)
        };
        let Body::Http { method: "POST", path: reply::STATE, body } = &power_off.body else {
            panic!()
        };
        assert_eq!(*body, Some(json!({ "state": "HardStop" })));
    }
    let notes = |on_reboot, console| {
        let plan = of(on_reboot, console);
        let about = plan.notes.iter().filter(|note| note.text.contains("reboot or panic"));
        about.map(|note| note.level).collect::<Vec<_>>()
    };
    use capsa_proto::plan::NoteLevel::{Info, Warning};
    assert_eq!(notes(RebootPolicy::Auto, ConsoleMode::Enabled), [Info]);
    assert_eq!(notes(RebootPolicy::Auto, ConsoleMode::Disabled), [Warning]);
    assert_eq!(notes(RebootPolicy::Restart, ConsoleMode::Disabled), []);
}

#[test]
fn plan_without_program_has_bare_name() {
    let (spec, mut found) = (spec(), ProbeReport::default());
    let host = host(&spec);
    found.insert(KEY, ProbeResult::NotFound { tried: vec![KEY.into()] });
    let vm = validate(spec, &BACKEND, &host, &found).unwrap();
    let plan = BACKEND.plan(&vm, &RunDirPlan::new(host.run_dir.clone()), &host, &found);
    assert_eq!(plan.processes[0].program, "vfkit");
}

#[test]
fn availability_lists_blockers() {
    let mac = host(&spec());
    let availability = |host: &HostFacts, found: &ProbeReport| -> Vec<String> {
        BACKEND.availability(host, found).blockers.iter().map(ToString::to_string).collect()
    };
    let fine = BACKEND.availability(&mac, &found("vfkit version: v0.6.4"));
    assert!(fine.is_usable());
    assert_eq!(fine.version, Some(Version::new(0, 6, 4)));

    let linux = HostFacts { os: Os::Linux, ..mac.clone() };
    let blockers = availability(&linux, &ProbeReport::default());
    assert_eq!(blockers.len(), 1, "{blockers:?}");
    assert!(blockers[0].contains("macOS only") && blockers[0].contains("cloud-hypervisor"));

    for (output, want) in [
        ("vfkit version: v0.6.2", None),
        ("vfkit version: v0.6.1", Some("0.6.1 is too old: expected 0.6.2")),
        ("vfkit version: v0.5.1", Some("0.5.1 is too old: expected 0.6.2")),
        ("vfkit version: unknown", Some("did not print a version")),
    ] {
        let blockers = availability(&mac, &found(output));
        match want {
            None => assert!(blockers.is_empty(), "{output}: {blockers:?}"),
            Some(want) => assert!(blockers[0].contains(want), "{output}: {blockers:?}"),
        }
    }
    let mut missing = ProbeReport::default();
    missing.insert(KEY, ProbeResult::NotFound { tried: vec![KEY.into()] });
    assert!(availability(&mac, &missing)[0].contains("not found"));
    missing.insert(
        KEY,
        ProbeResult::Failed { program: "/x".into(), reason: "status 1".into(), remedy: None },
    );
    assert!(availability(&mac, &missing)[0].contains("/x does not work: status 1"));
}

#[test]
fn plan_ephemeral_disk_is_clone() {
    let ephemeral = |at: &str| Disk { ephemeral: true, ..disk(at) };
    let disks = vec![
        disk("/a"),
        ephemeral("/b,readonly"),
        Disk { read_only: true, ..ephemeral("/c") },
        ephemeral("/d"),
    ];
    let plan = plan(VmSpec { disks, ..spec() });
    let given: Vec<_> =
        args(&plan).iter().filter_map(|arg| arg.strip_prefix("virtio-blk,path=")).collect();
    assert_eq!(given, ["/a", "/tmp/c/1/disk1.raw", "/c,readonly", "/tmp/c/1/disk3.raw"]);
    let clone = |at, of| OverlayPlan::Clone { at: path(at), of: path(of) };
    assert_eq!(
        plan.overlays,
        [clone("/tmp/c/1/disk1.raw", "/b,readonly"), clone("/tmp/c/1/disk3.raw", "/d")]
    );
    assert!(plan.notes.iter().any(|note| note.text.contains("a clone of /b,readonly in")));
}

#[test]
fn plan_vsock_ports_have_sockets() {
    let port = |port, direction| VsockPort { port, direction };
    let vsock_ports = vec![port(5, VsockDirection::ToGuest), port(5, VsockDirection::ToHost)];
    let plan = plan(VmSpec { vsock: true, vsock_ports, ..spec() });
    let given: Vec<_> =
        args(&plan).iter().filter_map(|arg| arg.strip_prefix("virtio-vsock,")).collect();
    assert_eq!(
        given,
        ["port=5,socketURL=/tmp/c/1/guest_5,connect", "port=5,socketURL=/tmp/c/1/vsock_5,listen"]
    );
    let vsock = plan.vsock.unwrap();
    assert_eq!(vsock.listener(5).unwrap().as_str(), "/tmp/c/1/vsock_5");
    assert!(vsock.to_guest(6).is_none());
}

#[test]
fn validate_block_device_rejected() {
    let spec = VmSpec { disks: vec![disk("/dev/disk4")], ..spec() };
    let mut host = host(&spec);
    assert!(validate(spec.clone(), &BACKEND, &host, &found("v0.6.4")).is_ok());
    let device = FileFacts::File { size: 1, head: vec![0], writable: true, device: true };
    host.files.insert(path("/dev/disk4"), device);
    let violations = validate(spec, &BACKEND, &host, &found("v0.6.4")).unwrap_err();
    assert_eq!(violations[0].reason, "/dev/disk4 is a block device, which is not supported");
}

#[test]
fn validate_kernel_compressed_or_foreign() {
    let mut bz_image = vec![0; 0x206];
    bz_image[0x202..].copy_from_slice(b"HdrS");
    for (head, want) in [
        (&b"\x1f\x8b\x08\0"[..], "decompress it: zcat vmlinuz > Image"),
        (b"MZ\0\0zimg", "unzboot"),
        (&bz_image, "use an uncompressed arm64 Image"),
        (b"\x7fELF", "use an uncompressed arm64 Image"),
    ] {
        let spec = spec();
        let mut host = host(&spec);
        host.files.insert(path("/k"), file(head));
        let violations = validate(spec, &BACKEND, &host, &found("v0.6.4")).unwrap_err();
        assert_eq!(violations.len(), 1);
        assert!(violations[0].remedy.contains(want), "{:?}", violations[0]);
    }
}

#[test]
fn validate_rejects_unsupported_specs() {
    type Change = Box<dyn Fn(&mut VmSpec)>;
    let fs = |tag: Option<&str>, cache: Option<&str>| {
        ShareMechanism::VirtioFs(VirtioFsConfig {
            tag: tag.map(Into::into),
            cache: cache.map(Into::into),
        })
    };
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|s| s.initrd = None), "initrd: booting without an initrd is not supported"),
        (
            Box::new(|s| s.disks = vec![disk("/a,readonly")]),
            "disks[0].path: /a,readonly contains a comma",
        ),
        (
            Box::new(|s| {
                s.disks = vec![Disk { format: ImageFormat::Qcow2, ..disk("/q.qcow2") }];
            }),
            "disks[0].path: qcow2 images are not supported",
        ),
        (
            Box::new(|s| s.shares = vec![share("/a,b", ShareMechanism::Auto)]),
            "shares[0].host: /a,b contains a comma",
        ),
        (Box::new(move |s| s.shares = vec![share("/a", fs(Some("t,x"), None))]), "shares[0].tag"),
        (
            Box::new(move |s| s.shares = vec![share("/a", fs(None, Some("always")))]),
            "shares[0].cache: cache modes other than auto",
        ),
        (
            Box::new(|s| {
                let read_only = share("/a", ShareMechanism::Auto);
                s.shares = vec![Share { mode: MountMode::ReadOnly, ..read_only }];
            }),
            "shares[0].mode: read-only shares are not supported",
        ),
        (
            Box::new(|s| {
                let p9 = ShareMechanism::Virtio9p(Virtio9pConfig::default());
                s.shares = vec![share("/a", p9)];
            }),
            "shares[0].mechanism: virtio-9p is not supported",
        ),
        (Box::new(|s| s.vsock = true), "vsock: vsock ports must be listed"),
        (Box::new(|s| s.accelerator = Accelerator::Kvm), "accelerator: "),
        (Box::new(|s| s.accelerator = Accelerator::Emulation), "accelerator: "),
        (
            Box::new(|s| s.on_reboot = RebootPolicy::End),
            "on_reboot: reboot detection is not supported, so a reboot could go unnoticed [vfkit]; use the",
        ),
    ];
    for (change, want) in cases {
        let mut spec = spec();
        change(&mut spec);
        let text = rejected(spec);
        assert!(text.contains(want), "wanted {want:?}, got {text:?}");
    }
}

#[test]
fn validate_run_dir_not_url_safe_rejected() {
    for run_dir in ["/tmp/a b", "/tmp/a%41", "/tmp/a?b", "/tmp/ä", "/tmp/a#b"] {
        let violations = try_plan_in(run_dir, spec()).unwrap_err();
        assert_eq!(violations[0].field, "run_dir", "{run_dir}");
    }
}

#[test]
fn reply_outcomes() {
    let plan = plan(spec());
    let get = |reply| BACKEND.reply(&plan.boot[0], &reply);
    let post = |reply| BACKEND.reply(plan.power_button.as_ref().unwrap(), &reply);
    let http = |status, body: &str| ControlReply::Http { status, body: body.into() };
    let state =
        |name| http(200, &format!(r#"{{"state":"VirtualMachineState{name}","canStop":true}}"#));

    assert_eq!(get(state("Running")), ReplyOutcome::Done);
    for early in ["Stopped", "Starting", "Paused", "SomethingNew"] {
        assert_eq!(get(state(early)), ReplyOutcome::Retry, "{early}");
    }
    assert!(matches!(get(state("Error")), ReplyOutcome::Rejected(_)));
    for nonsense in ["", "{}", "[]", r#"{"state":1}"#] {
        assert!(matches!(get(http(200, nonsense)), ReplyOutcome::Rejected(_)), "{nonsense}");
    }
    assert_eq!(get(ControlReply::Broken("end".into())), ReplyOutcome::Retry);

    assert_eq!(post(http(202, "")), ReplyOutcome::Done);
    assert_eq!(post(ControlReply::Broken("end".into())), ReplyOutcome::Done);
    let refused = ReplyOutcome::Rejected("cannot stop".into());
    assert_eq!(post(http(500, r#"{"error":"cannot stop"}"#)), refused);
    assert_eq!(post(http(404, "")), ReplyOutcome::Rejected("status 404: ".into()));
}

/// The expected result of parsing the plan for `spec`.
fn expected(spec: &VmSpec, plan: &LaunchPlan) -> grammar::ParsedArgs {
    let mut devices: Vec<Value> = Vec::new();
    for (n, disk) in spec.disks.iter().enumerate() {
        let path = match disk.ephemeral && !disk.read_only {
            true => format!("/tmp/c/1/disk{n}.raw"),
            false => disk.path.to_string(),
        };
        let mut device = json!({
            "kind": "virtioblk", "devName": "virtio-blk", "imagePath": path,
        });
        if disk.read_only {
            device["readOnly"] = json!(true);
        }
        devices.push(device);
    }
    for (n, share) in spec.shares.iter().enumerate() {
        let tag = match &share.mechanism {
            ShareMechanism::VirtioFs(VirtioFsConfig { tag: Some(tag), .. }) => tag.clone(),
            _ => format!("capsa{n}"),
        };
        devices.push(json!({ "kind": "virtiofs", "sharedDir": share.host, "mountTag": tag }));
    }
    if spec.network.has_card() {
        let mac = "52:54:00:12:34:56";
        devices.push(json!({ "kind": "virtionet", "nat": false, "macAddress": mac }));
    }
    for VsockPort { port, direction } in &spec.vsock_ports {
        devices.push(match direction {
            VsockDirection::ToGuest => json!({
                "kind": "virtiosock", "port": port, "socketURL": format!("/tmp/c/1/guest_{port}"),
            }),
            VsockDirection::ToHost => json!({
                "kind": "virtiosock", "port": port, "socketURL": format!("/tmp/c/1/vsock_{port}"),
                "listen": true,
            }),
        });
    }
    if spec.console != ConsoleMode::Disabled {
        devices.push(json!({ "kind": "virtioserial", "usesStdio": true }));
    }
    devices.push(json!({ "kind": "virtiorng" }));
    grammar::ParsedArgs {
        vcpus: Some(spec.resources.cpus),
        memory_mb: Some(spec.resources.memory_mb.into()),
        kernel: Some(spec.kernel.to_string()),
        initrd: spec.initrd.as_ref().map(ToString::to_string),
        cmdline: Some(plan.cmdline.clone()),
        devices,
        rest: match &plan.control.endpoint {
            ControlEndpoint::Socket(socket) => Some(socket.to_string()),
            ControlEndpoint::SocketPair => None,
        },
    }
}

/// Paths: most of them plain, some with characters that are special to a parser.
fn any_path() -> impl Strategy<Value = HostPath> {
    prop_oneof![3 => "/[a-z]{1,6}(\\.raw)?", 2 => "/[a-z ,=\"'%?#:\\\\-]{1,8}", 1 => "/\\PC{1,8}"]
        .prop_map(|text| path(&text))
}

fn any_share() -> impl Strategy<Value = Share> {
    let text = || prop::option::weighted(0.3, "[a-z,=]{0,3}");
    let cache = prop::option::weighted(0.3, prop_oneof!["auto", "none"]);
    let mechanism = prop_oneof![
        Just(ShareMechanism::Auto),
        (text(), cache)
            .prop_map(|(tag, cache)| { ShareMechanism::VirtioFs(VirtioFsConfig { tag, cache }) }),
    ];
    let mode = prop_oneof![9 => Just(MountMode::ReadWrite), 1 => Just(MountMode::ReadOnly)];
    (any_path(), "/[a-z]{4}", mode, mechanism).prop_map(|(host, guest, mode, mechanism)| Share {
        host,
        guest,
        mode,
        mechanism,
    })
}

fn any_disk() -> impl Strategy<Value = Disk> {
    let format = prop_oneof![9 => Just(ImageFormat::Raw), 1 => Just(ImageFormat::Qcow2)];
    let ephemeral = prop::bool::weighted(0.2);
    (any_path(), format, any::<bool>(), ephemeral).prop_map(
        |(path, format, read_only, ephemeral)| Disk {
            path,
            format,
            read_only,
            ephemeral,
            backing: Vec::new(),
            allow_mounted: false,
        },
    )
}

fn any_spec() -> impl Strategy<Value = VmSpec> {
    let disks = prop::collection::vec(any_disk(), 0..4);
    let shares = prop::collection::vec(any_share(), 0..3);
    let network = prop_oneof![Just(NetworkMode::None), Just(NetworkMode::Nat)];
    let console = prop_oneof![
        Just(ConsoleMode::Disabled),
        Just(ConsoleMode::Enabled),
        Just(ConsoleMode::Stdio)
    ];
    let files = (any_path(), prop::option::weighted(0.9, any_path()));
    let direction = prop_oneof![Just(VsockDirection::ToGuest), Just(VsockDirection::ToHost)];
    let port = prop_oneof![9 => any::<u32>(), 1 => Just(5)];
    let port = (port, direction).prop_map(|(port, direction)| VsockPort { port, direction });
    let ports = prop::collection::vec(port, 0..3);
    let cmdline = prop::collection::vec(("[a-z.-]{1,6}", "[a-z ,=-]{0,8}"), 0..4);
    let devices = (disks, shares, network, ports, console);
    (files, devices, cmdline, 0..5u32, 0..70_000u32).prop_map(
        |((kernel, initrd), devices, cmdline, cpus, memory_mb)| {
            let (disks, shares, network, vsock_ports, console) = devices;
            let mut spec =
                VmSpec { initrd, disks, shares, network, console, ..VmSpec::new(kernel) };
            spec.vsock = !vsock_ports.is_empty();
            spec.vsock_ports = vsock_ports;
            spec.resources.cpus = cpus;
            spec.resources.memory_mb = memory_mb;
            for (key, value) in cmdline {
                spec.cmdline.append(CmdlineArg::kv(key, value));
            }
            spec
        },
    )
}

/// vfkit's grammar accepts the plan of each valid spec, with the values of the spec.
#[test]
fn plan_parsed_equals_spec() {
    let (generated, accepted) = (Cell::new(0), Cell::new(0));
    let outcome = TestRunner::default().run(&any_spec(), |spec| {
        generated.set(generated.get() + 1);
        let host = host(&spec);
        let found = found("vfkit version: v0.6.4");
        let Ok(vm) = validate(spec.clone(), &BACKEND, &host, &found) else { return Ok(()) };
        accepted.set(accepted.get() + 1);
        let plan = BACKEND.plan(&vm, &RunDirPlan::new(host.run_dir.clone()), &host, &found);
        let head = |at: &str| {
            let is_it = |plan: &&OverlayPlan| plan.at().as_str() == at;
            let at = plan.overlays.iter().find(is_it).map_or_else(|| path(at), |p| p.of().clone());
            match host.file(&at) {
                FileFacts::File { head, .. } => Some(head.clone()),
                _ => None,
            }
        };
        prop_assert_eq!(grammar::read(args(&plan), head), Ok(expected(&spec, &plan)));
        Ok(())
    });
    outcome.unwrap();
    assert!(accepted.get() * 10 > generated.get(), "{} of {}", accepted.get(), generated.get());
}
