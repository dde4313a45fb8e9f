//! The client against the agent's end of the protocol, and against agents that break it.

use alloc::string::ToString;
use alloc::vec;

use super::*;
use crate::agent::protocol::{
    AgentServer, CommandSpec, FrameDecoder, FrameEvent, GuestMessage, GuestState, INITIAL_WINDOW,
    MAX_PAYLOAD, Operation, OperationEnd, ServerEvent, VERSION, WriteMode, put_frame, put_sync,
};

const NONCE: [u8; NONCE_LEN] = [7; NONCE_LEN];
const SERIAL: AgentTransport = AgentTransport::VirtioSerial;
const START: Instant = Instant::from_micros(1_000_000);

fn command(args: &[&str]) -> Operation {
    let args = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
    Operation::Run(CommandSpec { args, has_input: true, ..CommandSpec::default() })
}

/// A client of a guest that boots.
fn started() -> AgentClient {
    let mut client = AgentClient::new(&[SERIAL], false);
    client.set_nonce(NONCE);
    client.handle_connected(Instant::ZERO, SERIAL);
    client.handle_started(START);
    client.handle_timeout(START);
    client
}

fn events(client: &mut AgentClient) -> Vec<AgentEvent> {
    core::iter::from_fn(|| client.poll_event()).collect()
}

/// A client and an agent.
struct Pair {
    client: AgentClient,
    server: AgentServer,
    /// What the program in the guest has to do.
    todo: Vec<ServerEvent>,
}

impl Pair {
    fn new() -> Self {
        let mut pair =
            Self { client: started(), server: AgentServer::new(NONCE, 1), todo: Vec::new() };
        pair.step(START);
        pair
    }

    fn ready() -> Self {
        let mut pair = Self::new();
        pair.server.set_state(GuestState::Ready);
        pair.step(START);
        assert_eq!(pair.client.state(), AgentState::Ready);
        events(&mut pair.client);
        pair
    }

    /// Passes all bytes both ways.
    fn step(&mut self, now: Instant) {
        for _ in 0..10_000 {
            let bytes: Vec<u8> = self.client.outgoing(SERIAL).unwrap().drain(..).collect();
            let answer = self.server.output().to_vec();
            if bytes.is_empty() && answer.is_empty() {
                return;
            }
            self.server.handle_sent(answer.len());
            self.server.handle_bytes(0, &bytes);
            self.todo.extend(core::iter::from_fn(|| self.server.poll()));
            self.client.handle_bytes(now, SERIAL, &answer);
        }
        panic!("the two talk without end");
    }

    fn begin(&mut self, operation: Operation) -> OperationHandle {
        let handle = self.client.begin(START, operation, None).unwrap();
        self.step(START);
        handle
    }

    fn finish(&mut self, handle: OperationHandle, end: OperationEnd) {
        self.server.finish(handle.0, end);
        self.step(START);
    }
}

#[test]
fn command_has_streams_and_status() {
    let mut pair = Pair::ready();
    let handle = pair.begin(command(&["sh"]));
    assert_eq!(pair.todo, [ServerEvent::Begin(handle.0, command(&["sh"]))]);
    assert_eq!(pair.client.write_input(handle, b"input"), Some(5));
    pair.client.end_input(handle);
    pair.step(START);
    assert_eq!(pair.server.input(handle.0), b"input");
    pair.server.handle_taken(handle.0, 5);
    assert!(pair.server.is_input_ended(handle.0));
    pair.server.started(handle.0, 42);
    pair.server.put_output(handle.0, OutputStream::Stdout, b"out");
    pair.server.put_output(handle.0, OutputStream::Stderr, b"err");
    pair.finish(handle, OperationEnd::Exited(7));
    assert_eq!(
        events(&mut pair.client),
        [
            AgentEvent::Started(handle),
            AgentEvent::Output(handle, OutputStream::Stdout),
            AgentEvent::Output(handle, OutputStream::Stderr),
            AgentEvent::Ended(handle),
        ]
    );
    assert_eq!(pair.client.pid(handle), Some(42));
    let mut two = [0; 2];
    assert_eq!(pair.client.read_output(handle, OutputStream::Stdout, &mut two), 2);
    assert_eq!(pair.client.take_output(handle, OutputStream::Stdout), b"t");
    assert_eq!(pair.client.take_output(handle, OutputStream::Stderr), b"err");
    assert_eq!(pair.client.write_input(handle, b"late"), None);
    assert_eq!(pair.client.take_end(handle), Some(Ok(OperationEnd::Exited(7))));
    assert_eq!(pair.client.take_end(handle), None);
}

