//! The console of a VM: its stream, its window and its budget.

use super::*;
use capsa_proto::console::{ConsoleMux, Overflow, WRITE_QUEUE};
use capsa_proto::lifecycle::Timing;
use capsa_proto::path::HostPath;
use capsa_proto::plan::{ProcessPlan, RunDirPlan};
use capsa_proto::sim::{self, SimBackend};
use capsa_proto::spec::{ConsoleMode, RebootPolicy};
use capsa_proto::vm::VmEvent;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// A VM without processes whose console is a socket pair.
pub(crate) struct ConsoleTest {
    pub(crate) core: VmCore,
    io: ProcessIo,
    clock: MonotonicClock,
    pub(crate) guest: UnixStream,
}

impl ConsoleTest {
    pub(crate) fn new(console: ConsoleMux, read_budget: usize) -> Self {
        let run_dir = RunDirPlan::new(HostPath::new("/run/capsa/x").unwrap());
        let plan = sim::plan(&run_dir, ConsoleMode::Enabled, RebootPolicy::End, None);
        let plan = Arc::new(plan);
        let mut io = ProcessIo::new(Arc::clone(&plan), None, None, read_budget).unwrap();
        let backend = Arc::new(SimBackend::default());
        let mut core = VmCore::new(plan, backend, console, Timing::default());
        let (ours, guest) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        guest.set_nonblocking(true).unwrap();
        io.attach(Channel::Console, ByteStream::Socket(ours)).unwrap();
        core.handle_connected(Instant::ZERO, Channel::Console);
        let mut test = Self { core, io, clock: MonotonicClock::new(), guest };
        test.sync();
        test
    }

    pub(crate) fn sync(&mut self) {
        self.io.sync(&mut self.core, Instant::ZERO);
    }

    /// Whether the poller reports the console, and how much output it has after a call.
    fn on_ready(&mut self) -> (bool, u64) {
        let mut ready = ReadyEvents::new();
        self.io.poll.wait(Some(Duration::ZERO), &mut ready).unwrap();
        self.io.on_ready(&mut self.core, &mut self.clock).unwrap();
        (ready.has(key(Channel::Console)), self.core.console().scrollback().end())
    }
}

#[test]
fn paused_console_leaves_output_in_the_socket() {
    let mut test = ConsoleTest::new(ConsoleMux::new(8, Overflow::Pause), 100);
    test.guest.write_all(b"more than there is room for").unwrap();
    assert_eq!(test.on_ready(), (true, 8));
    assert_eq!(test.on_ready(), (false, 8), "no reader has made room");
    test.core.with_console(|console, _| console.release_back_pressure());
    test.sync();
    assert_eq!(test.on_ready(), (true, 27));
    assert_eq!(test.core.console().scrollback().start(), 0, "no byte is lost");
}

#[test]
fn paused_console_closed_by_peer_is_not_reported() {
    let mut test = ConsoleTest::new(ConsoleMux::new(8, Overflow::Pause), 100);
    test.guest.write_all(b"more than there is room for").unwrap();
    assert_eq!(test.on_ready(), (true, 8));
    test.guest.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(test.on_ready(), (false, 8), "an event loop would spin");
    test.core.with_console(|console, _| console.release_back_pressure());
    test.sync();
    assert_eq!(test.on_ready(), (true, 27));
    assert!(test.core.console().is_closed());
}

#[test]
fn release_reads_what_back_pressure_left_behind() {
    let mut test = ConsoleTest::new(ConsoleMux::new(8, Overflow::Pause), 100);
    test.guest.write_all(b"more than there is room for").unwrap();
    assert_eq!(test.on_ready(), (true, 8));
    test.io.release(&mut test.core, Instant::ZERO);
    let console = test.core.console();
    assert_eq!((console.scrollback().start(), console.scrollback().end()), (0, 27));
    assert!(console.is_closed());
}

#[test]
fn console_budget_exhausted_asks_for_another_call() {
    let mut test = ConsoleTest::new(ConsoleMux::new(1000, Overflow::DropOldest), 10);
    test.guest.write_all(b"more than one call may read").unwrap();
    for (end, has_work) in [(10, true), (20, true), (27, false)] {
        assert_eq!(test.on_ready().1, end);
        assert_eq!(test.io.has_work(), has_work, "{end}");
    }
}

#[test]
fn blocked_writer_makes_the_poller_report_room() {
    let mut console = ConsoleMux::new(1, Overflow::DropOldest);
    let too_much = vec![b'x'; WRITE_QUEUE + 1];
    assert_eq!(console.write(Instant::ZERO, &too_much).unwrap(), WRITE_QUEUE);
    assert_eq!(console.write(Instant::ZERO, b"y").unwrap(), 0, "the queue is full");
    let mut test = ConsoleTest::new(console, 100);
    // Each time the guest reads, the queue drains without a report of the poller.
    let mut chunk = vec![0; WRITE_QUEUE];
    while test.core.outgoing(Channel::Console).is_some_and(|queue| !queue.is_empty()) {
        assert_ne!(test.guest.read(&mut chunk).unwrap(), 0);
        test.sync();
    }
    assert!(test.on_ready().0, "the writer would wait forever");
    assert_eq!(test.core.poll_event(), Some(VmEvent::ConsoleWritable));
    assert!(!test.on_ready().0, "no writer waits any more");
}

#[test]
fn exit_has_stderr_beyond_the_read_budget() {
    let run_dir = RunDirPlan::new(HostPath::new("/run/capsa/x").unwrap());
    let mut plan = sim::plan(&run_dir, ConsoleMode::Disabled, RebootPolicy::End, None);
    let helper = ProcessPlan {
        name: "helper".into(),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), "echo no such directory >&2; exit 3".into()],
        ready: Readiness::SocketExists(HostPath::new("/none").unwrap()),
        descriptors: vec![],
        ends_with_hypervisor: true,
    };
    plan.processes.insert(0, helper);
    let plan = Arc::new(plan);
    let mut io = ProcessIo::new(Arc::clone(&plan), None, None, 1).unwrap();
    let backend = Arc::new(SimBackend::default());
    let mut core = VmCore::new(plan, backend, ConsoleMux::disabled(), Timing::default());
    let mut clock = MonotonicClock::new();
    core.start(clock.now()).unwrap();
    io.act(&mut core, &clock);
    // The helper exits before the first byte is read.
    std::thread::sleep(Duration::from_millis(300));
    while core.report().is_none() {
        io.on_ready(&mut core, &mut clock).unwrap();
    }
    let report = core.report().unwrap().to_string();
    assert_eq!(report, "start failed: helper exited with status 3: no such directory");
}
