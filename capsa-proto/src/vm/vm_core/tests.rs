//! The parts of a VM together: what comes out for what goes in.

use super::*;
use crate::lifecycle::fuzz::plan;
use crate::lifecycle::{EndedBy, StartError};
use crate::path::HostPath;
use crate::plan::Signal;
use crate::plan::{CarrierPlan, ControlEndpoint, NetworkLink, NetworkPlan, Protocol, StopAction};
use crate::sim::{QmpServer, SimBackend, event_name};
use crate::spec::VmSpec;
use alloc::string::String;
use alloc::vec;

const VMM: ProcessId = ProcessId(0);
const NOW: Instant = Instant::ZERO;

/// A VM whose control socket is created by the hypervisor.
fn polled_plan() -> LaunchPlan {
    let mut plan = plan(0);
    plan.control.endpoint = ControlEndpoint::Socket(plan.run_dir.join("control"));
    plan
}

fn core_of(plan: LaunchPlan) -> VmCore {
    let backend = Arc::new(SimBackend::default());
    VmCore::new(Arc::new(plan), backend, ConsoleMux::disabled(), Timing::default())
}

fn started(plan: LaunchPlan) -> VmCore {
    let mut core = core_of(plan);
    core.start(NOW).unwrap();
    core
}

/// The outputs without the log.
fn outputs(core: &mut VmCore) -> Vec<Output> {
    let all = core::iter::from_fn(|| core.poll_output(NOW));
    all.filter(|output| !matches!(output, Output::Log(_))).collect()
}

fn statuses(core: &mut VmCore) -> Vec<VmStatus> {
    core::iter::from_fn(|| core.poll_event())
        .filter_map(|event| match event {
            VmEvent::Status(status) => Some(status),
            _ => None,
        })
        .collect()
}

/// Passes bytes both ways until neither side has any; every command succeeds.
fn exchange(core: &mut VmCore, server: &mut QmpServer) {
    for _ in 0..10 {
        core.handle_bytes(NOW, Channel::Control, &server.take_outgoing());
        assert_eq!(outputs(core), []);
        let bytes: Vec<u8> = core.outgoing(Channel::Control).unwrap().drain(..).collect();
        server.handle_bytes(&bytes);
        while let Some(command) = server.poll_command() {
            server.accept(&command);
        }
    }
}

fn running() -> (VmCore, QmpServer) {
    let mut core = started(plan(0));
    assert_eq!(outputs(&mut core), [Output::Launch(VMM)], "the VMM inherits its channel");
    core.handle_connected(NOW, Channel::Control);
    let mut server = QmpServer::new();
    exchange(&mut core, &mut server);
    assert_eq!(statuses(&mut core), [VmStatus::Starting, VmStatus::Running]);
    (core, server)
}

#[test]
fn guest_power_off_over_qmp_ends_vm() {
    let (mut core, mut server) = running();
    server.send_event(event_name(GuestEvent::PoweredOff));
    exchange(&mut core, &mut server);
    core.handle_exited(NOW, VMM, Exit::with_code(0));
    assert_eq!(outputs(&mut core), [Output::Release]);
    core.handle_released(NOW);
    assert_eq!(core.report().unwrap().ended_by, EndedBy::GuestPowerOff);
    assert_eq!(core.poll_timeout(), None);
}

#[test]
fn connect_refused_is_repeated_by_timer() {
    let mut core = started(polled_plan());
    outputs(&mut core);
    for _ in 0..3 {
        core.handle_connect_failed(NOW, Channel::Control, "refused".into());
        let at = core.poll_timeout().expect("the next check").at;
        assert!(at > NOW);
        core.handle_timeout(at);
        assert_eq!(outputs(&mut core), [Output::Connect(Channel::Control)]);
    }
}

