//! The laws of the lifecycle in a world where anything may happen next; a fuzz target is one call
//! of [`run`].
//!
//! Bytes are the world's choices: first the plan, then, step by step, which process appears, dies
//! or answers, what the guest does and what the owner wishes. When they run out the owner kills,
//! nothing answers any more, and timeouts alone have to lead to the end.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Action, Exit, Input, Lifecycle, Timing, VmStatus};
use crate::backend::ReplyOutcome;
use crate::console::ConsoleCrash;
use crate::path::HostPath;
use crate::plan::{
    ConsolePlan, ControlPlan, CrashReporting, LaunchPlan, Message, ProcessId, ProcessPlan,
    Protocol, Readiness, Signal, StopAction,
};
use crate::spec::RebootPolicy;
use crate::time::Instant;

/// More timeouts than the way from any phase to the end has.
const TIMEOUTS_TO_THE_END: usize = 8;

/// Lives one life as `data` has it, and asserts the module's laws after each step.
///
/// # Panics
///
/// When a law does not hold.
pub fn run(data: &[u8]) {
    live(data.iter().copied());
}

/// [`run`] over bytes from anywhere. Returns the number of steps that the life took.
pub(super) fn live(bytes: impl Iterator<Item = u8>) -> usize {
    let mut choices = Choices { bytes, ran_out: false };
    let plan = choices.plan();
    let impatience = choices.one_of(&[0, 2, 20]);
    let mut lifecycle = Lifecycle::new(&plan, Timing::default());
    let mut world = World::new(plan.processes.len());
    world.tell(&mut lifecycle, Input::Start);

    let mut steps = 0;
    while !choices.ran_out {
        steps += 1;
        // A machine may be slow to be polled: wishes can come between input and poll.
        if choices.below(256) < impatience {
            world.tell(&mut lifecycle, Input::Kill);
        }
        if world.settle(&mut lifecycle, || choices.below(256) < 26) {
            return steps;
        }
        let input = choices.input(&mut world, &lifecycle);
        world.tell(&mut lifecycle, input);
    }

    world.tell(&mut lifecycle, Input::Kill);
    for _ in 0..TIMEOUTS_TO_THE_END {
        steps += 1;
        if world.settle(&mut lifecycle, || false) {
            return steps;
        }
        world.wait(&lifecycle);
        world.tell(&mut lifecycle, Input::Timeout);
    }
    panic!("after a kill, no end in sight in phase {:?}", lifecycle.phase());
}

