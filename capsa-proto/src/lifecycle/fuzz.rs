//! Checks the invariants of the lifecycle with random inputs. The fuzz target calls [`run`].
//!
//! The bytes choose the plan, and then each input: process starts, exits and replies, guest events and
//! requests of the owner. When the bytes run out, the owner kills the VM, no further reply or exit
//! comes, and timeouts alone must end the lifecycle.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Action, Cause, Exit, Input, Lifecycle, Phase, Timing, VmStatus};
use crate::backend::{GuestEvent, ReplyOutcome};
use crate::console::ConsoleCrash;
use crate::path::HostPath;
use crate::plan::{
    ConsolePlan, ControlEndpoint, ControlPlan, CrashReporting, LaunchPlan, Message, ProcessId,
    ProcessPlan, Protocol, Readiness, Signal, StopAction,
};
use crate::spec::RebootPolicy;
use crate::time::Instant;

/// More timeouts than any path from a phase to the end needs.
const TIMEOUTS_TO_THE_END: usize = 8;

/// Runs one lifecycle with the inputs that `data` chooses, and checks the invariants after each step.
///
/// # Panics
///
/// If an invariant does not hold.
pub fn run(data: &[u8]) {
    run_bytes(data.iter().copied());
}

/// [`run`] over an iterator. Returns the number of steps of the lifecycle.
pub(super) fn run_bytes(bytes: impl Iterator<Item = u8>) -> usize {
    let mut choices = Choices { bytes, ran_out: false };
    let plan = choices.plan();
    let kill_chance = choices.one_of(&[0, 2, 20]);
    let mut lifecycle = Lifecycle::new(Arc::new(plan.clone()), Timing::default());
    let mut sim = ProcessSim::new(plan.processes.len());
    sim.input(&mut lifecycle, Input::Start);

    let mut steps = 0;
    while !choices.ran_out {
        steps += 1;
        // The caller may be slow to poll: a request can come between an input and the poll.
        if choices.below(256) < kill_chance {
            sim.input(&mut lifecycle, Input::Kill);
        }
        if sim.run_actions(&mut lifecycle, || choices.below(256) < 26) {
            return steps;
        }
        match choices.input(&plan, &mut sim, &lifecycle) {
            Some(input) => sim.input(&mut lifecycle, input),
            None => lifecycle.handle_timeout(sim.now),
        }
    }

    sim.input(&mut lifecycle, Input::Kill);
    for _ in 0..TIMEOUTS_TO_THE_END {
        steps += 1;
        if sim.run_actions(&mut lifecycle, || false) {
            return steps;
        }
        sim.advance(&lifecycle);
        lifecycle.handle_timeout(sim.now);
    }
    panic!("the lifecycle did not end after a kill, phase {:?}", lifecycle.phase());
}

/// A launch plan with this many helpers.
pub(crate) fn plan(helpers: usize) -> LaunchPlan {
    let run_dir = HostPath::new("/run/capsa/x").expect("absolute");
    let process = |name: &str, ready: Readiness, ends_with_hypervisor| ProcessPlan {
        name: name.to_owned(),
        program: name.to_owned(),
        args: vec![],
        descriptors: vec![],
        ready,
        ends_with_hypervisor,
    };
    let mut processes: Vec<_> = (0..helpers)
        .map(|n| {
            process("helper", Readiness::SocketExists(run_dir.join(&n.to_string())), n % 2 == 0)
        })
        .collect();
    processes.push(process("vmm", Readiness::ControlConnected, true));
    LaunchPlan {
        network: None,
        backend: "test",
        control: ControlPlan { protocol: Protocol::Qmp, endpoint: ControlEndpoint::SocketPair },
        run_dir,
        processes,
        console: ConsolePlan::None,
        shares: Vec::new(),
        serial_port: None,
        vsock: None,
        agent: None,
        overlays: vec![],
        disks: vec![],
        boot: vec![
            Message::qmp("negotiate", "qmp_capabilities"),
            Message::qmp("start the guest", "cont"),
        ],
        power_button: Some(Message::qmp("ask", "system_powerdown")),
        pause: Message::qmp("pause the guest", "stop"),
        resume: Message::qmp("resume the guest", "cont"),
        quit: StopAction::Control(Message::qmp("quit", "quit")),
        crash_reporting: CrashReporting::Event,
        reset_debounce: Duration::ZERO,
        cmdline: String::new(),
        on_reboot: RebootPolicy::End,
        time_limit: None,
        notes: vec![],
    }
}

