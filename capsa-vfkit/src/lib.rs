//! The vfkit backend: its capabilities, its probe and the launch plan of a VM.
//!
//! This crate does no I/O: it computes data from the VM spec, the host facts and the probe report.
//!
//! A VM is one `vfkit` process. Its command line is the whole configuration, and it boots the guest at
//! once. Capsa polls the REST socket until Virtualization.framework reports the VM as running. There
//! are no helper processes: the framework provides directory sharing, and Capsa the network.
//!
//! # Why the console is `stdio`
//!
//! vfkit has three consoles:
//!
//! - `logFilePath` accepts no input.
//! - `pty` opens a new terminal. Its path is known only once the process runs, and the guest may hang
//!   in early boot until a process reads from it (vfkit issue 347, pull request 259).
//! - `stdio` loses no output. Standard input must be a terminal; Capsa passes a pty as standard input
//!   and output.
//!
//! `stdio` has a disadvantage: the REST server logs each request on standard output, so the console
//! contains lines that begin with `[GIN]`. There is one line for each poll of the VM state, before or
//! among the first output, and one for each request to power off, pause or resume. Capsa sends no other
//! requests, and the plan has a note about the lines. A few known lines are better than a guest that may hang.
//!
//! # How a guest crash is detected
//!
//! vfkit waits only for the states "stopped" and "error". It does not report a reset or a panic and
//! has no option to end at a reset. Capsa detects both in the kernel's console output:
//! [`CrashReporting::ConsoleOnly`]. Therefore the default kernel command line has `panic=0`, so that
//! the guest halts after a panic instead of rebooting. The rustdoc there and the manual list what
//! Capsa cannot detect. So this backend rejects a spec that requires the VM to end on a reboot
//! (`RebootPolicy::End`), and accepts `RebootPolicy::Auto`, the default: the VM ends on a reboot that
//! Capsa detects.
//!
//! # Assumptions
//!
//! This backend is untested on macOS. That a reboot restarts the guest inside the process is an
//! assumption, from another program on the same framework (tart issue 930).
//!
//! Facts are from vfkit v0.6.4 and its source; older versions are named where they differ.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod args;
mod availability;
#[cfg(test)]
mod grammar;
#[cfg(test)]
mod oracle;
mod reply;
#[cfg(test)]
mod tests;
mod validate;

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use serde_json::json;

use capsa_proto::backend::{
    Availability, ControlReply, HypervisorBackend, Probe, ProbePlan, ProbeReport, ReplyOutcome,
    Version,
};
use capsa_proto::capabilities::{BackendCapabilities, ValidatedSpec, Violation};
use capsa_proto::cmdline::{CmdlineArg, KernelCmdline};
use capsa_proto::host::{Arch, HostFacts, Os};
use capsa_proto::plan::{
    AgentPlan, AgentTransport, ConsolePlan, ControlEndpoint, ControlPlan, CrashReporting,
    LaunchPlan, Message, NetworkLink, NetworkPlan, Note, ProcessPlan, Protocol, Readiness,
    RunDirPlan, Signal, StopAction, VsockPlan,
};
use capsa_proto::spec::{ConsoleMode, RebootPolicy, VmSpec};

/// The key of its probe in a [`ProbeReport`].
pub const KEY: &str = "vfkit";

/// The oldest version that asks the guest to power off on SIGTERM. Up to 0.6.1, SIGTERM cut the power.
pub const MIN_VERSION: Version = Version::new(0, 6, 2);

/// The largest IP packet of the guest's network card. vfkit never sets another; with 4000 bytes,
/// Virtualization.framework stalls the card under load.
const MTU: u16 = 1500;

/// The vfkit backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vfkit;

static CAPABILITIES: BackendCapabilities = {
    let mut supports = BackendCapabilities::NONE;
    supports.guest_os.linux = true;
    supports.boot_methods.linux_direct = true;
    supports.image_formats.raw = true;
    supports.network_modes.none = true;
    supports.network_modes.nat = true;
    supports.virtio_fs = true;
    // The framework supports it. vfkit has no option for it and always shares writable.
    supports.share_read_only = false;
    supports.disk_ephemeral = true;
    supports.disk_read_only = true;
    supports.reboot_restart = true;
    supports.vsock = true;
    supports.virtio_console = true;
    supports
};

impl Vfkit {
    /// The backend.
    pub const fn new() -> Self {
        Self
    }
}