#[test]
fn operation_waits_until_guest_is_ready() {
    let mut client = AgentClient::new(&[SERIAL], false);
    client.set_nonce(NONCE);
    let handle = client.begin(Instant::ZERO, command(&["true"]), None).unwrap();
    assert_eq!(client.poll_timeout(), None, "the VM has not started");
    let mut pair = Pair { client, server: AgentServer::new(NONCE, 1), todo: Vec::new() };
    pair.client.handle_connected(Instant::ZERO, SERIAL);
    pair.client.handle_started(START);
    pair.client.handle_timeout(START);
    pair.step(START);
    assert_eq!((pair.client.state(), pair.todo.len()), (AgentState::Booting, 0));
    pair.server.set_state(GuestState::Ready);
    pair.step(START);
    assert_eq!(pair.todo, [ServerEvent::Begin(handle.0, command(&["true"]))]);
}

#[test]
fn sync_marks_repeat_until_limit() {
    let mut client = started();
    let handle = client.begin(START, command(&["true"]), None).unwrap();
    let mut marks = 0;
    let mut now = START;
    while client.take_end(handle).is_none() {
        marks += client.outgoing(SERIAL).unwrap().drain(..).count() / 24;
        now = client.poll_timeout().unwrap().at;
        client.handle_timeout(now);
    }
    assert_eq!((now, marks), (START + ANSWER_LIMIT, 240));
    // A transport that takes nothing gets one mark.
    for _ in 0..100 {
        now = client.poll_timeout().unwrap().at;
        client.handle_timeout(now);
    }
    assert_eq!(client.outgoing(SERIAL).unwrap().len(), 24);
    assert!(now > START + MARK_IDLE * 90, "it looks less often");
}

#[test]
fn no_answer_names_drivers_and_refusals() {
    let mut client = started();
    let wait = |client: &mut AgentClient| {
        let begun = client.searching_since;
        let handle = client.begin(begun, command(&["true"]), None).unwrap();
        let end = begun + ANSWER_LIMIT;
        client.handle_timeout(end);
        client.searching_since = end;
        client.take_end(handle).unwrap().unwrap_err().to_string()
    };
    let text = wait(&mut client);
    assert!(text.contains("no driver for virtio-serial (virtio_console)"), "{text}");
    let mut server = AgentServer::new([8; NONCE_LEN], 1);
    let bytes: Vec<u8> = client.outgoing(SERIAL).unwrap().drain(..).collect();
    server.handle_bytes(0, &bytes);
    while server.poll().is_some() {}
    client.handle_bytes(START, SERIAL, server.output());
    assert_eq!(client.state(), AgentState::Connecting);
    let text = wait(&mut client);
    assert!(text.contains("does not have this VM's nonce"), "{text}");
}

#[test]
fn lost_answer_is_asked_for_again() {
    let mut pair = Pair { client: started(), server: AgentServer::new(NONCE, 1), todo: vec![] };
    let mut now = START;
    let mut lost = true;
    while pair.client.state() == AgentState::Connecting {
        let bytes: Vec<u8> = pair.client.outgoing(SERIAL).unwrap().drain(..).collect();
        pair.server.handle_bytes(0, &bytes);
        while pair.server.poll().is_some() {}
        if mem::take(&mut lost) {
            pair.server.handle_sent(pair.server.output().len());
        }
        pair.step(now);
        now = pair.client.poll_timeout().map_or(now, |deadline| deadline.at);
        pair.client.handle_timeout(now);
    }
    assert!(now < START + Duration::from_secs(20));
}