/// Bytes as a source of choices; all zero once they ran out.
struct Choices<I> {
    bytes: I,
    ran_out: bool,
}

impl<I: Iterator<Item = u8>> Choices<I> {
    /// A number below `end`, which is at most 256.
    fn below(&mut self, end: u16) -> u16 {
        let byte = self.bytes.next();
        self.ran_out |= byte.is_none();
        u16::from(byte.unwrap_or(0)) % end
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 1
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.below(all.len() as u16))]
    }

    /// Up to 256 times `unit`.
    fn span(&mut self, unit: Duration) -> Duration {
        u32::from(self.below(256)) * unit
    }

    fn plan(&mut self) -> LaunchPlan {
        let mut plan = plan(usize::from(self.below(3)));
        plan.power_button = plan.power_button.filter(|_| self.flip());
        plan.time_limit = self.flip().then(|| self.span(Duration::from_millis(240)));
        plan.on_reboot = self.one_of(&[RebootPolicy::End, RebootPolicy::Restart]);
        plan.crash_reporting = match self.below(3) {
            0 => CrashReporting::Event,
            1 => CrashReporting::EventThenExit,
            _ => CrashReporting::ConsoleOnly { power_off: Message::qmp("cut", "cut") },
        };
        if self.flip() {
            plan.quit = StopAction::Signal(Signal::Term);
        }
        plan
    }

    /// The next input: one that is possible in the current state of the processes. `None`: a timeout.
    fn input(
        &mut self,
        plan: &LaunchPlan,
        sim: &mut ProcessSim,
        lifecycle: &Lifecycle,
    ) -> Option<Input> {
        let id = ProcessId(usize::from(self.below(sim.processes.len() as u16)));
        let process = sim.processes[id.0];
        let hypervisor = sim.hypervisor().alive;
        let exited = |exit| {
            if id == plan.hypervisor() {
                Input::HypervisorExited(exit)
            } else {
                Input::HelperExited(id, exit)
            }
        };
        Some(match self.below(17) {
            0 => Input::Stop { grace: self.span(Duration::from_millis(20)) },
            1..=4 if process.alive => Input::Ready(id),
            5..=7 if !sim.sent.is_empty() => {
                let message = sim.sent.remove(usize::from(self.below(sim.sent.len() as u16)));
                Input::Replied(
                    message,
                    match self.below(10) {
                        0 => ReplyOutcome::Rejected("no".into()),
                        1 => ReplyOutcome::Retry,
                        2 => ReplyOutcome::Lost("connection closed".into()),
                        _ => ReplyOutcome::Done,
                    },
                )
            }
            8 if process.alive => {
                sim.processes[id.0].alive = false;
                exited(Exit::with_code(i32::from(self.below(2))))
            }
            9 if hypervisor && self.flip() => Input::Guest(GuestEvent::Reset),
            9 if hypervisor && self.flip() => Input::EventsLost("invalid JSON".into()),
            9 if hypervisor => Input::ControlLost,
            10 if hypervisor && self.flip() => {
                Input::ConsoleCrash(self.one_of(&[ConsoleCrash::Panic, ConsoleCrash::Restart]))
            }
            10 if hypervisor && self.flip() => Input::ConsolePanic,
            10 if hypervisor && self.flip() => Input::ConsoleNoPanic,
            10 if hypervisor => Input::Guest(GuestEvent::Panicked),
            11 if hypervisor && self.below(4) == 0 => Input::Guest(GuestEvent::PoweredOff),
            12 if process.alive && process.killed => {
                sim.processes[id.0].alive = false;
                exited(Exit::new(None, Some(9)))
            }
            13 if hypervisor && self.below(8) == 0 => Input::Guest(GuestEvent::ExternalQuit),
            13 if hypervisor && self.below(8) == 0 => Input::Guest(GuestEvent::CpuFailed),
            14 if hypervisor && self.flip() => Input::Guest(GuestEvent::Paused),
            14 if hypervisor => Input::Guest(GuestEvent::Resumed),
            15 if matches!(lifecycle.phase(), Phase::Running | Phase::Paused) => {
                if self.flip() {
                    Input::Pause
                } else {
                    Input::Resume
                }
            }
            _ if sim.advance(lifecycle) => return None,
            _ => Input::Kill,
        })
    }
}

#[derive(Clone, Copy, Default)]
struct SimProcess {
    alive: bool,
    killed: bool,
}

