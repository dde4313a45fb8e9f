//! The Cloud Hypervisor backend: its capabilities, its probes and the launch plan of a VM.
//!
//! This crate does no I/O: it computes data from the VM spec, the host facts and the probe report.
//!
//! A VM is one `cloud-hypervisor` process. One virtiofsd per share starts before it. The process starts without a VM, and `vm.create` on the REST socket carries the whole
//! configuration, so no path of the user passes through an option parser. The console is a pty that
//! Capsa opens, as the process's standard input and output: the serial mode `Tty` loses no output on
//! any version, while the mode `Socket` drops output from before the first connection (before v53).
//!
//! The event monitor, on a pipe, reports guest events:
//!
//! - a power-off;
//! - a reboot, which happens inside the process, so Capsa ends the VM if the spec requires it;
//! - a panic, if the guest has a driver for the panic device.
//!
//! A reboot breaks shares, because virtiofsd accepts one connection only. The events of a failed vCPU
//! are those of a power-off, but a line on standard error identifies it. A SIGTERM from another
//! process cannot be distinguished from a power-off.
//!
//! Facts are from Cloud Hypervisor v53 and its source; older versions are named where they differ.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod availability;
mod landlock;
#[cfg(test)]
mod tests;
mod validate;
mod vm_config;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use capsa_proto::backend::{
    Availability, ControlReply, GuestEvent, HypervisorBackend, Probe, ProbePlan, ProbeReport,
    ReplyOutcome, Version,
};
use capsa_proto::capabilities::{BackendCapabilities, ValidatedSpec, Violation};
use capsa_proto::cmdline::{CmdlineArg, KernelCmdline};
use capsa_proto::helper::virtiofsd;
use capsa_proto::host::{Arch, HostFacts, Os};
use capsa_proto::plan::{
    AgentPlan, AgentTransport, ConsolePlan, ControlEndpoint, ControlPlan, CrashReporting,
    DescriptorKind, LONGEST_SOCKET_NAME, LaunchPlan, Message, NetworkLink, NetworkPlan, Note,
    ProcessPlan, Protocol, Readiness, RunDirPlan, StopAction, VsockPlan, add_descriptor,
};
use capsa_proto::spec::{AgentMode, ConsoleMode, VmSpec};
use serde_json::Value;

/// The key of its probe in a [`ProbeReport`].
pub const KEY: &str = "cloud-hypervisor";

/// The oldest version that supports `image_type`.
///
/// `vm.create` ignores unknown fields. An older version would therefore ignore `image_type` and detect
/// the format of each disk from its content, which the guest can write. A guest could write a qcow2
/// header with any backing file to a raw disk, and the hypervisor would open that file on the host
/// (GHSA-jmr4-g2hv-mjj6).
pub const MIN_VERSION: Version = Version::new(50, 1, 0);

/// The name of the socket of the network in the run directory.
pub(crate) const NETWORK_SOCKET: &str = "net.sock";

/// The largest IP packet of the link. A larger one would not make it faster: with the offloads of
/// vhost-user, TCP segments of 64 KiB cross it whole.
const MTU: u16 = 1500;

/// The Cloud Hypervisor backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloudHypervisor;

static CAPABILITIES: BackendCapabilities = {
    let mut supports = BackendCapabilities::NONE;
    supports.guest_os.linux = true;
    supports.boot_methods.linux_direct = true;
    supports.boot_methods.linux_direct_without_initrd = true;
    supports.image_formats.raw = true;
    supports.image_formats.qcow2 = true;
    supports.network_modes.none = true;
    supports.network_modes.nat = true;
    supports.virtio_fs = true;
    supports.share_read_only = true;
    supports.disk_ephemeral = true;
    supports.disk_read_only = true;
    supports.reboot_end = true;
    supports.reboot_restart = true;
    supports.vsock = true;
    supports.virtio_console = true;
    // The limit on all architectures. x86-64 supports 8192.
    supports.max_cpus = Some(255);
    // Its PCI segment has 32 slots; the root, virtio-rng and pvpanic use three.
    supports.max_devices = Some(29);
    supports
};

impl CloudHypervisor {
    /// The backend.
    pub const fn new() -> Self {
        Self
    }
}