#[test]
fn slow_owner_stops_output_at_window() {
    let mut pair = Pair::ready();
    let handle = pair.begin(command(&["yes"]));
    let produce = |pair: &mut Pair| {
        let mut produced = 0;
        loop {
            let room = pair.server.output_room(handle.0, OutputStream::Stdout);
            if room == 0 {
                return produced;
            }
            pair.server.put_output(handle.0, OutputStream::Stdout, &vec![b'y'; room]);
            produced += room;
            pair.step(START);
        }
    };
    assert_eq!(produce(&mut pair), INITIAL_WINDOW as usize);
    for _ in 0..50 {
        let taken = pair.client.take_output(handle, OutputStream::Stdout).len();
        pair.step(START);
        assert_eq!(produce(&mut pair), taken);
    }
}

#[test]
fn killed_command_ends_with_unread_output() {
    let mut pair = Pair::ready();
    let handle = pair.begin(command(&["yes"]));
    let mut sent = 0;
    let mut produce = |pair: &mut Pair| {
        let room = pair.server.output_room(handle.0, OutputStream::Stdout);
        pair.server.put_output(handle.0, OutputStream::Stdout, &vec![b'y'; room]);
        pair.step(START);
        sent += room;
        room
    };
    while produce(&mut pair) > 0 {}
    pair.client.kill(handle);
    pair.step(START);
    assert_eq!(pair.todo.pop(), Some(ServerEvent::Signal(handle.0, 9)));
    for _ in 0..20 {
        assert!(produce(&mut pair) > 0, "it could not send its last output");
    }
    pair.finish(handle, OperationEnd::Signaled(9));
    let arrived = pair.client.take_output(handle, OutputStream::Stdout).len();
    assert_eq!(arrived, INITIAL_WINDOW as usize, "of {sent}");
}

#[test]
fn slow_guest_stops_input_at_queue() {
    let mut pair = Pair::ready();
    let handle = pair.begin(command(&["cat"]));
    let chunk = vec![b'x'; 100_000];
    let mut written = 0;
    loop {
        let n = pair.client.write_input(handle, &chunk).unwrap();
        written += n;
        pair.step(START);
        if n < chunk.len() && pair.server.input(handle.0).len() == INITIAL_WINDOW as usize {
            break;
        }
    }
    assert!(written <= INPUT_QUEUE + INITIAL_WINDOW as usize);
    let mut total = 0;
    while total < written {
        let n = pair.server.input(handle.0).len();
        pair.server.handle_taken(handle.0, n);
        total += n;
        pair.step(START);
    }
    assert!(events(&mut pair.client).contains(&AgentEvent::Writable(handle)));
    assert_eq!(pair.client.write_input(handle, &chunk), Some(chunk.len()));
}

#[test]
fn large_input_does_not_delay_other_operations() {
    let mut pair = Pair::ready();
    let large = pair.begin(command(&["cat"]));
    let small = pair.begin(command(&["sleep"]));
    pair.client.write_input(large, &vec![b'x'; INPUT_QUEUE]);
    pair.client.signal(small, 15);
    pair.client.signal(small, 15);
    pair.client.signal(small, 99);
    let first: Vec<u8> = pair.client.outgoing(SERIAL).unwrap().drain(..).collect();
    assert!(first.len() < OUTGOING_LIMIT + 20_000);
    pair.todo.clear();
    pair.server.handle_bytes(0, &first);
    pair.todo.extend(core::iter::from_fn(|| pair.server.poll()));
    assert_eq!(pair.todo, [ServerEvent::Signal(small.0, 15)]);
}

#[test]
fn dropped_operation_is_cancelled_and_forgotten() {
    let mut pair = Pair::ready();
    for round in 0..3000 {
        let handle = pair.begin(command(&["yes"]));
        pair.server.put_output(handle.0, OutputStream::Stdout, b"some output");
        pair.client.discard(START, handle);
        pair.step(START);
        assert!(pair.todo.contains(&ServerEvent::Cancel(handle.0)), "{round}");
        pair.todo.clear();
        pair.finish(handle, OperationEnd::Cancelled);
    }
    assert_eq!(events(&mut pair.client), []);
    assert_eq!((pair.client.running, pair.client.table.handles().len()), (0, 0));
    assert_eq!(pair.client.deadlines.len(), 0);
}