#[test]
fn launch_failed_connects_nothing() {
    let mut core = started(plan(0));
    assert_eq!(core.poll_output(NOW), Some(Output::Log(LogRecord::Status(VmStatus::Starting))));
    assert_eq!(core.poll_output(NOW), Some(Output::Launch(VMM)));
    core.handle_launch_failed(NOW, VMM, Cause::new("no such file"));
    assert_eq!(outputs(&mut core), [Output::Release]);
    let EndedBy::StartFailed { error } = core.report().unwrap().ended_by else { panic!() };
    assert_eq!(
        error,
        StartError::Launch { process: "vmm".into(), cause: Cause::new("no such file") }
    );
}

#[test]
fn http_uses_one_connection_for_each_message() {
    let mut plan = polled_plan();
    plan.control.protocol = Protocol::Http;
    plan.boot = vec![
        Message::http("create the VM", "PUT", "/create", None),
        Message::http("boot it", "PUT", "/boot", None),
    ];
    plan.quit = StopAction::Control(Message::http("quit", "PUT", "/quit", None));
    let mut core = started(plan);
    let connect = Output::Connect(Channel::Control);
    assert_eq!(outputs(&mut core), [Output::Launch(VMM), connect.clone()]);
    core.handle_connected(NOW, Channel::Control);
    assert!(!core.is_open(Channel::Control), "it shows that the VMM listens");
    for path in ["/create", "/boot"] {
        assert_eq!(outputs(&mut core), core::slice::from_ref(&connect));
        core.handle_connected(NOW, Channel::Control);
        let sent: Vec<u8> = core.outgoing(Channel::Control).unwrap().drain(..).collect();
        assert!(String::from_utf8(sent).unwrap().starts_with(&alloc::format!("PUT {path} ")));
        core.handle_bytes(NOW, Channel::Control, b"HTTP/1.1 204 No Content\r\n\r\n");
        assert!(!core.is_open(Channel::Control));
    }
    assert_eq!(outputs(&mut core), []);
    assert_eq!(*core.status(), VmStatus::Running);
}

#[test]
fn exit_report_has_last_stderr_lines() {
    let mut core = started(plan(0));
    outputs(&mut core);
    core.handle_bytes(NOW, Channel::Stderr(VMM), b"bad op");
    core.handle_bytes(NOW, Channel::Stderr(VMM), b"tion\n");
    core.handle_exited(NOW, VMM, Exit::with_code(1));
    assert_eq!(
        core.report().unwrap().to_string(),
        "start failed: vmm exited with status 1: bad option"
    );
}

#[test]
fn start_timed_out_has_last_stderr_lines() {
    let mut core = started(plan(0));
    outputs(&mut core);
    core.handle_bytes(NOW, Channel::Stderr(VMM), b"waiting for the disk\n");
    // The first call checks once more.
    for _ in 0..2 {
        core.handle_timeout(NOW + Timing::default().launch);
    }
    assert_eq!(outputs(&mut core), [Output::Signal(VMM, Signal::Kill)]);
    core.handle_exited(NOW, VMM, Exit::new(None, Some(9)));
    let report = core.report().unwrap().to_string();
    assert!(report.ends_with("control channel is connected: waiting for the disk"), "{report}");
}

#[test]
fn invalid_pipe_events_are_taken_once() {
    let (mut core, _) = running();
    core.handle_bytes(NOW, Channel::Events, b"{\"event\": \"booted\"} nonsense");
    assert!(!core.is_open(Channel::Events));
    core.handle_bytes(NOW, Channel::Events, b"more nonsense");
    let lost = core::iter::from_fn(|| core.poll_output(NOW))
        .filter(|output| matches!(output, Output::Log(LogRecord::Input(Input::EventsLost(_)))));
    assert_eq!(lost.count(), 1);
}

#[test]
fn late_call_checks_socket_before_limit() {
    let mut core = started(plan(1));
    let helper = ProcessId(0);
    let check = Output::CheckSocket(helper);
    assert_eq!(outputs(&mut core), [Output::Launch(helper), check.clone()]);
    // The loop of the owner was busy for longer than the limit.
    let late = NOW + Timing::default().helper * 2;
    core.handle_timeout(late);
    assert_eq!(outputs(&mut core), [check]);
    core.handle_ready(late, helper);
    assert_eq!(core.phase(), Phase::StartingHypervisor);
}