/// The simulated processes and the clock, and what the checks need.
struct ProcessSim {
    now: Instant,
    /// The last one is the hypervisor.
    processes: Vec<SimProcess>,
    /// The messages without a reply.
    sent: Vec<Message>,
    terminal: Option<VmStatus>,
}

impl ProcessSim {
    fn new(processes: usize) -> Self {
        let processes = vec![SimProcess::default(); processes];
        Self { now: Instant::ZERO, processes, sent: vec![], terminal: None }
    }

    fn input(&self, lifecycle: &mut Lifecycle, input: Input) {
        lifecycle.handle_input(self.now, input).expect("the input is valid in this phase");
    }

    /// Advances the clock to the next deadline; `false` if there is none.
    fn advance(&mut self, lifecycle: &Lifecycle) -> bool {
        let deadline = lifecycle.poll_timeout();
        self.now = deadline.map_or(self.now, |deadline| self.now.max(deadline.at));
        deadline.is_some()
    }

    /// Carries out all queued actions; `true` if one was the release.
    fn run_actions(
        &mut self,
        lifecycle: &mut Lifecycle,
        mut launch_fails: impl FnMut() -> bool,
    ) -> bool {
        while let Some(action) = lifecycle.poll_action() {
            match action {
                Action::Launch(id) => {
                    assert!(!self.processes[id.0].alive, "launched twice");
                    self.processes[id.0].alive = !launch_fails();
                    if !self.processes[id.0].alive {
                        self.input(lifecycle, Input::LaunchFailed(id, Cause::new("no")));
                    }
                }
                Action::Send(message) => self.sent.push(message),
                Action::Signal(id, signal) => {
                    let hypervisor = self.hypervisor();
                    assert!(
                        id.0 == self.processes.len() - 1 || !hypervisor.alive || hypervisor.killed,
                        "a helper was signalled before the hypervisor exited"
                    );
                    self.processes[id.0].killed |= signal == Signal::Kill;
                }
                Action::Release => {
                    self.check_release(lifecycle);
                    return true;
                }
                _ => {}
            }
            self.check_status(lifecycle);
        }
        self.check_status(lifecycle);
        false
    }

    fn check_status(&mut self, lifecycle: &Lifecycle) {
        let status = lifecycle.status();
        match &self.terminal {
            Some(terminal) => assert_eq!(status, terminal, "a terminal status changed"),
            None if status.is_terminal() => self.terminal = Some(status.clone()),
            None => {}
        }
    }

    /// After the release: it was the last action, and no process is left.
    fn check_release(&mut self, lifecycle: &mut Lifecycle) {
        assert_eq!(lifecycle.poll_action(), None, "the release is not last");
        assert!(lifecycle.status().is_terminal(), "released in status {:?}", lifecycle.status());
        assert!(lifecycle.report().is_some(), "an end without a report");
        for (id, process) in self.processes.iter().enumerate() {
            assert!(!process.alive || process.killed, "process {id} left running");
        }
        self.check_status(lifecycle);
        // Late events and requests change nothing.
        for input in [
            Input::Guest(GuestEvent::Reset),
            Input::Guest(GuestEvent::CpuFailed),
            Input::Guest(GuestEvent::Panicked),
            Input::ConsolePanic,
            Input::ConsoleNoPanic,
            Input::ConsoleCrash(ConsoleCrash::Panic),
            Input::ControlLost,
            Input::Stop { grace: Duration::ZERO },
            Input::Kill,
        ] {
            self.input(lifecycle, input);
            assert_eq!(lifecycle.poll_action(), None, "an action after the release");
            self.check_status(lifecycle);
        }
        lifecycle.handle_timeout(self.now);
        assert_eq!(lifecycle.poll_action(), None, "an action after the release");
        assert_eq!(lifecycle.poll_timeout(), None, "a deadline after the release");
    }

    fn hypervisor(&self) -> SimProcess {
        *self.processes.last().expect("every plan has a hypervisor")
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    #[test]
    fn random_inputs_keep_invariants() {
        let longest = (0..20_000).map(|seed| {
            let steps = catch_unwind(|| {
                let mut rng = fastrand::Rng::with_seed(seed);
                super::run_bytes(core::iter::repeat_with(|| rng.u8(..)).take(50_000))
            });
            steps.unwrap_or_else(|_| panic!("an invariant fails with seed {seed}"))
        });
        assert!(longest.max().unwrap() < 10_000, "random inputs alone end the lifecycle");
    }

    #[test]
    fn empty_input_keeps_invariants() {
        super::run(b"");
    }
}