#[test]
fn time_limit_cancels_command() {
    let mut pair = Pair::ready();
    let limit = Duration::from_secs(5);
    let handle = pair.client.begin(START, command(&["sleep"]), Some(limit)).unwrap();
    pair.step(START);
    assert_eq!(pair.client.poll_timeout().unwrap().at, START + limit);
    pair.client.handle_timeout(START + limit);
    pair.step(START);
    assert_eq!(pair.todo.pop(), Some(ServerEvent::Cancel(handle.0)));
    pair.finish(handle, OperationEnd::Cancelled);
    let error = AgentError::TimedOut { waited: limit };
    assert_eq!(pair.client.take_end(handle), Some(Err(error)));
}

#[test]
fn command_that_cannot_be_killed_ends_for_owner() {
    let mut pair = Pair::ready();
    let handle = pair.begin(command(&["stuck"]));
    pair.client.cancel(START, handle);
    pair.step(START);
    pair.client.handle_timeout(START + CANCEL_LIMIT);
    let error = AgentError::NotCancelled { waited: CANCEL_LIMIT };
    assert_eq!(pair.client.take_end(handle), Some(Err(error)));
    assert_eq!(pair.client.take_end(handle), None);
    assert_eq!(pair.client.running, 1, "it still runs in the guest");
    pair.server.put_output(handle.0, OutputStream::Stdout, b"late");
    pair.finish(handle, OperationEnd::Cancelled);
    assert_eq!((pair.client.running, pair.client.state()), (0, AgentState::Ready));
    assert_eq!(pair.client.table.handles().len(), 0);
}

#[test]
fn reboot_ends_operations_and_begins_new_session() {
    let mut pair = Pair::ready();
    let runs = pair.begin(command(&["make"]));
    pair.server.put_output(runs.0, OutputStream::Stdout, b"half");
    pair.step(START);
    let stale = {
        pair.server.put_output(runs.0, OutputStream::Stdout, b"on the way");
        pair.server.output().to_vec()
    };
    pair.client.handle_reboot(START);
    let waits = pair.client.begin(START, command(&["true"]), None).unwrap();
    assert_eq!(pair.client.take_output(runs, OutputStream::Stdout), b"half");
    assert_eq!(pair.client.take_end(runs), Some(Err(AgentError::Rebooted)));
    pair.client.handle_bytes(START, SERIAL, &stale);
    assert_eq!(pair.client.state(), AgentState::Connecting);
    // Another agent, in the guest that has booted again.
    (pair.server, pair.todo) = (AgentServer::new(NONCE, 1), Vec::new());
    pair.server.set_state(GuestState::Ready);
    pair.client.handle_timeout(START);
    pair.step(START);
    assert_eq!(pair.todo, [ServerEvent::Begin(waits.0, command(&["true"]))]);
}

#[test]
fn closed_connection_waits_for_an_explanation() {
    for explained in [None, Some(AgentError::Rebooted), Some(AgentError::GuestEnded)] {
        let mut pair = Pair::ready();
        let handle = pair.begin(command(&["make"]));
        pair.client.handle_closed(START, SERIAL);
        assert!(!pair.client.has_ended(handle) && !pair.client.is_open(SERIAL));
        pair.client.begin(START, command(&["true"]), None).unwrap();
        assert!(pair.client.outgoing(SERIAL).unwrap().is_empty());
        match explained {
            None => pair.client.handle_timeout(START + EXPLANATION_DELAY),
            Some(AgentError::Rebooted) => pair.client.handle_reboot(START),
            Some(_) => pair.client.handle_ended(),
        }
        let error = explained.unwrap_or(AgentError::Disconnected);
        assert_eq!(pair.client.take_end(handle), Some(Err(error)));
    }
}

#[test]
fn end_of_vm_ends_all_operations() {
    let mut pair = Pair::ready();
    let runs = pair.begin(command(&["make"]));
    pair.server.set_state(GuestState::Booting);
    pair.client.handle_ended();
    let late = pair.client.begin(START, command(&["true"]), None).unwrap();
    for handle in [runs, late] {
        assert_eq!(pair.client.take_end(handle), Some(Err(AgentError::GuestEnded)));
    }
    assert!(!pair.client.is_open(SERIAL));
    assert_eq!((pair.client.state(), pair.client.poll_timeout()), (AgentState::Ended, None));
}

