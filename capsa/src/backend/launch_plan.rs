//! [`LaunchPlan`]: what is started for a VM, as a program may read it.
//!
//! The plan of `capsa-proto` grows with each device; this type shows the parts that a user needs, and
//! all of it as text and as JSON.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use capsa_proto::capabilities::PlannedShare;
use capsa_proto::plan::{
    self, AgentInitrd, Body, ConsolePlan, ControlEndpoint, CrashReporting, Message, OverlayPlan,
    ProcessPlan, StopAction,
};
use capsa_proto::spec::{
    NetworkOptions, NetworkService, PortForward, ServiceTarget, TransportProtocol,
};
use capsa_proto::text::shell_word;
use serde::{Serialize, Serializer};

use super::Note;
use crate::ConsoleMode;
use crate::console::escape_control_line;

/// What is started for a VM: programs, arguments, control messages and sockets.
///
/// The `Display` form is for people: a shell script in which everything but the programs is a
/// comment. The serialized form has all of the plan; the [manual](crate::manual::cli) lists its keys.
/// Cloning it is cheap.
///
/// ```no_run
/// # fn main() -> capsa::Result<()> {
/// let plan = capsa::Capsa::vm(capsa::LinuxBootConfig::new("./vmlinuz")).plan()?;
/// for process in plan.processes() {
///     println!("{}: {} {:?}", process.name(), process.program(), process.args());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LaunchPlan {
    plan: Arc<plan::LaunchPlan>,
}

impl LaunchPlan {
    pub(crate) fn new(plan: impl Into<Arc<plan::LaunchPlan>>) -> Self {
        Self { plan: plan.into() }
    }

    /// The whole plan.
    pub(crate) fn parts(&self) -> &plan::LaunchPlan {
        &self.plan
    }

    /// The name of the backend.
    pub fn backend(&self) -> &'static str {
        self.plan.backend
    }

    /// The run directory, which contains the sockets. It exists while the VM runs.
    pub fn run_dir(&self) -> &Path {
        Path::new(self.plan.run_dir.as_str())
    }

    /// The processes in the order of their start: the helper processes, and last the hypervisor.
    pub fn processes(&self) -> impl ExactSizeIterator<Item = PlannedProcess<'_>> {
        self.plan.processes.iter().map(|process| PlannedProcess { process })
    }

    /// The whole kernel command line.
    pub fn cmdline(&self) -> &str {
        &self.plan.cmdline
    }

    /// The mode of the guest's console.
    pub fn console(&self) -> ConsoleMode {
        self.plan.console.mode()
    }

    /// The shares, in the order in which the guest mounts them.
    pub fn mounts(&self) -> impl ExactSizeIterator<Item = PlannedMount<'_>> {
        self.plan.shares.iter().map(|share| PlannedMount { share })
    }

    /// Warnings and notes: slow emulation, rounded values, mounts that the guest must make.
    pub fn notes(&self) -> &[Note] {
        &self.plan.notes
    }
}

impl Serialize for LaunchPlan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.plan.serialize(serializer)
    }
}

/// A process of a [`LaunchPlan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedProcess<'a> {
    process: &'a ProcessPlan,
}

impl<'a> PlannedProcess<'a> {
    /// The name for messages: `qemu`, `virtiofsd for /workspace`.
    pub fn name(&self) -> &'a str {
        &self.process.name
    }

    /// The path of the program, or its bare name if it was not found (in a dry run).
    pub fn program(&self) -> &'a str {
        &self.process.program
    }

    /// The arguments, without the program itself.
    pub fn args(&self) -> &'a [String] {
        &self.process.args
    }
}

/// A share of a [`LaunchPlan`], as the guest mounts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedMount<'a> {
    share: &'a PlannedShare,
}

impl<'a> PlannedMount<'a> {
    /// The directory on the host, with its symbolic links resolved.
    pub fn host_path(&self) -> &'a Path {
        Path::new(self.share.host.as_str())
    }

    /// The mount point in the guest.
    pub fn guest_path(&self) -> &'a str {
        &self.share.guest
    }

    /// The mount tag: what the guest mounts.
    pub fn tag(&self) -> &'a str {
        &self.share.tag
    }

    /// The command that mounts it in the guest, on a directory that exists there.
    pub fn mount_command(&self) -> String {
        self.share.mount_command()
    }
}

