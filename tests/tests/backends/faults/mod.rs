//! A machine on a stand-in that breaks on order, and all that must be gone when it is over.

mod cloud_hypervisor;
mod vfkit;

use std::path::Path;
use std::time::{Duration, Instant};

use capsa::blocking::{VmConsole, VmHandle};
use capsa::{EndedBy, Error, LinuxVmBuilder, StopStep, VmStatus};
use capsa_stand_ins::Faulty;
use capsa_testkit::vm::{NanoGuest, PATIENCE, eventually};
use capsa_testkit::{nano, processes};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// What happens at once on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The machine.
pub(crate) struct Machine {
    pub(crate) vm: VmHandle,
    pub(crate) begun: Instant,
    guest: NanoGuest,
    _faulty: Faulty,
}

impl Machine {
    /// Builds it.
    pub(crate) fn new(builder: LinuxVmBuilder, guest: NanoGuest, faulty: Faulty) -> Self {
        let vm = builder.build_blocking().unwrap();
        Self { vm, guest, _faulty: faulty, begun: Instant::now() }
    }

    /// Why it does not start.
    pub(crate) fn failure(&self) -> String {
        match self.vm.start() {
            Err(Error::StartFailed(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    /// Starts it and waits for the guest.
    pub(crate) fn listening(&self) -> VmConsole {
        self.vm.start().unwrap();
        let mut console = self.vm.console().unwrap();
        console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
        console
    }

    /// What ended it, and the steps to that.
    pub(crate) fn ended(&self) -> (EndedBy, Vec<StopStep>) {
        self.vm.wait_timeout(PATIENCE).unwrap().expect("it ends");
        let report = self.vm.stop_report().unwrap();
        (report.ended_by, report.steps)
    }

    /// Its hypervisor's control socket comes `late`, and is waited for.
    pub(crate) fn waits_for_its_socket(self, late: Duration) {
        let mut console = self.listening();
        assert!(self.begun.elapsed() >= late);
        console.write(&[nano::POWER_OFF]).unwrap();
        assert_eq!(self.ended(), (EndedBy::GuestPowerOff, vec![]));
        self.nothing_is_left(SOON);
    }

    /// Its start hangs, and is stopped.
    pub(crate) fn hangs_until_it_is_stopped(self) {
        let starting = {
            let vm = self.vm.clone();
            std::thread::spawn(move || vm.start())
        };
        eventually("its hypervisor runs", || self.vm.hypervisor_pid().is_some());
        std::thread::sleep(Duration::from_millis(300));
        self.vm.stop().unwrap();
        let started = starting.join().unwrap();
        assert!(matches!(started, Err(Error::StartFailed(_))), "{started:?}");
        self.nothing_is_left(SOON);
    }

    /// It is stopped with this grace, which takes these steps. `dies`: its hypervisor ends with status
    /// 4 over it.
    pub(crate) fn climbs(self, grace: Duration, want: &[StopStep], dies: bool) {
        let _console = self.listening();
        self.vm.stop_with_timeout(grace).unwrap();
        let (ended_by, steps) = self.ended();
        assert_eq!(steps, want);
        match ended_by {
            EndedBy::Owner => assert!(!dies),
            EndedBy::HypervisorLost { reason } => {
                assert!(dies && reason.contains("status 4"), "{reason}")
            }
            other => panic!("{other:?}"),
        }
        self.nothing_is_left(SOON);
    }

    /// Its hypervisor ignores SIGTERM, and goes on.
    pub(crate) fn survives_a_sigterm(self) {
        let mut console = self.listening();
        let group = Pid::from_raw(self.vm.hypervisor_pid().unwrap().cast_signed());
        killpg(group, Signal::SIGTERM).unwrap();
        console.write(b"still there").unwrap();
        console.wait_for_timeout("still there", PATIENCE).unwrap();
        assert_eq!(self.vm.status(), VmStatus::Running);
        self.vm.stop_with_timeout(PATIENCE).unwrap();
        assert_eq!(self.ended(), (EndedBy::GuestPowerOff, vec![StopStep::PowerButton]));
        self.nothing_is_left(SOON);
    }

    /// It is over, soon enough, and nothing is left.
    pub(crate) fn nothing_is_left(self, limit: Duration) {
        let took = self.begun.elapsed();
        assert!(took < limit, "it took {took:?}");
        let run_dir = self.vm.launch_plan().run_dir.to_string();
        let marks = [run_dir.clone(), self.guest.dir().display().to_string()];
        eventually("its processes are gone", || processes_with(&marks).is_empty());
        assert!(!Path::new(&run_dir).exists());
    }
}

/// Their starts hang and are given up, each with its reason: side by side, for that takes half a minute.
pub(crate) fn are_given_up(hanging: impl IntoIterator<Item = (Option<Machine>, &'static str)>) {
    let started = hanging.into_iter().filter_map(|(it, want)| Some((it?, want)));
    let given_up = started.map(|(it, want)| {
        std::thread::spawn(move || {
            assert_eq!(it.failure(), want);
            it.nothing_is_left(Duration::from_secs(45));
        })
    });
    // All of them run before the first is waited for.
    for it in given_up.collect::<Vec<_>>() {
        it.join().unwrap();
    }
}

/// The processes that have one of `marks` in their arguments.
fn processes_with(marks: &[String]) -> Vec<String> {
    let has_mark = |arguments: &String| marks.iter().any(|mark| arguments.contains(mark));
    processes::all().into_iter().map(|process| process.arguments).filter(has_mark).collect()
}