#[test]
fn operations_beyond_limit_wait_for_a_place() {
    let mut pair = Pair::ready();
    let handles: Vec<_> = (0..=MAX_OPERATIONS).map(|_| pair.begin(command(&["sleep"]))).collect();
    assert_eq!(pair.todo.len(), MAX_OPERATIONS);
    pair.finish(handles[3], OperationEnd::Exited(0));
    assert_eq!(pair.todo.last(), Some(&ServerEvent::Begin(handles[256].0, command(&["sleep"]))));
    let last = pair.begin(command(&["sleep"]));
    pair.client.handle_timeout(START + ANSWER_LIMIT);
    let error = AgentError::Busy { waited: ANSWER_LIMIT };
    assert_eq!(pair.client.take_end(last), Some(Err(error)));
    let refused =
        (0..=MAX_BEGUN).find_map(|_| pair.client.begin(START, command(&["x"]), None).err());
    assert_eq!(refused, Some(OperationRefused::TooMany(MAX_BEGUN)));
}

#[test]
fn invalid_operation_is_refused() {
    let mut client = started();
    let mut begin = |operation| client.begin(START, operation, None).err();
    assert_eq!(begin(command(&[])), Some(OperationRefused::Empty));
    assert_eq!(begin(command(&["a\0b"])), Some(OperationRefused::Nul("an argument")));
    let large = "x".repeat(MAX_PAYLOAD);
    assert!(matches!(begin(command(&[&large])), Some(OperationRefused::TooLarge(_))));
    let Operation::Run(mut spec) = command(&["env"]) else { panic!() };
    spec.env = vec![(b"A=B".to_vec(), Vec::new())];
    assert_eq!(begin(Operation::Run(spec)), Some(OperationRefused::EnvName));
}

#[test]
fn vsock_connects_again_and_closes_after_another_answered() {
    let vsock = AgentTransport::Vsock;
    let mut client = AgentClient::new(&[vsock, SERIAL], true);
    client.set_nonce(NONCE);
    client.handle_connected(Instant::ZERO, SERIAL);
    client.handle_started(START);
    assert_eq!(client.poll_connect(), None);
    let mut now = START;
    for _ in 0..3 {
        client.handle_timeout(now);
        assert_eq!((client.poll_connect(), client.poll_connect()), (Some(vsock), None));
        client.handle_connected(now, vsock);
        let sent: Vec<u8> = client.outgoing(vsock).unwrap().drain(..).collect();
        assert_eq!(sent, b"CONNECT 1023\n");
        client.handle_closed(now, vsock);
        now = client.poll_timeout().unwrap().at;
    }
    client.handle_timeout(now);
    client.handle_connected(now, client.links[0].transport);
    client.outgoing(vsock).unwrap().clear();
    client.handle_bytes(now, vsock, b"OK 5\n");
    assert_eq!(client.outgoing(vsock).unwrap().len(), 24, "the mark follows at once");
    let mut server = AgentServer::new(NONCE, 1);
    let mark: Vec<u8> = client.outgoing(SERIAL).unwrap().drain(..).collect();
    server.handle_bytes(0, &mark[mark.len() - 24..]);
    while server.poll().is_some() {}
    client.handle_bytes(now, SERIAL, server.output());
    assert_eq!(client.state(), AgentState::Booting);
    assert!(!client.is_open(vsock) && client.is_open(SERIAL));
}