#[test]
fn late_call_not_ready_times_out_next() {
    let mut core = started(plan(1));
    outputs(&mut core);
    let late = NOW + Timing::default().helper * 2;
    core.handle_timeout(late);
    outputs(&mut core);
    assert!(core.poll_timeout().is_some_and(|deadline| deadline.at <= late));
    core.handle_timeout(late);
    assert_eq!(outputs(&mut core), [Output::Signal(ProcessId(0), Signal::Kill)]);
}

/// The carrier commands that a VMM received, which it answers only in `exchange`.
fn carrier_commands(core: &mut VmCore) -> Vec<String> {
    outputs(core);
    let bytes: Vec<u8> = core.outgoing(Channel::Control).unwrap().drain(..).collect();
    let text = String::from_utf8(bytes).unwrap();
    let commands = ["link_up", "link_down"];
    let named = |line: &str| commands.into_iter().find(|name| line.contains(name)).map(Into::into);
    text.lines().filter_map(named).collect()
}

fn plan_with_carrier() -> LaunchPlan {
    let spec = VmSpec::new(HostPath::new("/kernel").unwrap());
    let network = NetworkPlan::new(&spec, NetworkLink::Stream, 1500).unwrap();
    let carrier =
        CarrierPlan { up: Message::qmp("up", "link_up"), down: Message::qmp("down", "link_down") };
    LaunchPlan { network: Some(NetworkPlan { carrier: Some(carrier), ..network }), ..plan(0) }
}

#[test]
fn carrier_set_before_start_is_sent_when_running() {
    let mut core = core_of(plan_with_carrier());
    core.set_carrier(NOW, false);
    core.start(NOW).unwrap();
    outputs(&mut core);
    core.handle_connected(NOW, Channel::Control);
    let mut server = QmpServer::new();
    let mut sent = Vec::new();
    for _ in 0..4 {
        core.handle_bytes(NOW, Channel::Control, &server.take_outgoing());
        outputs(&mut core);
        let bytes: Vec<u8> = core.outgoing(Channel::Control).unwrap().drain(..).collect();
        server.handle_bytes(&bytes);
        while let Some(command) = server.poll_command() {
            server.accept(&command);
            sent.push(command.execute);
        }
    }
    assert_eq!(sent, ["qmp_capabilities", "cont", "link_down"]);
}

#[test]
fn carrier_requests_wait_for_the_reply() {
    let mut core = started(plan_with_carrier());
    outputs(&mut core);
    core.handle_connected(NOW, Channel::Control);
    let mut server = QmpServer::new();
    exchange(&mut core, &mut server);
    core.set_carrier(NOW, true);
    assert!(carrier_commands(&mut core).is_empty(), "it is up");
    for _ in 0..1000 {
        core.set_carrier(NOW, false);
        core.set_carrier(NOW, true);
    }
    core.set_carrier(NOW, false);
    core.set_carrier(NOW, true);
    assert_eq!(carrier_commands(&mut core), ["link_down"], "the others wait");
    core.handle_bytes(NOW, Channel::Control, b"{\"return\": {}}\n");
    assert_eq!(carrier_commands(&mut core), ["link_up"], "the last request decides");
    core.handle_bytes(NOW, Channel::Control, b"{\"error\": {\"class\": \"x\", \"desc\": \"y\"}}\n");
    assert!(carrier_commands(&mut core).is_empty(), "a rejected message is not repeated");
    assert_eq!(*core.status(), VmStatus::Running);
}

#[test]
fn carrier_without_messages_sends_nothing() {
    let (mut core, _) = running();
    core.set_carrier(NOW, false);
    assert!(core.outgoing(Channel::Control).unwrap().is_empty());
}
