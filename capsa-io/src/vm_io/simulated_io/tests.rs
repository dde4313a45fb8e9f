//! The I/O of simulated guests: budgets, and the order of what a guest does.

use super::*;
use capsa_proto::console::{ConsoleMux, Login, Overflow, WaitKind};
use capsa_proto::lifecycle::Timing;
use capsa_proto::path::HostPath;
use capsa_proto::plan::RunDirPlan;
use capsa_proto::sim::{self, ScriptedGuest, SimBackend};
use capsa_proto::spec::{ConsoleMode, RebootPolicy};
use capsa_proto::vm::VmEvent;
use std::sync::Arc;

/// A VM with a simulated guest.
struct SimulatedVm {
    core: VmCore,
    io: SimulatedIo,
    clock: MonotonicClock,
}

impl SimulatedVm {
    fn started(guest: ScriptedGuest, policy: RebootPolicy, read_budget: usize) -> Self {
        let run_dir = RunDirPlan::new(HostPath::new("/run/capsa/x").unwrap());
        let plan = Arc::new(sim::plan(&run_dir, ConsoleMode::Enabled, policy, None));
        let io = SimulatedIo::new(guest.into(), read_budget).unwrap();
        let console = ConsoleMux::new(1 << 20, Overflow::DropOldest);
        let backend = Arc::new(SimBackend::default());
        let mut core = VmCore::new(plan, backend, console, Timing::default());
        core.start(Instant::ZERO).unwrap();
        Self { core, io, clock: MonotonicClock::new() }
    }

    /// Returns how many bytes of console output the call passed.
    fn on_ready(&mut self) -> u64 {
        let before = self.end();
        self.io.on_ready(&mut self.core, &mut self.clock).unwrap();
        self.end() - before
    }

    fn end(&self) -> u64 {
        self.core.console().scrollback().end()
    }

    fn has_work(&self) -> bool {
        self.io.has_work() || self.core.poll_timeout().is_some()
    }
}

#[test]
fn on_ready_respects_read_budget() {
    let guest = ScriptedGuest::new().print("x".repeat(1000));
    let mut vm = SimulatedVm::started(guest, RebootPolicy::End, 10);
    while vm.has_work() {
        let passed = vm.on_ready();
        assert!(passed <= 10, "{passed} bytes");
    }
    assert_eq!(vm.end(), 1000);
}

#[test]
fn kill_passes_output_from_before_it() {
    let guest = ScriptedGuest::new().print("x".repeat(1000));
    let mut vm = SimulatedVm::started(guest, RebootPolicy::End, 10);
    while vm.end() == 0 {
        vm.on_ready();
    }
    vm.core.kill(vm.clock.now()).unwrap();
    while vm.core.report().is_none() {
        vm.on_ready();
    }
    assert_eq!(vm.end(), 1000);
}

#[test]
fn reboot_is_known_before_next_output() {
    let guest = ScriptedGuest::new().login("root", Some("secret")).reboot();
    let mut vm = SimulatedVm::started(guest, RebootPolicy::Restart, usize::MAX);
    let now = vm.clock.now();
    let login = Login::new("root", Some("secret"), now, None).unwrap();
    let login = vm.core.with_console(|console, events| {
        let reader = console.add_reader();
        console.begin(now, reader, WaitKind::Script(Box::new(login)), events)
    });
    let mut reboots = 0;
    while reboots < 3 {
        vm.on_ready();
        while let Some(event) = vm.core.poll_event() {
            reboots += usize::from(event == VmEvent::Rebooted);
            assert_ne!(event, VmEvent::Ended(login), "{}", vm.core.status());
        }
    }
}