/// Messages of an agent that break the protocol, and the end of the operation that runs.
#[test]
fn violation_ends_session_with_its_kind() {
    let write = |message: GuestMessage<'_>| {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        bytes
    };
    let id = 1 << 10;
    let long = vec![0; MAX_PAYLOAD];
    let output = write(GuestMessage::Output(id, OutputStream::Stdout, &long));
    let mut mark = Vec::new();
    put_sync(99, &mut mark);
    let mut bad_kind = Vec::new();
    put_frame(77, id, b"", &mut bad_kind);
    type Case = (Vec<u8>, fn(&AgentViolation) -> bool);
    let cases: [Case; 11] = [
        (vec![0xff; 4], |it| matches!(it, AgentViolation::Frame(_))),
        (bad_kind, |it| matches!(it, AgentViolation::Message(_))),
        (mark, |it| matches!(it, AgentViolation::Unexpected(_))),
        (write(GuestMessage::Hello { version: VERSION, nonce: NONCE }), |it| {
            matches!(it, AgentViolation::Unexpected(_))
        }),
        (write(GuestMessage::Started(id + 1, 1)), |it| {
            matches!(it, AgentViolation::UnknownOperation(1025))
        }),
        (write(GuestMessage::Finished(id ^ 1 << 10 ^ 2 << 10, OperationEnd::Done)), |it| {
            matches!(it, AgentViolation::UnknownOperation(2048))
        }),
        (write(GuestMessage::Started(id, 1)).repeat(2), |it| {
            matches!(it, AgentViolation::Unexpected(_))
        }),
        (output.repeat(5), |it| {
            matches!(it, AgentViolation::OutputBeyondWindow { got: MAX_PAYLOAD, window: 0 })
        }),
        (write(GuestMessage::Window(id, 1)), |it| {
            matches!(it, AgentViolation::WindowBeyondInput(1))
        }),
        (write(GuestMessage::Finished(id, OperationEnd::Done)), |it| {
            matches!(it, AgentViolation::ImpossibleEnd)
        }),
        (write(GuestMessage::Finished(id, OperationEnd::Cancelled)), |it| {
            matches!(it, AgentViolation::ImpossibleEnd)
        }),
    ];
    for (n, (bytes, expected)) in cases.into_iter().enumerate() {
        let mut pair = Pair::ready();
        let handle = pair.begin(command(&["make"]));
        assert_eq!(handle.0, id);
        pair.client.handle_bytes(START, SERIAL, &bytes);
        let end = pair.client.take_end(handle).expect("it has ended");
        let Err(AgentError::Protocol(violation)) = end else { panic!("{n}: {end:?}") };
        assert!(expected(&violation), "{n}: {violation:?}");
        assert_eq!(pair.client.state(), AgentState::Connecting);
        // The agent that obeys again gets a new session.
        pair.client.handle_timeout(START + MARK_EVERY);
        pair.step(START + MARK_EVERY);
        assert_eq!(pair.client.state(), AgentState::Ready, "{n}");
    }
}

#[test]
fn noise_before_session_is_discarded() {
    let mut client = started();
    let mut noise = b"login: ".to_vec();
    put_sync(1, &mut noise);
    noise.extend([0xff; 40]);
    put_sync(2, &mut noise);
    put_frame(129, 0, &[0; 34], &mut noise);
    put_sync(1, &mut noise);
    GuestMessage::State(GuestState::Ready).write(&mut noise);
    for chunk in noise.chunks(5) {
        client.handle_bytes(START, SERIAL, chunk);
    }
    assert_eq!(client.state(), AgentState::Connecting);
    let mut decoder = FrameDecoder::new();
    decoder.handle_bytes(&client.outgoing(SERIAL).unwrap().drain(..).collect::<Vec<u8>>());
    assert_eq!(decoder.poll(), Ok(Some(FrameEvent::Sync(1))));
    let mut answer = Vec::new();
    put_sync(1, &mut answer);
    GuestMessage::Hello { version: VERSION, nonce: NONCE }.write(&mut answer);
    client.handle_bytes(START, SERIAL, &answer);
    assert_eq!(client.state(), AgentState::Booting);
}

#[test]
fn write_file_ends_when_done() {
    let mut pair = Pair::ready();
    let path = b"/tmp/x".to_vec();
    let handle = pair.begin(Operation::WriteFile { path, mode: 0o644, write: WriteMode::Truncate });
    assert_eq!(pair.client.write_input(handle, b"content"), Some(7));
    pair.client.end_input(handle);
    pair.step(START);
    pair.finish(handle, OperationEnd::Failed(28));
    assert_eq!(pair.client.take_end(handle), Some(Ok(OperationEnd::Failed(28))));
}
