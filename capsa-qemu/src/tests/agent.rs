//! The guest agent: its ports, its initrd, and when a VM cannot have it.

use super::*;
use capsa_proto::plan::AgentTransport;
use capsa_proto::spec::AgentMode;

fn with_agent() -> VmSpec {
    VmSpec { initrd: Some(path("/i")), agent: AgentMode::Required, ..spec() }
}

#[test]
fn plan_agent_adds_ports_and_initrd() {
    let plan = plan(with_agent());
    let args = args(&plan);
    assert!(
        args.ends_with(
            "-chardev socket,id=agent,fd=5 -device virtio-serial-pci,ioeventfd=off -device \
             virtserialport,chardev=agent,name=capsa.agent -chardev socket,id=agent-serial,fd=6 \
             -device isa-serial,chardev=agent-serial,index=1"
        ),
        "{args}"
    );
    assert!(args.contains("-initrd /run/capsa/x/initrd -append"), "{args}");
    let descriptors: Vec<_> =
        plan.processes[0].descriptors.iter().map(ToString::to_string).collect();
    assert_eq!(
        descriptors,
        [
            "3: the file behind /run/capsa/x/initrd",
            "4: one of a pair of sockets: the control channel",
            "5: one of a pair of sockets: the agent's virtio-serial",
            "6: one of a pair of sockets: the agent's second serial port",
        ]
    );
    let agent = plan.agent.unwrap();
    assert_eq!(agent.initrd.over, path("/i"));
    assert_eq!(agent.transports, [AgentTransport::VirtioSerial, AgentTransport::SerialPort]);
}

#[test]
fn plan_agent_shares_bus_of_virtio_console() {
    let spec = VmSpec { console: ConsoleMode::Enabled, virtio_console: true, ..with_agent() };
    let args = args(&plan(spec));
    assert_eq!(args.matches("virtio-serial-pci").count(), 1, "{args}");
    assert!(args.contains("virtserialport,chardev=agent,"), "{args}");
}

#[test]
fn plan_agent_on_arm_has_one_port() {
    let mut head = [0; 0x40];
    head[0x38..0x3c].copy_from_slice(b"ARM\x64");
    let mut host = HostFacts { arch: Arch::Aarch64, ..host() };
    host.files.insert(path("/k"), file(&head, 9));
    let plan = try_plan(with_agent(), &host, &found()).unwrap();
    assert_eq!(plan.agent.as_ref().unwrap().transports, [AgentTransport::VirtioSerial]);
    assert!(!args(&plan).contains("isa-serial"));
}

#[test]
fn plan_agent_starts_first_and_keeps_own_init() {
    let mut spec = with_agent();
    spec.cmdline.arg("single").arg("rdinit=/sbin/init").arg("quiet");
    let plan = plan(spec);
    assert!(plan.cmdline.starts_with("rdinit=/capsa-agent/agent "), "{}", plan.cmdline);
    assert!(plan.cmdline.ends_with(" single quiet"), "{}", plan.cmdline);
    assert_eq!(plan.cmdline.matches("rdinit").count(), 1);
    assert_eq!(plan.agent.unwrap().initrd.init.as_deref(), Some("/sbin/init"));
}

#[test]
fn agent_impossible_is_rejected_or_noted() {
    let mut overridden = with_agent();
    overridden.cmdline.override_with("quiet");
    let disk = Disk { read_only: true, ..disk("/d.raw", ImageFormat::Raw) };
    let no_agent = HostFacts { agent: Err("no reason"), ..host() };
    let cases = [
        (overridden, host(), "the kernel command line is overridden"),
        (VmSpec { initrd: None, ..with_agent() }, host(), "the VM has no initrd"),
        (VmSpec { initrd: Some(path("/d.raw")), ..with_agent() }, host(), "/d.raw is neither"),
        (
            VmSpec { disks: vec![disk; 28], ..with_agent() },
            host(),
            "1 more device, and the limit is 28",
        ),
        (with_agent(), no_agent, "contains no agent (no reason)"),
    ];
    for (spec, host, reason) in cases {
        let violations = try_plan(spec.clone(), &host, &found()).unwrap_err();
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert_eq!(violations[0].field, "agent");
        assert!(violations[0].reason.contains(reason), "{reason}: {violations:?}");
        let auto = VmSpec { agent: AgentMode::Auto, ..spec.clone() };
        let plan = try_plan(auto, &host, &found()).unwrap();
        assert!(plan.agent.is_none() && !plan.cmdline.contains("rdinit"));
        assert!(plan.notes.iter().any(|note| note.text.contains(reason)), "{:?}", plan.notes);
        let off = VmSpec { agent: AgentMode::Off, ..spec };
        assert_eq!(args(&plan), args(&try_plan(off, &host, &found()).unwrap()));
    }
}