impl HypervisorBackend for Vfkit {
    fn name(&self) -> &'static str {
        KEY
    }

    fn capabilities(&self) -> &BackendCapabilities {
        &CAPABILITIES
    }

    fn supports_os(&self, os: Os) -> bool {
        os == Os::MacOs
    }

    fn probe(&self, _: Arch, _: Option<&VmSpec>) -> ProbePlan {
        // Homebrew on Apple silicon, Homebrew on Intel, podman's installer.
        let candidates =
            [KEY, "/opt/homebrew/bin/vfkit", "/usr/local/bin/vfkit", "/opt/podman/bin/vfkit"];
        ProbePlan {
            probes: vec![Probe {
                key: KEY,
                program: KEY,
                env: "CAPSA_VFKIT",
                candidates: candidates.map(ToString::to_string).into(),
                args: vec!["--version"],
            }],
        }
    }

    fn availability(&self, host: &HostFacts, found: &ProbeReport) -> Availability {
        availability::availability(host, found)
    }

    fn kernel_cmdline_defaults(&self, spec: &VmSpec, _: &HostFacts) -> KernelCmdline {
        let mut line = KernelCmdline::new();
        line.console("hvc0");
        let panic = match spec.on_reboot {
            RebootPolicy::Restart => "-1",
            // A reboot after a panic cannot be detected; a panic message of a halted kernel can.
            _ => "0",
        };
        line.arg(CmdlineArg::kv("reboot", "t")).arg(CmdlineArg::kv("panic", panic));
        line
    }

    fn default_root_device(&self) -> &str {
        "/dev/vda"
    }

    fn agent_transports(&self, _: Arch) -> &'static [AgentTransport] {
        &[AgentTransport::Vsock]
    }

    fn validate(&self, spec: &VmSpec, host: &HostFacts, _: &ProbeReport) -> Vec<Violation> {
        validate::validate(spec, host)
    }

    fn plan(
        &self,
        vm: &ValidatedSpec,
        at: &RunDirPlan,
        _: &HostFacts,
        found: &ProbeReport,
    ) -> LaunchPlan {
        let spec = vm.spec();
        let socket = at.socket("rest.sock");
        let network = NetworkPlan::new(spec, NetworkLink::Datagram, MTU);
        let (args, descriptors) = args::args(vm, network.as_ref(), at, &socket);
        LaunchPlan {
            network,
            backend: KEY,
            run_dir: at.path().clone(),
            processes: vec![ProcessPlan {
                name: KEY.to_string(),
                program: found.program(KEY, KEY),
                args,
                descriptors,
                ready: Readiness::ControlConnected,
                ends_with_hypervisor: true,
            }],
            control: ControlPlan {
                protocol: Protocol::Http,
                endpoint: ControlEndpoint::Socket(socket),
            },
            overlays: args::clones(vm, at),
            disks: spec.disks.clone(),
            console: match spec.console {
                ConsoleMode::Disabled => ConsolePlan::None,
                mode => ConsolePlan::Pty { mode },
            },
            shares: vm.mounts(),
            serial_port: None,
            vsock: spec.vsock.then(|| VsockPlan::named_ports(at, &spec.vsock_ports)),
            agent: vm
                .agent()
                .map(|agent| AgentPlan::new(agent, at).with_vsock(args::agent_port(at))),
            boot: vec![Message::http("wait until the guest runs", "GET", reply::STATE, None)],
            power_button: Some(change_state("press the power button", "Stop")),
            pause: change_state("pause the guest", "Pause"),
            resume: change_state("resume the guest", "Resume"),
            // On SIGTERM vfkit asks the guest to power off, waits five seconds and cuts the power.
            quit: StopAction::Signal(Signal::Term),
            // This cuts the power at once. The process may exit before it replies.
            crash_reporting: CrashReporting::ConsoleOnly {
                power_off: change_state("cut the power", "HardStop"),
            },
            reset_debounce: Duration::ZERO,
            cmdline: vm.cmdline().to_string(),
            on_reboot: spec.on_reboot,
            time_limit: spec.time_limit,
            notes: notes(vm),
        }
    }

    fn reply(&self, message: &Message, reply: &ControlReply) -> ReplyOutcome {
        reply::outcome(message, reply)
    }
}

fn change_state(purpose: &'static str, state: &str) -> Message {
    Message::http(purpose, "POST", reply::STATE, Some(json!({ "state": state })))
}

fn notes(vm: &ValidatedSpec) -> Vec<Note> {
    let spec = vm.spec();
    let mut notes = vm.notes().to_vec();
    for disk in vm.disks().iter().filter(|disk| args::is_cloned(disk)) {
        notes.push(Note::info(format!(
            "the guest writes to a clone of {} in the run directory, which must be on the same \
             APFS volume",
            disk.path
        )));
    }
    if spec.console != ConsoleMode::Disabled {
        notes.push(Note::info(
            "vfkit logs its control requests on the console: lines that begin with [GIN], before \
             the guest's first output and at a request to power off, pause or resume",
        ));
    }
    notes.extend(match (spec.on_reboot, spec.console) {
        (RebootPolicy::Restart, _) => None,
        (_, ConsoleMode::Disabled) => Some(Note::warning(
            "vfkit does not report a guest's reboot or panic, and without a console Capsa cannot \
             detect one: after a reboot the guest boots again, after a panic it halts",
        )),
        _ => Some(Note::info(
            "vfkit does not report a guest's reboot or panic: the VM ends when the kernel prints it on \
             the console; newer kernels print no reboot message, so the guest boots again",
        )),
    });
    notes
}
