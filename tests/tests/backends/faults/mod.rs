//! VMMs that misbehave: Capsa returns a typed error or a stop report with the reason, in
//! bounded time, and leaves no process and no directory behind.
//!
//! What holds for every backend is tested here, with the table of [`Claims`] of each. What holds for one
//! is in its module.

mod cloud_hypervisor;
mod vfkit;

use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, Instant};

use capsa::blocking::{VmConsole, VmHandle};
use capsa::internal::BuilderForTests as _;
use capsa::{EndedBy, Error, LinuxVmBuilder, StopStep, VmStatus};
use capsa_stand_ins::FaultyStandIn;
use capsa_testkit::nano::{self, Nano};
use capsa_testkit::processes;
use capsa_testkit::vm::{NanoGuest, PATIENCE, eventually, in_time};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A time limit that the test waits for.
const SHORT: Duration = Duration::from_millis(300);

/// A time limit that must not be reached: longer than any test runs.
const NEVER: Duration = Duration::from_secs(3600);

const HEEDS_BUTTON: Nano = Nano { power_button: true };
const IGNORES_BUTTON: Nano = Nano { power_button: false };

type Change<'a> = &'a dyn Fn(LinuxVmBuilder) -> LinuxVmBuilder;

/// What holds for every backend, with the faults `F` of one.
struct Claims<F: 'static> {
    /// Builds a VM with these faults; `None`, and the test counts as skipped, where no guest can run.
    vm: fn(Nano, &[F], Change<'_>) -> Option<FaultyVm>,
    /// The control socket appears after this time.
    socket_after: fn(Duration) -> F,
    /// Faults that fail a start, and the error.
    failed_starts: &'static [(F, Text)],
    /// Faults that make a start hang, and the time limit that ends it.
    hanging_starts: &'static [(F, Limit)],
    stop_ladders: &'static [Ladder<F>],
    ignores_sigterm: F,
}

/// How a text is compared.
#[derive(Debug, Clone, Copy)]
enum Text {
    /// The concatenation of the two.
    Exact(&'static str, &'static str),
    /// Starts with the first and ends with the second.
    Around(&'static str, &'static str),
    Contains(&'static str),
}

impl Text {
    fn matches(self, text: &str) -> bool {
        match self {
            Self::Exact(start, end) => text == format!("{start}{end}"),
            Self::Around(start, end) => text.starts_with(start) && text.ends_with(end),
            Self::Contains(part) => text.contains(part),
        }
    }
}

/// The time limit that ends a start.
#[derive(Debug, Clone, Copy)]
enum Limit {
    Launch,
    Boot,
}

/// A stop, and the steps it takes.
struct Ladder<F: 'static> {
    guest: Nano,
    faults: &'static [F],
    grace: Duration,
    steps: &'static [StopStep],
    /// The VMM exits with status 4 instead of stopping.
    dies: bool,
}

impl<F> Ladder<F> {
    const fn new(faults: &'static [F], grace: Duration, steps: &'static [StopStep]) -> Self {
        Self { guest: HEEDS_BUTTON, faults, grace, steps, dies: false }
    }
}

/// Writes a test for each function of this file that takes claims.
macro_rules! test_claims {
    ($claims:ident) => {
        $crate::faults::test_claims! { $claims:
            start_socket_late_is_awaited,
            start_failing_names_reason,
            start_hanging_is_given_up,
            start_hanging_can_be_stopped,
            stop_step_failing_leads_to_next,
            sigterm_ignored_changes_nothing,
        }
    };
    ($claims:ident: $($test:ident,)+) => {
        $(#[test]
        fn $test() {
            super::$test(&$claims);
        })+
    };
}
use test_claims;

fn start_socket_late_is_awaited<F>(claims: &Claims<F>) {
    let late = Duration::from_millis(700);
    let begun = Instant::now();
    let Some(it) = (claims.vm)(HEEDS_BUTTON, &[(claims.socket_after)(late)], &|vm| vm) else {
        return;
    };
    let mut console = it.ready();
    assert!(begun.elapsed() >= late);
    console.write(&[nano::POWER_OFF]).unwrap();
    assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![]));
    it.leaves_nothing();
}

fn start_failing_names_reason<F: Copy + Debug>(claims: &Claims<F>) {
    for (fault, want) in claims.failed_starts {
        let Some(it) = (claims.vm)(HEEDS_BUTTON, &[*fault], &|vm| vm) else { return };
        let reason = it.start_error();
        assert!(want.matches(&reason), "{fault:?}: {reason}");
        it.leaves_nothing();
    }
}

fn start_hanging_is_given_up<F: Copy + Debug>(claims: &Claims<F>) {
    for (fault, limit) in claims.hanging_starts {
        let limited = |vm: LinuxVmBuilder| {
            vm.timing(|timing| match limit {
                Limit::Launch => timing.launch = SHORT,
                Limit::Boot => timing.boot = SHORT,
            })
        };
        let Some(it) = (claims.vm)(HEEDS_BUTTON, &[*fault], &limited) else { return };
        let event = match limit {
            Limit::Launch => "control channel is connected",
            Limit::Boot => "boot message is answered",
        };
        let want = format!("timed out after {SHORT:?}, waiting until {event}");
        // The last lines of the VMM may follow.
        let error = it.start_error();
        assert!(error.starts_with(&want), "{fault:?}: {error}");
        it.leaves_nothing();
    }
}

