//! [`Setup`]: the VM of a schedule: its plan, its guest, and how reliable the simulated world is.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use serde_json::Value;

use super::choices::Chooser;
use crate::backend::{
    Availability, ControlReply, GuestEvent, HypervisorBackend, ProbePlan, ProbeReport, ReplyOutcome,
};
use crate::capabilities::{BackendCapabilities, ValidatedSpec, Violation};
use crate::cmdline::KernelCmdline;
use crate::codec::qmp::QmpMessage;
use crate::console::{ConsoleMux, Overflow};
use crate::host::{Arch, HostFacts};
use crate::lifecycle::fuzz;
use crate::plan::{
    ConsolePlan, ControlEndpoint, CrashReporting, LaunchPlan, Message, Protocol, Readiness,
    RunDirPlan, Signal, StopAction,
};
use crate::sim::{GuestReply, ScriptedGuest, SimBackend};
use crate::spec::{ConsoleMode, RebootPolicy, VmSpec};

/// How the hypervisor reports the guest's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventRoute {
    Control,
    Pipe,
    Stderr,
}

/// How likely the parts of the simulated world are to misbehave. Chances are of 256.
#[derive(Debug, Clone, Copy)]
pub(super) struct Temper {
    /// After a step, everything goes on until nothing is left to do.
    pub(super) brisk: u8,
    /// A step brings a failure.
    pub(super) failures: u8,
    /// The hypervisor rejects a message, or answers badly.
    pub(super) refusals: u8,
    /// The hypervisor does not react to a message or signal.
    pub(super) deafness: u8,
    /// The driver does not take the outputs after a step.
    pub(super) laziness: u8,
    /// The guest prints something that is not in its script.
    pub(super) noise: u8,
    /// The owner takes events after each step.
    pub(super) eager_owner: bool,
}

/// The VM of a schedule.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) plan: LaunchPlan,
    pub(super) capacity: usize,
    pub(super) overflow: Overflow,
    pub(super) route: EventRoute,
    pub(super) guest: ScriptedGuest,
    pub(super) temper: Temper,
}

/// The commands that the guest's shell knows: name, output, status.
pub(super) const COMMANDS: [(&str, &str, i32); 3] = [
    ("ok", "ok\n", 0),
    ("fail", "no\nsuch thing\n", 3),
    ("utf8", "gr\u{fc}\u{df}e \u{1f9ed}\n", 0),
];

/// The commands that do more than print.
pub(super) const OTHER_COMMANDS: [&str; 8] =
    ["flood", "slow", "hang", "reboot", "panic", "poweroff", "unknown", "exit"];

impl Setup {
    pub(super) fn choose(choose: &mut Chooser<'_>) -> Self {
        let mut plan = fuzz::plan(choose.one_of(&[0, 0, 1, 2]));
        let is_http = choose.below(3) == 0;
        let route = match (is_http, choose.below(2)) {
            (false, _) => EventRoute::Control,
            (true, 0) => EventRoute::Pipe,
            (true, _) => EventRoute::Stderr,
        };
        if is_http {
            choose_http(&mut plan, choose);
        } else {
            choose_qmp(&mut plan, choose);
        }
        for process in &mut plan.processes {
            if matches!(process.ready, Readiness::SocketExists(_)) && choose.below(4) == 0 {
                process.ready = Readiness::Immediate;
            }
        }
        plan.console = match choose.below(8) {
            0 => ConsolePlan::None,
            1..=4 => ConsolePlan::SocketPair { mode: ConsoleMode::Enabled },
            _ => ConsolePlan::Pty { mode: ConsoleMode::Enabled },
        };
        plan.power_button = plan.power_button.filter(|_| choose.below(5) > 0);
        plan.time_limit = (choose.below(6) == 5).then(|| choose.span(Duration::from_millis(240)));
        plan.on_reboot = choose.one_of(&[RebootPolicy::End, RebootPolicy::Restart]);
        plan.reset_debounce = choose.one_of(&[Duration::ZERO, Duration::from_millis(500)]);
        let (capacity, overflow) = choose.one_of(&[
            (1 << 20, Overflow::DropOldest),
            (1 << 20, Overflow::DropOldest),
            (1 << 20, Overflow::Pause),
            (4096, Overflow::Pause),
            (256, Overflow::Pause),
            (4096, Overflow::DropOldest),
            (256, Overflow::DropOldest),
            (16, Overflow::DropOldest),
        ]);
        let temper = Temper {
            brisk: choose.one_of(&[250, 200, 100, 20]),
            failures: choose.one_of(&[0, 1, 6, 30]),
            refusals: choose.one_of(&[0, 0, 10, 60]),
            deafness: choose.one_of(&[0, 0, 10, 120]),
            laziness: choose.one_of(&[0, 20, 120]),
            noise: choose.one_of(&[0, 0, 20, 60]),
            eager_owner: choose.below(3) < 2,
        };
        Self { plan, capacity, overflow, route, guest: choose_guest(choose), temper }
    }

