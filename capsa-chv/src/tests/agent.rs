//! The guest agent: its vsock device and its initrd.

use super::*;

fn with_agent() -> VmSpec {
    VmSpec { initrd: Some(path("/i")), agent: AgentMode::Required, ..spec() }
}

#[test]
fn plan_agent_uses_vsock_and_inherited_initrd() {
    let plan = plan(with_agent());
    let body = created(&plan);
    assert_eq!(body["vsock"], json!({ "cid": 3, "socket": "/run/c/1/vsock" }));
    assert_eq!(body["payload"]["initramfs"], "/run/c/1/initrd");
    assert_eq!(body["payload"]["cmdline"], "rdinit=/capsa-agent/agent reboot=t panic=-1");
    let last = plan.processes[0].descriptors.last().unwrap().to_string();
    assert_eq!(last, "5: the file behind /run/c/1/initrd");
    assert_eq!(plan.vsock, None, "the device is the agent's, not the owner's");
    let agent = plan.agent.unwrap();
    assert_eq!(agent.transports, [AgentTransport::Vsock]);
    let Some(capsa_proto::plan::VsockRoute::Handshake(socket)) = agent.vsock_route() else {
        panic!("{agent:?}")
    };
    assert_eq!(*socket, path("/run/c/1/vsock"));
}

#[test]
fn plan_agent_slot_is_that_of_vsock() {
    let disk = Disk { read_only: true, ..disk("/raw", ImageFormat::Raw) };
    let with = |disks, vsock| VmSpec { disks: vec![disk.clone(); disks], vsock, ..with_agent() };
    assert!(plan(with(28, false)).agent.is_some());
    assert!(plan(with(28, true)).agent.is_some());
    let violations = rejected(with(29, false), &host(), &all_found());
    assert!(violations.contains("it needs 1 more device, and the limit is 29"), "{violations}");
}

#[test]
fn plan_auto_agent_needs_more_than_vsock() {
    let plan = plan(VmSpec { agent: AgentMode::Auto, ..with_agent() });
    assert_eq!(plan.agent, None);
    // So a long run directory is not rejected for its socket.
    let with = |agent| CloudHypervisor.longest_socket_name(&VmSpec { agent, ..with_agent() });
    assert_eq!(with(AgentMode::Auto), with(AgentMode::Off));
    assert!(with(AgentMode::Required) > with(AgentMode::Off));
    let note = "the guest has no agent: cloud-hypervisor reaches it by vsock only";
    assert!(plan.notes.iter().any(|it| it.text.starts_with(note)), "{:?}", plan.notes);
}