impl HypervisorBackend for CloudHypervisor {
    fn name(&self) -> &'static str {
        KEY
    }

    fn capabilities(&self) -> &BackendCapabilities {
        &CAPABILITIES
    }

    fn supports_os(&self, os: Os) -> bool {
        os == Os::Linux
    }

    fn probe(&self, _: Arch, spec: Option<&VmSpec>) -> ProbePlan {
        let mut probes = vec![Probe {
            key: KEY,
            program: KEY,
            env: "CAPSA_CLOUD_HYPERVISOR",
            // The second is the statically linked binary of the release page.
            candidates: vec![KEY.to_string(), "cloud-hypervisor-static".to_string()],
            args: vec!["--version"],
        }];
        if spec.is_none_or(|spec| !spec.shares.is_empty()) {
            probes.push(virtiofsd::probe());
        }
        ProbePlan { probes }
    }

    fn availability(&self, host: &HostFacts, found: &ProbeReport) -> Availability {
        availability::availability(host, found)
    }

    fn kernel_cmdline_defaults(&self, spec: &VmSpec, host: &HostFacts) -> KernelCmdline {
        let mut line = KernelCmdline::new();
        line.consoles(host.arch, spec.virtio_console);
        line.arg(CmdlineArg::kv("reboot", "t")).arg(CmdlineArg::kv("panic", "-1"));
        line
    }

    fn default_root_device(&self) -> &str {
        "/dev/vda"
    }

    fn agent_transports(&self, _: Arch) -> &'static [AgentTransport] {
        &[AgentTransport::Vsock]
    }

    fn validate(&self, spec: &VmSpec, host: &HostFacts, found: &ProbeReport) -> Vec<Violation> {
        validate::validate(spec, host, found)
    }

    /// Capsa alone connects to the API socket, and does so on a path of any length.
    fn longest_socket_name(&self, spec: &VmSpec) -> usize {
        let has_vsock = spec.vsock || spec.agent == AgentMode::Required;
        let vsock = if has_vsock { LONGEST_SOCKET_NAME } else { 0 };
        let network = if spec.network.has_card() { NETWORK_SOCKET.len() } else { 0 };
        vsock.max(network).max(virtiofsd::longest_socket_name(&spec.shares))
    }

    fn plan(
        &self,
        vm: &ValidatedSpec,
        at: &RunDirPlan,
        host: &HostFacts,
        found: &ProbeReport,
    ) -> LaunchPlan {
        let spec = vm.spec();
        let socket = at.socket("api.sock");
        let mut descriptors = Vec::new();
        let listener = DescriptorKind::Listener { socket: socket.clone() };
        let api = add_descriptor(&mut descriptors, listener);
        let events = add_descriptor(&mut descriptors, DescriptorKind::Events);
        let agent = vm.agent().map(|agent| AgentPlan::new(agent, at));
        if let Some(plan) = &agent {
            let at = plan.initrd.at.clone();
            add_descriptor(&mut descriptors, DescriptorKind::Initrd { at });
        }
        let overlays = vm_config::overlays(vm, at, host);
        let link = NetworkLink::VhostUser { socket: at.socket(NETWORK_SOCKET) };
        for overlay in &overlays {
            add_descriptor(&mut descriptors, DescriptorKind::Overlay { at: overlay.at().clone() });
        }
        let mut processes: Vec<_> = vm
            .shares()
            .iter()
            .enumerate()
            .map(|(n, share)| virtiofsd::process(share, n, at, found))
            .collect();
        processes.push(ProcessPlan {
            name: KEY.to_string(),
            program: found.program(KEY, KEY),
            args: vec![
                "--api-socket".to_string(),
                format!("fd={api}"),
                "--event-monitor".to_string(),
                format!("fd={events}"),
                "--seccomp".to_string(),
                "true".to_string(),
            ],
            descriptors,
            ready: Readiness::Immediate,
            ends_with_hypervisor: true,
        });
        LaunchPlan {
            network: NetworkPlan::new(spec, link, MTU),
            backend: KEY,
            run_dir: at.path().clone(),
            processes,
            control: ControlPlan {
                protocol: Protocol::Http,
                endpoint: ControlEndpoint::Socket(socket),
            },
            overlays,
            disks: spec.disks.clone(),
            console: match spec.console {
                ConsoleMode::Disabled => ConsolePlan::None,
                mode => ConsolePlan::Pty { mode },
            },
            shares: vm.mounts(),
            serial_port: spec.virtio_console.then(|| vm_config::serial_port(at)),
            vsock: spec.vsock.then(|| VsockPlan::any_port(at)),
            agent: agent.map(|plan| plan.with_vsock(VsockPlan::any_port(at))),
            boot: vec![
                Message::http(
                    "create the VM",
                    "PUT",
                    "/api/v1/vm.create",
                    Some(vm_config::vm_config(vm, at, host)),
                ),
                Message::http("boot the guest", "PUT", "/api/v1/vm.boot", None),
            ],
            power_button: Some(Message::http(
                "press the power button",
                "PUT",
                "/api/v1/vm.power-button",
                None,
            )),
            pause: Message::http("pause the guest", "PUT", "/api/v1/vm.pause", None),
            resume: Message::http("resume the guest", "PUT", "/api/v1/vm.resume", None),
            // SIGTERM has the same effect: neither notifies the guest.
            quit: StopAction::Control(Message::http("quit", "PUT", "/api/v1/vmm.shutdown", None)),
            crash_reporting: CrashReporting::Event,
            reset_debounce: Duration::ZERO,
            cmdline: vm.cmdline().to_string(),
            on_reboot: spec.on_reboot,
            time_limit: spec.time_limit,
            notes: notes(vm, host),
        }
    }

    /// A failed vCPU is reported on standard error only: the events, and the exit status if the process
    /// exits, are those of a power-off.
    fn stderr_line(&self, line: &str) -> Option<GuestEvent> {
        let failed = ["VCPU generated error", "vCPU thread panicked"];
        failed.iter().any(|words| line.contains(words)).then_some(GuestEvent::CpuFailed)
    }

    /// The event monitor writes objects with `timestamp`, `source`, `event` and `properties`.
    fn pipe_event(&self, event: &Value) -> Option<GuestEvent> {
        let text = |key| event.get(key).and_then(Value::as_str).unwrap_or_default();
        match (text("source"), text("event")) {
            ("vm", "rebooting") => Some(GuestEvent::Reset),
            ("vm", "shutdown") => Some(GuestEvent::PoweredOff),
            ("guest", "panic") => Some(GuestEvent::Panicked),
            ("virtio-device", "activated")
                if event.pointer("/properties/id") == Some(&vm_config::CONSOLE_ID.into()) =>
            {
                Some(GuestEvent::ConsoleOpened)
            }
            _ => None,
        }
    }

    /// The body of an error reply is a JSON array of strings: the error and its causes, outermost first.
    fn reply(&self, _: &Message, reply: &ControlReply) -> ReplyOutcome {
        match (reply.outcome(), reply) {
            (ReplyOutcome::Rejected(plain), ControlReply::Http { body, .. }) => {
                let chain: Vec<String> = serde_json::from_str(body).unwrap_or_default();
                ReplyOutcome::Rejected(if chain.is_empty() { plain } else { chain.join(": ") })
            }
            (outcome, _) => outcome,
        }
    }
}

fn notes(vm: &ValidatedSpec, host: &HostFacts) -> Vec<Note> {
    let spec = vm.spec();
    let mut notes = vm.notes().to_vec();
    let requested = u64::from(spec.resources.memory_mb);
    let given = vm_config::memory_mb(spec.resources.memory_mb);
    if given != requested {
        notes.push(Note::info(format!(
            "memory is {given} MiB instead of {requested}: cloud-hypervisor requires multiples of 2 MiB"
        )));
    }
    notes.extend(host.kvm.explicit_use_warning());
    notes.extend(landlock::note(host));
    if !vm.shares().is_empty() {
        notes.extend(virtiofsd::note(host));
    }
    for disk in vm.disks().iter().filter(|disk| vm_config::has_backing_file(disk, host)) {
        notes.push(Note::info(format!("{} has a backing file, which is opened too", disk.path)));
    }
    notes
}