    pub(super) fn console(&self) -> ConsoleMux {
        match self.plan.console {
            ConsolePlan::None => ConsoleMux::disabled(),
            _ => ConsoleMux::new(self.capacity, self.overflow),
        }
    }
}

fn choose_qmp(plan: &mut LaunchPlan, choose: &mut Chooser<'_>) {
    match choose.below(4) {
        0 => plan.boot.clear(),
        1 => _ = plan.boot.pop(),
        _ => {}
    }
    if choose.below(3) == 0 {
        plan.control.endpoint = ControlEndpoint::Socket(plan.run_dir.join("control"));
    }
    if choose.below(3) == 0 {
        plan.quit = StopAction::Signal(Signal::Term);
    }
    plan.crash_reporting = match choose.below(4) {
        0 | 1 => CrashReporting::Event,
        2 => CrashReporting::EventThenExit,
        _ => CrashReporting::ConsoleOnly { power_off: Message::qmp("cut", "cut") },
    };
}

fn choose_http(plan: &mut LaunchPlan, choose: &mut Chooser<'_>) {
    let body = Some(Value::from("a \"body\""));
    plan.control.protocol = Protocol::Http;
    plan.control.endpoint = ControlEndpoint::Socket(plan.run_dir.join("control"));
    let vmm = plan.hypervisor();
    if choose.below(2) == 0 {
        // It inherits a socket that listens.
        plan.processes[vmm.0].ready = Readiness::Immediate;
    }
    plan.boot = match choose.below(3) {
        0 => Vec::new(),
        1 => [Message::http("boot", "PUT", "/vm.boot", None)].into(),
        _ => [
            Message::http("create", "PUT", "/vm.create", body),
            Message::http("boot", "PUT", "/vm.boot", None),
        ]
        .into(),
    };
    plan.power_button = Some(Message::http("ask", "POST", "/vm.power-button", None));
    plan.pause = Message::http("pause", "PUT", "/vm.pause", None);
    plan.resume = Message::http("resume", "PUT", "/vm.resume", None);
    if choose.below(3) == 0 {
        plan.quit = StopAction::Signal(Signal::Term);
    } else {
        plan.quit = StopAction::Control(Message::http("quit", "PUT", "/vmm.shutdown", None));
    }
    plan.crash_reporting = match choose.below(4) {
        0 | 1 => CrashReporting::Event,
        2 => CrashReporting::EventThenExit,
        _ => {
            let power_off = Message::http("cut", "PUT", "/vm.cut", None);
            CrashReporting::ConsoleOnly { power_off }
        }
    };
}

