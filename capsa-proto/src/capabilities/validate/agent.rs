//! Whether a VM can have the guest agent, and what it needs there.

use alloc::format;
use alloc::string::ToString;

use super::super::ValidatedAgent;
use crate::agent::protocol::VSOCK_PORT;
use crate::backend::HypervisorBackend;
use crate::codec::cpio::is_initramfs;
use crate::host::{FileFacts, HostFacts, Reason};
use crate::plan::AgentTransport;
use crate::spec::{VmSpec, VsockDirection, VsockPort};

/// What the agent needs in this VM.
///
/// # Errors
///
/// The reason why the VM cannot have it; `None` if the initrd cannot be read, which is a violation anyway.
pub(super) fn agent(
    spec: &VmSpec,
    backend: &dyn HypervisorBackend,
    host: &HostFacts,
) -> Result<ValidatedAgent, Option<Reason>> {
    let cannot = |what: &str, remedy: &str| Some(Reason::new(what, remedy));
    if spec.cmdline.override_text().is_some() {
        let what = "the kernel command line is overridden, so nothing can be added to it";
        return Err(cannot(what, "add arguments instead of the override"));
    }
    let Some(initrd) = &spec.initrd else {
        return Err(cannot("the VM has no initrd, to which it would be added", "set an initrd"));
    };
    match host.file(initrd) {
        FileFacts::File { device: false, head, .. } if is_initramfs(head) => {}
        FileFacts::File { .. } => {
            let what = format!("{initrd} is neither a cpio archive nor a compressed file");
            return Err(cannot(&what, "use an initramfs"));
        }
        _ => return Err(None),
    }
    let name = backend.name();
    let transports = backend.agent_transports(host.arch);
    if transports.is_empty() {
        return Err(cannot(&format!("{name} has no transport for it"), "use the qemu backend"));
    }
    let program = host.agent.map_err(|why| {
        cannot(&format!("this build of Capsa contains no agent ({why})"), "use another build")
    })?;
    let uses_port = VsockPort { port: VSOCK_PORT, direction: VsockDirection::ToGuest };
    if transports.contains(&AgentTransport::Vsock) && spec.vsock_ports.contains(&uses_port) {
        let what = format!("it uses the vsock port {VSOCK_PORT}, which vsock_ports lists");
        return Err(cannot(&what, "list another port"));
    }
    let slots = transports.iter().filter(|transport| transport.needs_slot(spec)).count();
    let max = backend.capabilities().max_devices.map(|max| max as usize);
    if let Some(max) = max.filter(|max| spec.device_count() + slots > *max) {
        let devices = if slots == 1 { "device" } else { "devices" };
        let what = format!("it needs {slots} more {devices}, and the limit is {max}");
        return Err(cannot(&what, "attach fewer disks or shares"));
    }
    let init = spec.cmdline.get("rdinit").map(ToString::to_string);
    Ok(ValidatedAgent { transports, initrd: initrd.clone(), init, program })
}