/// A plan with this many helpers before the hypervisor.
pub(super) fn plan(helpers: usize) -> LaunchPlan {
    let run_dir = HostPath::new("/run/capsa/x").expect("absolute");
    let process = |name: &str, ready: Readiness, ends_with_hypervisor| ProcessPlan {
        name: name.to_owned(),
        program: name.to_owned(),
        args: vec![],
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
        backend: "test",
        control: ControlPlan { protocol: Protocol::Qmp, socket: run_dir.join("control") },
        event_pipe: None,
        run_dir,
        processes,
        console: ConsolePlan::None,
        vsock: None,
        overlays: vec![],
        boot: vec![Message::qmp("agree", "qmp_capabilities"), Message::qmp("go", "cont")],
        power_button: Some(Message::qmp("ask", "system_powerdown")),
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

    /// What happens next: something that can, the world being as it is.
    fn input(&mut self, world: &mut World, lifecycle: &Lifecycle) -> Input {
        let id = ProcessId(usize::from(self.below(world.processes.len() as u16)));
        let process = world.processes[id.0];
        let hypervisor = world.hypervisor().alive;
        match self.below(15) {
            0 => Input::Stop { grace: self.span(Duration::from_millis(20)) },
            1..=4 if process.alive => Input::Ready(id),
            5..=7 => Input::Replied(match self.below(10) {
                0 => ReplyOutcome::Rejected("no".into()),
                1 => ReplyOutcome::Retry,
                2 => ReplyOutcome::Lost("gone".into()),
                _ => ReplyOutcome::Done,
            }),
            8 if process.alive => {
                world.processes[id.0].alive = false;
                Input::Exited(id, Exit::with_code(i32::from(self.below(2))))
            }
            9 if hypervisor && self.flip() => Input::GuestReset,
            9 if hypervisor && self.flip() => Input::EventsLost("nonsense".into()),
            9 if hypervisor => Input::ControlLost,
            10 if hypervisor && self.flip() => {
                Input::ConsoleCrash(self.one_of(&[ConsoleCrash::Panic, ConsoleCrash::Restart]))
            }
            10 if hypervisor => Input::GuestPanicked { certain: self.flip() },
            11 if hypervisor && self.below(4) == 0 => Input::GuestPoweredOff,
            12 if process.alive && process.killed => {
                world.processes[id.0].alive = false;
                Input::Exited(id, Exit { code: None, signal: Some(9), stderr_tail: String::new() })
            }
            13 if hypervisor && self.below(8) == 0 => Input::ExternalQuit,
            13 if hypervisor && self.below(8) == 0 => Input::CpuFailed,
            _ if world.wait(lifecycle) => Input::Timeout,
            _ => Input::Kill,
        }
    }
}

#[derive(Clone, Copy, Default)]
struct SimProcess {
    alive: bool,
    killed: bool,
}

/// What there is outside the machine, and what is remembered to judge it by.
struct World {
    now: Instant,
    /// The hypervisor is the last.
    processes: Vec<SimProcess>,
    terminal: Option<VmStatus>,
}

impl World {
    fn new(processes: usize) -> Self {
        let processes = vec![SimProcess::default(); processes];
        Self { now: Instant::ZERO, processes, terminal: None }
    }

    fn tell(&self, lifecycle: &mut Lifecycle, input: Input) {
        lifecycle.handle_input(self.now, input).expect("nothing here may be refused");
    }

    /// Goes to the machine's next deadline. False when it has none.
    fn wait(&mut self, lifecycle: &Lifecycle) -> bool {
        let deadline = lifecycle.poll_timeout();
        self.now = deadline.map_or(self.now, |deadline| self.now.max(deadline.at));
        deadline.is_some()
    }

    /// Carries out what the machine wants. True when that was the end.
    fn settle(&mut self, lifecycle: &mut Lifecycle, mut spawn_fails: impl FnMut() -> bool) -> bool {
        while let Some(action) = lifecycle.poll_action() {
            match action {
                Action::Spawn(id) => {
                    assert!(!self.processes[id.0].alive, "spawned twice");
                    let fails = spawn_fails();
                    self.processes[id.0].alive = !fails;
                    let failed = || Input::SpawnFailed(id, "no".into());
                    self.tell(lifecycle, if fails { failed() } else { Input::Spawned(id) });
                }
                Action::Signal(id, signal) => {
                    let hypervisor = self.hypervisor();
                    assert!(
                        id.0 == self.processes.len() - 1 || !hypervisor.alive || hypervisor.killed,
                        "a helper was signalled before the hypervisor was gone"
                    );
                    self.processes[id.0].killed |= signal == Signal::Kill;
                }
                Action::Release => {
                    self.judge_the_end(lifecycle);
                    return true;
                }
                _ => {}
            }
            self.judge_the_status(lifecycle);
        }
        self.judge_the_status(lifecycle);
        false
    }

    fn judge_the_status(&mut self, lifecycle: &Lifecycle) {
        let status = lifecycle.status();
        match &self.terminal {
            Some(terminal) => assert_eq!(status, terminal, "a terminal status changed"),
            None if status.is_terminal() => self.terminal = Some(status.clone()),
            None => {}
        }
    }

    /// The release has come: it was the last word, and nothing was left behind.
    fn judge_the_end(&mut self, lifecycle: &mut Lifecycle) {
        assert_eq!(lifecycle.poll_action(), None, "the release is not last");
        assert!(lifecycle.status().is_terminal(), "released in status {:?}", lifecycle.status());
        assert!(lifecycle.report().is_some(), "an end without a report");
        for (id, process) in self.processes.iter().enumerate() {
            assert!(!process.alive || process.killed, "process {id} left running");
        }
        self.judge_the_status(lifecycle);
        // Late news and late wishes change nothing.
        for input in [
            Input::GuestReset,
            Input::CpuFailed,
            Input::GuestPanicked { certain: true },
            Input::ConsoleCrash(ConsoleCrash::Panic),
            Input::Replied(ReplyOutcome::Done),
            Input::Stop { grace: Duration::ZERO },
            Input::Kill,
            Input::Timeout,
        ] {
            self.tell(lifecycle, input);
            assert_eq!(lifecycle.poll_action(), None, "an action after the release");
            self.judge_the_status(lifecycle);
        }
        assert_eq!(lifecycle.poll_timeout(), None, "a deadline after the release");
    }

    fn hypervisor(&self) -> SimProcess {
        *self.processes.last().expect("every plan has one")
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    #[test]
    fn the_laws_hold_over_many_random_lives() {
        let longest = (0..20_000).map(|seed| {
            let held = catch_unwind(|| {
                let mut rng = fastrand::Rng::with_seed(seed);
                super::live(core::iter::repeat_with(|| rng.u8(..)).take(50_000))
            });
            held.unwrap_or_else(|_| panic!("broken by seed {seed}"))
        });
        assert!(longest.max().unwrap() < 10_000, "chance alone has to come to an end");
    }

    #[test]
    fn no_choices_at_all_is_a_life_too() {
        super::run(b"");
    }
}