fn choose_guest(choose: &mut Chooser<'_>) -> ScriptedGuest {
    let mut guest = ScriptedGuest::new().print("[    0.000000] Linux version 6.1.0\r\n");
    for _ in 0..choose.below(3) {
        guest = match choose.below(4) {
            0 => guest.print("Booting \x1b[1mup\x1b[0m\r\n"),
            1 => guest.pause(Duration::from_millis(3)),
            2 => guest.print("[    0.5] init: 12345678901234567890123456789012345678901\r\n"),
            _ => guest.pause(Duration::from_secs(1)),
        };
    }
    guest = match choose.below(24) {
        0 => guest.panic("no init"),
        1 => guest.pause(Duration::from_millis(30)).reboot(),
        2 => guest.power_off(),
        3 => guest.exit(1),
        4 => guest.killed(11),
        5 => guest.hang(),
        _ => guest,
    };
    match choose.below(4) {
        0 => {}
        1 => guest = guest.login("root", None),
        _ => guest = guest.login("root", Some("pw")),
    }
    if choose.below(8) == 7 {
        guest = guest.ignore_power_button();
    }
    if choose.below(3) == 2 {
        guest = guest.power_off_delay(Duration::from_millis(40));
    }
    for (name, output, status) in COMMANDS {
        guest = guest.on(name, GuestReply::output(output).with_status(status));
    }
    guest
        .shell("# ")
        .on("flood", GuestReply::output(flood()))
        .on("slow", GuestReply::output("slow\n").after(Duration::from_millis(700)))
        .on("hang", GuestReply::blocks())
        .on("reboot", GuestReply::reboot())
        .on("panic", GuestReply::panic("sysrq"))
        .on("poweroff", GuestReply::power_off())
        .on("exit", GuestReply::exit(7))
}

/// What the command `flood` prints.
pub(super) fn flood() -> String {
    "line 39 of the flood\n".repeat(200)
}

/// The backend of a schedule: events have the names of [`SimBackend`] on every route.
#[derive(Debug, Default)]
pub(super) struct ScheduleBackend(SimBackend);

/// The start of a line on standard error that reports an event.
pub(super) const EVENT_LINE: &str = "event: ";

/// The error with which the hypervisor asks for the message to be sent again.
pub(super) const NOT_YET: &str = "not yet";

impl ScheduleBackend {
    fn named(&self, name: &str) -> Option<GuestEvent> {
        let (name, data) = (name.to_string(), Value::Null);
        self.0.event(&QmpMessage::Event { name, data, at_micros: None })
    }
}

impl HypervisorBackend for ScheduleBackend {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn capabilities(&self) -> &BackendCapabilities {
        self.0.capabilities()
    }

    fn probe(&self, arch: Arch, spec: Option<&VmSpec>) -> ProbePlan {
        self.0.probe(arch, spec)
    }

    fn availability(&self, host: &HostFacts, found: &ProbeReport) -> Availability {
        self.0.availability(host, found)
    }

    fn kernel_cmdline_defaults(&self, spec: &VmSpec, host: &HostFacts) -> KernelCmdline {
        self.0.kernel_cmdline_defaults(spec, host)
    }

    fn default_root_device(&self) -> &str {
        self.0.default_root_device()
    }

    fn validate(&self, spec: &VmSpec, host: &HostFacts, found: &ProbeReport) -> Vec<Violation> {
        self.0.validate(spec, host, found)
    }

    fn plan(
        &self,
        vm: &ValidatedSpec,
        at: &RunDirPlan,
        host: &HostFacts,
        found: &ProbeReport,
    ) -> LaunchPlan {
        self.0.plan(vm, at, host, found)
    }

    fn reply(&self, _: &Message, reply: &ControlReply) -> ReplyOutcome {
        match reply {
            ControlReply::QmpError { desc, .. } if desc == NOT_YET => ReplyOutcome::Retry,
            ControlReply::Http { status: 503, .. } => ReplyOutcome::Retry,
            reply => reply.outcome(),
        }
    }

    fn stderr_line(&self, line: &str) -> Option<GuestEvent> {
        self.named(line.strip_prefix(EVENT_LINE)?)
    }

    fn pipe_event(&self, event: &Value) -> Option<GuestEvent> {
        self.named(event.get("event")?.as_str()?)
    }

    fn event(&self, event: &QmpMessage) -> Option<GuestEvent> {
        self.0.event(event)
    }
}