fn start_hanging_can_be_stopped<F: Copy + Debug>(claims: &Claims<F>) {
    for (fault, _) in claims.hanging_starts {
        let Some(it) = (claims.vm)(HEEDS_BUTTON, &[*fault], &|vm| vm) else { return };
        let starting = {
            let vm = it.vm.clone();
            std::thread::spawn(move || vm.start())
        };
        eventually("the VMM runs", || it.vm.hypervisor_pid().is_some());
        // In most runs this is long enough to reach the point where the start hangs.
        std::thread::sleep(Duration::from_millis(100));
        it.stop(NEVER);
        let started = starting.join().unwrap();
        assert!(matches!(started, Err(Error::StartFailed(_))), "{fault:?}: {started:?}");
        it.leaves_nothing();
    }
}

fn stop_step_failing_leads_to_next<F: Copy + Debug>(claims: &Claims<F>) {
    for Ladder { guest, faults, grace, steps, dies } in claims.stop_ladders {
        let is_killed = steps.contains(&StopStep::Killed);
        let quit = |vm: LinuxVmBuilder| {
            vm.timing(|timing| timing.quit = if is_killed { SHORT } else { NEVER })
        };
        let Some(it) = (claims.vm)(*guest, faults, &quit) else { return };
        let _console = it.ready();
        it.stop(*grace);
        let (ended_by, taken) = it.ended();
        assert_eq!(taken, *steps, "{faults:?}");
        match ended_by {
            EndedBy::Owner => assert!(!dies, "{faults:?}"),
            EndedBy::HypervisorLost { reason } => {
                assert!(*dies && reason.contains("status 4"), "{faults:?}: {reason}");
            }
            other => panic!("{faults:?}: {other:?}"),
        }
        it.leaves_nothing();
    }
}

fn sigterm_ignored_changes_nothing<F: Copy>(claims: &Claims<F>) {
    let Some(it) = (claims.vm)(HEEDS_BUTTON, &[claims.ignores_sigterm], &|vm| vm) else { return };
    let mut console = it.ready();
    let group = Pid::from_raw(it.vm.hypervisor_pid().unwrap().cast_signed());
    killpg(group, Signal::SIGTERM).unwrap();
    console.write(b"still there").unwrap();
    console.wait_for_timeout("still there", PATIENCE).unwrap();
    assert_eq!(it.vm.status(), VmStatus::Running);
    it.stop(NEVER);
    assert_eq!(it.ended(), (EndedBy::GuestPowerOff, vec![StopStep::PowerButton]));
    it.leaves_nothing();
}

/// A VM on a stand-in with faults. No limit of its lifecycle is reached unless the test changes it.
struct FaultyVm {
    vm: VmHandle,
    guest: NanoGuest,
    faulty: FaultyStandIn,
}

impl FaultyVm {
    fn new(
        builder: LinuxVmBuilder,
        change: Change<'_>,
        guest: NanoGuest,
        faulty: FaultyStandIn,
    ) -> Option<Self> {
        let unlimited = builder.timing(|timing| {
            timing.launch = NEVER;
            timing.boot = NEVER;
            timing.quit = NEVER;
        });
        let vm = change(unlimited).build_blocking().unwrap();
        Some(Self { vm, guest, faulty })
    }

    /// Starts the VM, which fails, and returns the reason.
    fn start_error(&self) -> String {
        let vm = self.vm.clone();
        match in_time("the start returns", move || vm.start()) {
            Err(Error::StartFailed(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// Starts the VM and waits for the guest.
    fn ready(&self) -> VmConsole {
        let vm = self.vm.clone();
        in_time("the start returns", move || vm.start()).unwrap();
        let mut console = self.vm.console().unwrap();
        console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
        console
    }

    fn stop(&self, grace: Duration) {
        let vm = self.vm.clone();
        in_time("the stop returns", move || vm.stop_with_timeout(grace)).unwrap();
    }

    /// Waits for the end of the VM: why it ended, and the steps that were needed.
    fn ended(&self) -> (EndedBy, Vec<StopStep>) {
        self.vm.wait_timeout(PATIENCE).unwrap().expect("the VM ends");
        let report = self.vm.stop_report().unwrap();
        (report.ended_by, report.steps)
    }

    /// Waits until no process of the VM is left. Its directory is removed by then.
    fn leaves_nothing(self) {
        let run_dir = self.vm.launch_plan().run_dir().display().to_string();
        let program = self.faulty.program().display().to_string();
        let marks = [program, self.guest.dir().display().to_string()];
        let has_mark = |arguments: &str| marks.iter().any(|mark| arguments.contains(mark));
        eventually("the processes of the VM have exited", || {
            !processes::all().iter().any(|process| has_mark(&process.arguments))
        });
        assert!(!Path::new(&run_dir).exists());
    }
}

/// The nano guest; `None`, and the test counts as skipped, where no QEMU is installed.
fn guest(nano: Nano) -> Option<NanoGuest> {
    if nano.power_button { NanoGuest::new() } else { NanoGuest::without_power_button() }
}