impl fmt::Display for LaunchPlan {
    /// The plan as text of several lines, with control characters escaped. A shell that reads it runs
    /// the programs: all other lines are comments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.parts();
        comment(f, &format!("backend: {}", plan.backend))?;
        comment(f, &format!("run directory: {}", plan.run_dir))?;
        comment(f, &format!("kernel command line: {}", plan.cmdline))?;
        if let Some(limit) = plan.time_limit {
            comment(f, &format!("time limit: {limit:?}"))?;
        }
        for note in &plan.notes {
            comment(f, &note.to_string())?;
        }
        if let Some(path) = &plan.serial_port {
            comment(f, &format!("serial port: the FIFO {path}"))?;
        }
        match &plan.console {
            ConsolePlan::None => comment(f, "console: none")?,
            ConsolePlan::SocketPair { .. } => {
                comment(f, "console: a pair of sockets, of which the hypervisor inherits one")?;
            }
            ConsolePlan::Pty { .. } => {
                comment(f, "console: a pty as the hypervisor's standard input and output")?;
            }
        }
        if let Some(network) = &plan.network {
            if let Some(policy) = &network.policy {
                for line in policy.to_string().lines() {
                    comment(f, &format!("network policy: {line}"))?;
                }
            }
            network_options(f, &network.options)?;
        }
        if let Some(agent) = &plan.agent {
            let transports: Vec<_> = agent.transports.iter().map(ToString::to_string).collect();
            let AgentInitrd { at, over, .. } = &agent.initrd;
            comment(f, &format!("guest agent: by {}", transports.join(", ")))?;
            comment(f, &format!("initrd: {at}, a copy of {over} with the agent"))?;
        }
        for overlay in &plan.overlays {
            let what = match overlay {
                OverlayPlan::Qcow2 { .. } => "an empty overlay",
                OverlayPlan::Clone { .. } => "a clone",
            };
            let text = format!("ephemeral disk: {}, {what} of {}", overlay.at(), overlay.of());
            comment(f, &text)?;
        }
        for process in &plan.processes {
            writeln!(f)?;
            comment(f, &process.name)?;
            for descriptor in &process.descriptors {
                comment(f, &format!("  inherits descriptor {descriptor}"))?;
            }
            program(f, process)?;
        }
        writeln!(f)?;
        comment(
            f,
            &match &plan.control.endpoint {
                ControlEndpoint::SocketPair => "control messages".to_owned(),
                ControlEndpoint::Socket(socket) => format!("control messages on {socket}"),
            },
        )?;
        for message in &plan.boot {
            comment(f, &format!("  boot: {}", message_text(message)))?;
        }
        if let Some(message) = &plan.power_button {
            comment(f, &format!("  power button: {}", message_text(message)))?;
        }
        let quit = match &plan.quit {
            StopAction::Control(message) => message_text(message),
            StopAction::Signal(signal) => format!("SIG{signal:?}").to_uppercase(),
        };
        comment(f, &format!("  quit: {quit}"))?;
        if let CrashReporting::ConsoleOnly { power_off } = &plan.crash_reporting {
            comment(f, &format!("  quit after a guest crash: {}", message_text(power_off)))?;
        }
        Ok(())
    }
}

/// The command line of a program: one argument per line, an option with its value.
fn program(f: &mut fmt::Formatter<'_>, process: &ProcessPlan) -> fmt::Result {
    f.write_str(&shell_word(&process.program))?;
    let mut args = process.args.iter().peekable();
    while let Some(arg) = args.next() {
        write!(f, " \\\n  {}", shell_word(arg))?;
        if arg.starts_with('-')
            && let Some(value) = args.next_if(|next| !next.starts_with('-'))
        {
            write!(f, " {}", shell_word(value))?;
        }
    }
    writeln!(f)
}

/// What a guest reaches beyond the internet, and what reaches it.
fn network_options(f: &mut fmt::Formatter<'_>, options: &NetworkOptions) -> fmt::Result {
    if options.allow_private {
        comment(f, "network: private networks are open")?;
    }
    for port in &options.host_ports {
        comment(f, &format!("network: port {port} of the host's loopback is open"))?;
    }
    for PortForward { host, guest, protocol } in &options.forwards {
        let protocol = match protocol {
            TransportProtocol::Tcp => "TCP",
            TransportProtocol::Udp => "UDP",
        };
        comment(f, &format!("forward: {host} to {protocol} port {guest} of the guest"))?;
    }
    for NetworkService { name, port, target } in &options.services {
        let target = match target {
            ServiceTarget::Unix(path) => format!("unix:{path}"),
            ServiceTarget::Owner => "the owner".to_owned(),
        };
        comment(f, &format!("service: {name}:{port}, served by {target}"))?;
    }
    if let Some(path) = &options.pcap {
        comment(f, &format!("packet capture: {path}"))?;
    }
    if let Some(path) = &options.log {
        comment(f, &format!("network log: {path}"))?;
    }
    Ok(())
}

/// A text as a comment of one line.
fn comment(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    writeln!(f, "# {}", escape_control_line(text))
}

fn message_text(message: &Message) -> String {
    let sent = match &message.body {
        Body::Qmp { execute, arguments: None } => (*execute).to_owned(),
        Body::Qmp { execute, arguments: Some(arguments) } => format!("{execute} {arguments}"),
        Body::Http { method, path, body: None } => format!("{method} {path}"),
        Body::Http { method, path, body: Some(body) } => format!("{method} {path} {body}"),
    };
    format!("{sent} ({})", message.purpose)
}
