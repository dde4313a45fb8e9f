//! vfkit as data: what it can do, what to look for, and the exact plan of a machine.
//!
//! A machine is one `vfkit` process that is given everything on its command line and starts the
//! guest at once; its REST socket tells when Virtualization.framework has it running. There are no
//! helpers: NAT and directory sharing are the framework's own.
//!
//! # Why the console is `stdio`
//!
//! vfkit has three consoles. `logFilePath` takes no input. `pty` opens a terminal of its own, whose
//! path is only known once the process runs, and until somebody reads there the guest may hang in
//! early boot (vfkit issue 347, pull request 259). `stdio` works from the first byte, with a pty of
//! ours as standard input (which must be a terminal) and output. Its price: the REST server logs
//! every request on standard output, so the console holds whole lines that begin with `[GIN]`: one
//! for each question whether the guest runs yet, before or among its first output, and one where it
//! is asked to power off. Nothing is asked in between, and the plan says so in a note. A few known
//! lines are better than a guest that may hang.
//!
//! # How a fall of the guest is known
//!
//! vfkit waits for the states "stopped" and "error" alone, tells of nothing else and has no option
//! against a reset. The guest's kernel tells, on the console: [`CrashReporting::ConsoleOnly`]. For that the
//! default command line has `panic=0`, so that a panic stands still after its last words instead of
//! rebooting. What is not heard is said there and in the manual; so a machine that *must* end on a
//! reboot is refused, and one that should where that can be told, which is the default, is not.
//!
//! # What is not known
//!
//! Nothing here was tried on a Mac. That a guest's reboot boots it again inside the process is an
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
use capsa_proto::capabilities::{
    BackendCapabilities, BootMethodSupport, GuestOsSupport, ImageFormatSupport, NetworkModeSupport,
    ValidatedSpec, Violation,
};
use capsa_proto::cmdline::{CmdlineArg, KernelCmdline};
use capsa_proto::host::{Arch, HostFacts};
use capsa_proto::plan::{
    ConsolePlan, ControlPlan, CrashReporting, LaunchPlan, Message, Note, ProcessPlan, Protocol,
    Readiness, RunDirPlan, Signal, StopAction, VsockPlan,
};
use capsa_proto::spec::{ConsoleMode, RebootPolicy, VmSpec};

/// The key of its answer in a [`ProbeReport`].
pub const KEY: &str = "vfkit";

/// The oldest version that asks the guest to stop on SIGTERM; until 0.6.1 it cut the power.
pub const MIN_VERSION: Version = Version::new(0, 6, 2);

/// The vfkit backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vfkit;

static CAPABILITIES: BackendCapabilities = BackendCapabilities {
    guest_os: GuestOsSupport { linux: true },
    boot_methods: BootMethodSupport { linux_direct: true, linux_direct_without_initrd: false },
    image_formats: ImageFormatSupport { raw: true, qcow2: false },
    network_modes: NetworkModeSupport { none: true, nat: true },
    virtio_fs: true,
    virtio_9p: false,
    // The framework can; vfkit has no option for it and always shares writable.
    share_read_only: false,
    disk_ephemeral: true,
    disk_read_only: true,
    reboot_end: false,
    reboot_restart: true,
    vsock: true,
    max_cpus: None,
    max_memory_mb: None,
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

    fn probe(&self, _: Arch, _: Option<&VmSpec>) -> ProbePlan {
        // Homebrew on Apple silicon and on Intel, and podman's installer, which brings its own.
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
            // Nobody would see that reboot. A kernel that stands still can be heard, and harms nobody.
            _ => "0",
        };
        line.arg(CmdlineArg::kv("reboot", "t")).arg(CmdlineArg::kv("panic", panic));
        line
    }

    fn default_root_device(&self) -> &str {
        "/dev/vda"
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
        LaunchPlan {
            backend: KEY,
            run_dir: at.path().clone(),
            processes: vec![ProcessPlan {
                name: KEY.to_string(),
                program: found.program(KEY, KEY),
                args: args::args(vm, at, &socket),
                ready: Readiness::ControlConnected,
                ends_with_hypervisor: true,
            }],
            control: ControlPlan { protocol: Protocol::Http, socket },
            event_pipe: None,
            overlays: args::clones(vm, at),
            console: match spec.console {
                ConsoleMode::Disabled => ConsolePlan::None,
                mode => ConsolePlan::Pty { mode },
            },
            vsock: spec.vsock.then(|| VsockPlan::named_ports(at, &spec.vsock_ports)),
            boot: vec![Message::http("wait until the guest runs", "GET", reply::STATE, None)],
            power_button: Some(change("press the power button", "Stop")),
            // It asks the guest once more, waits five seconds and forces it.
            quit: StopAction::Signal(Signal::Term),
            // This forces at once. Its own reply is lost to the process's exit, which is no matter.
            crash_reporting: CrashReporting::ConsoleOnly {
                power_off: change("cut the power", "HardStop"),
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

fn change(why: &'static str, state: &str) -> Message {
    Message::http(why, "POST", reply::STATE, Some(json!({ "state": state })))
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
             the guest's first output and at the power-off request",
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
