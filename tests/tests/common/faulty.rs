//! A machine on a stand-in that breaks on order, and all that must be gone when it is over.

use std::path::Path;
use std::time::{Duration, Instant};

use capsa::blocking::{VmConsole, VmHandle};
use capsa::{EndedBy, Error, LinuxVmBuilder, StopStep};
use capsa_test::processes;
use capsa_test::stand_in::Faulty;
use capsa_test::vm::{NanoGuest, PATIENCE, eventually};

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

/// The processes that have one of `marks` in their arguments.
fn processes_with(marks: &[String]) -> Vec<String> {
    let has_mark = |arguments: &String| marks.iter().any(|mark| arguments.contains(mark));
    processes::all().into_iter().map(|process| process.arguments).filter(has_mark).collect()
}
