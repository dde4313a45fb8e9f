//! The agent's end of the protocol, as a state machine without I/O.
//!
//! 1. Pass received bytes to [`AgentServer::handle_bytes`] with the number of their transport.
//! 2. Call [`AgentServer::poll`] until it returns `None`, and carry out each event.
//! 3. For each operation, take its input, and pass output as [`AgentServer::output_room`] allows.
//! 4. Write [`AgentServer::output`] to the transport [`AgentServer::active`].
//!
//! An agent has one session. The transport on which its sync mark arrived is the active one; frames of other
//! transports are discarded, but a sync mark with another number moves the session there.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use super::{
    FrameDecoder, FrameEvent, GuestMessage, GuestState, HostMessage, INITIAL_WINDOW,
    MAX_OPERATIONS, MAX_PAYLOAD, NONCE_LEN, Operation, OperationEnd, OperationId, OutputStream,
    TerminalSize, VERSION, put_sync,
};

/// Operations produce no output while this many bytes wait for the transport.
const MAX_BACKLOG: usize = 256 * 1024;

/// The `errno` for an operation beyond [`MAX_OPERATIONS`]: `EAGAIN`.
const TOO_MANY: i32 = 11;

/// The agent's end of a session.
#[derive(Debug)]
pub struct AgentServer {
    nonce: [u8; NONCE_LEN],
    state: GuestState,
    /// One for each transport.
    decoders: Vec<FrameDecoder>,
    active: Option<usize>,
    /// The number of the latest session, also after it has ended.
    session: Option<u64>,
    operations: BTreeMap<OperationId, OperationStreams>,
    /// Operations that wait for [`GuestState::Ready`].
    queued: VecDeque<(OperationId, Operation)>,
    output: Vec<u8>,
    /// How many bytes of `output` the transport has taken.
    sent: usize,
    is_reset: bool,
}

/// The streams of an operation.
#[derive(Debug, Default)]
struct OperationStreams {
    input: VecDeque<u8>,
    is_input_ended: bool,
    /// Bytes taken from the input that no `Window` message has returned.
    taken: u32,
    /// Bytes of both outputs that the host has not returned.
    on_the_way: [u32; 2],
}

/// What the program must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEvent {
    /// The session has ended: end all operations, whose ids may occur again.
    Reset,
    /// Begin an operation.
    Begin(OperationId, Operation),
    /// Send a signal to the process group of a command.
    Signal(OperationId, i32),
    /// Set the size of a command's terminal.
    Resize(OperationId, TerminalSize),
    /// Kill an operation, then finish it.
    Cancel(OperationId),
}

/// The host broke the protocol.
struct ProtocolViolation;

impl AgentServer {
    /// An agent with this many transports, in a guest that is booting.
    pub fn new(nonce: [u8; NONCE_LEN], transports: usize) -> Self {
        Self {
            nonce,
            state: GuestState::Booting,
            decoders: (0..transports).map(|_| FrameDecoder::new()).collect(),
            active: None,
            session: None,
            operations: BTreeMap::new(),
            queued: VecDeque::new(),
            output: Vec::new(),
            sent: 0,
            is_reset: false,
        }
    }

    /// Takes bytes of a transport. Call [`AgentServer::poll`] until it returns `None` before the next call.
    pub fn handle_bytes(&mut self, transport: usize, bytes: &[u8]) {
        self.decoders[transport].handle_bytes(bytes);
    }

    /// A transport has ended; its next bytes begin a new stream.
    pub fn handle_close(&mut self, transport: usize) {
        self.decoders[transport] = FrameDecoder::new();
        if self.active == Some(transport) {
            self.end_session();
        }
    }

    /// Sets how far the guest has booted.
    pub fn set_state(&mut self, state: GuestState) {
        if self.state != state {
            self.state = state;
            if self.active.is_some() {
                self.put(&GuestMessage::State(state));
            }
        }
    }

    /// What to do next.
    pub fn poll(&mut self) -> Option<ServerEvent> {
        loop {
            if core::mem::take(&mut self.is_reset) {
                return Some(ServerEvent::Reset);
            }
            if self.state == GuestState::Ready
                && let Some((id, operation)) = self.queued.pop_front()
            {
                return Some(ServerEvent::Begin(id, operation));
            }
            let next =
                (0..self.decoders.len()).find_map(|transport| self.poll_transport(transport));
            if let Some(event) = next? {
                return Some(event);
            }
        }
    }

    /// Handles the next frame of a transport. `None`: it has no frame.
    fn poll_transport(&mut self, transport: usize) -> Option<Option<ServerEvent>> {
        let mut decoder = core::mem::take(&mut self.decoders[transport]);
        let handled = match decoder.poll() {
            Ok(None) => None,
            Ok(Some(FrameEvent::Sync(session))) => {
                self.handle_sync(transport, session);
                Some(Ok(None))
            }
            Ok(Some(FrameEvent::Frame(_))) if self.active != Some(transport) => Some(Ok(None)),
            Ok(Some(FrameEvent::Frame(frame))) => Some(match HostMessage::read(frame) {
                Ok(message) => self.handle_message(message),
                Err(_) => Err(ProtocolViolation),
            }),
            Err(_) => Some(Err(ProtocolViolation)),
        };
        let handled = handled.map(|handled| {
            handled.unwrap_or_else(|ProtocolViolation| {
                decoder.resync();
                if self.active == Some(transport) {
                    self.end_session();
                }
                None
            })
        });
        self.decoders[transport] = decoder;
        handled
    }

    fn handle_sync(&mut self, transport: usize, session: u64) {
        if self.session == Some(session) {
            return;
        }
        self.end_session();
        self.session = Some(session);
        self.active = Some(transport);
        put_sync(session, &mut self.output);
        self.put(&GuestMessage::Hello { version: VERSION, nonce: self.nonce });
        self.put(&GuestMessage::State(self.state));
    }

    fn end_session(&mut self) {
        self.is_reset |= self.active.is_some();
        self.active = None;
        self.operations.clear();
        self.queued.clear();
        self.output.clear();
        self.sent = 0;
    }

    fn handle_message(
        &mut self,
        message: HostMessage<'_>,
    ) -> Result<Option<ServerEvent>, ProtocolViolation> {
        if let HostMessage::Begin(id, operation) = message {
            return self.begin(id, operation).map(|()| None);
        }
        let (HostMessage::Input(id, _)
        | HostMessage::InputEnd(id)
        | HostMessage::Window(id, ..)
        | HostMessage::Signal(id, _)
        | HostMessage::Resize(id, _)
        | HostMessage::Cancel(id)
        | HostMessage::Begin(id, _)) = message;
        let Some(streams) = self.operations.get_mut(&id) else { return Ok(None) };
        Ok(match message {
            HostMessage::Input(_, bytes) => {
                let held = streams.input.len() + streams.taken as usize;
                if streams.is_input_ended || held + bytes.len() > INITIAL_WINDOW as usize {
                    return Err(ProtocolViolation);
                }
                streams.input.extend(bytes);
                None
            }
            HostMessage::InputEnd(_) => {
                streams.is_input_ended = true;
                None
            }
            HostMessage::Window(_, stream, bytes) => {
                let on_the_way = &mut streams.on_the_way[index(stream)];
                *on_the_way = on_the_way.checked_sub(bytes).ok_or(ProtocolViolation)?;
                None
            }
            HostMessage::Signal(_, number) => Some(ServerEvent::Signal(id, number)),
            HostMessage::Resize(_, size) => Some(ServerEvent::Resize(id, size)),
            HostMessage::Cancel(_) => {
                match self.queued.iter().position(|(queued, _)| *queued == id) {
                    Some(at) => {
                        self.queued.remove(at);
                        self.finish(id, OperationEnd::Cancelled);
                        None
                    }
                    None => Some(ServerEvent::Cancel(id)),
                }
            }
            HostMessage::Begin(..) => None,
        })
    }

    fn begin(&mut self, id: OperationId, operation: Operation) -> Result<(), ProtocolViolation> {
        if id == 0 || self.operations.contains_key(&id) {
            return Err(ProtocolViolation);
        }
        if self.operations.len() >= MAX_OPERATIONS {
            self.put(&GuestMessage::Finished(id, OperationEnd::Failed(TOO_MANY)));
        } else {
            self.operations.insert(id, OperationStreams::default());
            self.queued.push_back((id, operation));
        }
        Ok(())
    }

    /// The transport of the session.
    pub fn active(&self) -> Option<usize> {
        self.active
    }

    /// The bytes that the active transport sends next.
    pub fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// The transport has taken bytes of [`AgentServer::output`].
    pub fn handle_sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        } else if self.sent >= MAX_BACKLOG {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// The input of an operation that the program has not taken.
    pub fn input(&self, id: OperationId) -> &[u8] {
        self.operations.get(&id).map_or(&[], |streams| streams.input.as_slices().0)
    }

    /// Whether the program has taken all input of an operation, and no more follows.
    pub fn is_input_ended(&self, id: OperationId) -> bool {
        self.operations.get(&id).is_some_and(|all| all.is_input_ended && all.input.is_empty())
    }

    /// The program has taken bytes of [`AgentServer::input`].
    pub fn handle_taken(&mut self, id: OperationId, bytes: usize) {
        let Some(streams) = self.operations.get_mut(&id) else { return };
        streams.input.drain(..bytes);
        streams.taken += bytes as u32;
        if streams.taken >= INITIAL_WINDOW / 4 {
            let taken = core::mem::take(&mut streams.taken);
            self.put(&GuestMessage::Window(id, taken));
        }
    }

    /// How many bytes of an output the session can take now. 0 if the operation does not exist.
    pub fn output_room(&self, id: OperationId, stream: OutputStream) -> usize {
        let Some(streams) = self.operations.get(&id) else { return 0 };
        if self.output().len() >= MAX_BACKLOG {
            return 0;
        }
        MAX_PAYLOAD.min((INITIAL_WINDOW - streams.on_the_way[index(stream)]) as usize)
    }

    /// Sends bytes of an output: at most [`AgentServer::output_room`].
    pub fn put_output(&mut self, id: OperationId, stream: OutputStream, bytes: &[u8]) {
        if let Some(streams) = self.operations.get_mut(&id) {
            streams.on_the_way[index(stream)] += bytes.len() as u32;
            self.put(&GuestMessage::Output(id, stream, bytes));
        }
    }

    /// The process of a command was started.
    pub fn started(&mut self, id: OperationId, pid: u32) {
        if self.operations.contains_key(&id) {
            self.put(&GuestMessage::Started(id, pid));
        }
    }

    /// An operation has ended.
    pub fn finish(&mut self, id: OperationId, end: OperationEnd) {
        if self.operations.remove(&id).is_some() {
            self.put(&GuestMessage::Finished(id, end));
        }
    }

    fn put(&mut self, message: &GuestMessage<'_>) {
        message.write(&mut self.output);
    }
}

const fn index(stream: OutputStream) -> usize {
    match stream {
        OutputStream::Stdout => 0,
        OutputStream::Stderr => 1,
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::agent::protocol::{CommandSpec, put_frame};

    const NONCE: [u8; NONCE_LEN] = [7; NONCE_LEN];

    fn run() -> Operation {
        Operation::Run(CommandSpec { args: vec![b"true".to_vec()], ..CommandSpec::default() })
    }

    fn sync(session: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_sync(session, &mut bytes);
        bytes
    }

    /// A server with a session on transport 0, whose greeting is sent.
    fn ready() -> AgentServer {
        let mut server = AgentServer::new(NONCE, 2);
        server.set_state(GuestState::Ready);
        server.handle_bytes(0, &sync(1));
        assert_eq!(server.poll(), None);
        server.handle_sent(server.output().len());
        server
    }

    fn send(server: &mut AgentServer, message: &HostMessage<'_>) -> Option<ServerEvent> {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        server.handle_bytes(0, &bytes);
        server.poll()
    }

    /// The messages that a server has sent, as text, and the sync mark before them.
    fn sent(server: &mut AgentServer) -> Vec<alloc::string::String> {
        let mut decoder = FrameDecoder::new();
        if server.output().len() < 16 || server.output()[..4] != sync(0)[..4] {
            decoder.handle_bytes(&sync(0));
            decoder.poll().unwrap();
        }
        decoder.handle_bytes(server.output());
        server.handle_sent(server.output().len());
        let mut found = Vec::new();
        while let Some(event) = decoder.poll().unwrap() {
            found.push(match event {
                FrameEvent::Sync(session) => alloc::format!("Sync({session})"),
                FrameEvent::Frame(frame) => {
                    alloc::format!("{:?}", GuestMessage::read(frame).unwrap())
                }
            });
        }
        found
    }

    #[test]
    fn sync_is_answered_once_per_number() {
        let mut server = AgentServer::new(NONCE, 2);
        server.handle_bytes(1, b"noise");
        server.handle_bytes(1, &[sync(5), sync(5)].concat());
        assert_eq!(server.poll(), None);
        assert_eq!(server.active(), Some(1));
        let found = sent(&mut server);
        assert_eq!(found[0], "Sync(5)");
        assert!(found[1].starts_with("Hello { version: 1, nonce: [7, 7"), "{found:?}");
        assert_eq!(found[2..], ["State(Booting)"]);
        // The host sends the same mark on each transport.
        server.handle_bytes(0, &sync(5));
        assert_eq!((server.poll(), server.active()), (None, Some(1)));
        server.handle_bytes(0, &sync(6));
        assert_eq!((server.poll(), server.active()), (Some(ServerEvent::Reset), Some(0)));
    }

    #[test]
    fn operation_waits_until_guest_is_ready() {
        let mut server = AgentServer::new(NONCE, 1);
        server.handle_bytes(0, &sync(1));
        assert_eq!(send(&mut server, &HostMessage::Begin(1, run())), None);
        assert_eq!(send(&mut server, &HostMessage::Begin(2, run())), None);
        assert_eq!(send(&mut server, &HostMessage::Cancel(1)), None);
        assert_eq!(sent(&mut server).pop().unwrap(), "Finished(1, Cancelled)");
        server.set_state(GuestState::Ready);
        assert_eq!(server.poll(), Some(ServerEvent::Begin(2, run())));
        assert_eq!(sent(&mut server), ["State(Ready)"]);
    }

    #[test]
    fn stale_and_unknown_ids_are_ignored() {
        let mut server = ready();
        send(&mut server, &HostMessage::Begin(1, run()));
        server.finish(1, OperationEnd::Exited(0));
        for message in [
            HostMessage::Input(1, b"late"),
            HostMessage::InputEnd(1),
            HostMessage::Window(1, OutputStream::Stdout, 1),
            HostMessage::Signal(1, 15),
            HostMessage::Cancel(1),
            HostMessage::Cancel(9),
        ] {
            assert_eq!(send(&mut server, &message), None);
        }
        assert_eq!(server.active(), Some(0));
        server.put_output(1, OutputStream::Stdout, b"late");
        server.finish(1, OperationEnd::Done);
        assert_eq!(sent(&mut server), ["Finished(1, Exited(0))"]);
    }

    #[test]
    fn violation_ends_session_and_operations() {
        let too_much = vec![0; MAX_PAYLOAD];
        let too_much = HostMessage::Input(1, &too_much);
        let cases: [&[HostMessage<'_>]; 4] = [
            &[HostMessage::Begin(1, run())],
            &[HostMessage::Begin(0, run())],
            &[HostMessage::Window(1, OutputStream::Stderr, 1)],
            &[too_much.clone(), too_much.clone(), too_much.clone(), too_much.clone(), too_much],
        ];
        for case in cases {
            let mut server = ready();
            send(&mut server, &HostMessage::Begin(1, run()));
            let events: Vec<_> = case.iter().map(|message| send(&mut server, message)).collect();
            assert_eq!(events.last(), Some(&Some(ServerEvent::Reset)), "{}", case.len());
            assert_eq!((server.active(), server.output()), (None, &[][..]));
            // Frames without a new session have no effect.
            assert_eq!(send(&mut server, &HostMessage::Begin(1, run())), None);
            server.handle_bytes(0, &sync(2));
            assert_eq!((server.poll(), server.active()), (None, Some(0)));
        }
    }

    #[test]
    fn operation_beyond_limit_fails() {
        let mut server = ready();
        for id in 1..=MAX_OPERATIONS as u32 {
            assert!(send(&mut server, &HostMessage::Begin(id, run())).is_some());
        }
        assert_eq!(send(&mut server, &HostMessage::Begin(999, run())), None);
        assert_eq!(sent(&mut server), ["Finished(999, Failed(11))"]);
    }

    #[test]
    fn windows_bound_both_directions() {
        let mut server = ready();
        send(&mut server, &HostMessage::Begin(1, run()));
        let mut produced = 0;
        loop {
            let room = server.output_room(1, OutputStream::Stdout);
            if room == 0 {
                break;
            }
            server.put_output(1, OutputStream::Stdout, &vec![b'x'; room]);
            server.handle_sent(server.output().len());
            produced += room;
        }
        assert_eq!(produced, INITIAL_WINDOW as usize);
        send(&mut server, &HostMessage::Window(1, OutputStream::Stdout, 10));
        assert_eq!(server.output_room(1, OutputStream::Stdout), 10);

        let chunk = vec![b'y'; MAX_PAYLOAD];
        for _ in 0..64 {
            assert_eq!(send(&mut server, &HostMessage::Input(1, &chunk)), None);
            while !server.input(1).is_empty() {
                server.handle_taken(1, server.input(1).len());
            }
            assert_eq!(sent(&mut server), ["Window(1, 65536)"]);
        }
        send(&mut server, &HostMessage::InputEnd(1));
        assert!(server.is_input_ended(1));
    }

    /// A step of the host or of the program.
    #[derive(Debug, Clone)]
    enum ServerStep {
        Bytes(usize, Vec<u8>),
        Frame(u8, u32, Vec<u8>),
        Sync(usize, u64),
        Begin(u32),
        Input(u32, usize),
        Window(u32, u32),
        Close(usize),
        Ready,
        Output(u32),
        Take(u32),
        Finish(u32),
        Sent(usize),
    }

    fn step() -> impl Strategy<Value = ServerStep> {
        let id = || 0..5_u32;
        let bytes = || prop::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            1 => (0..2_usize, bytes()).prop_map(|(to, bytes)| ServerStep::Bytes(to, bytes)),
            1 => (0..9_u8, id(), bytes()).prop_map(|(kind, id, bytes)| ServerStep::Frame(kind, id, bytes)),
            1 => (0..2_usize, 0..4_u64).prop_map(|(to, session)| ServerStep::Sync(to, session)),
            3 => id().prop_map(ServerStep::Begin),
            3 => (id(), 0..MAX_PAYLOAD).prop_map(|(id, length)| ServerStep::Input(id, length)),
            2 => (id(), 0..MAX_PAYLOAD as u32).prop_map(|(id, bytes)| ServerStep::Window(id, bytes)),
            1 => (0..2_usize).prop_map(ServerStep::Close),
            1 => Just(ServerStep::Ready),
            4 => id().prop_map(ServerStep::Output),
            2 => id().prop_map(ServerStep::Take),
            2 => id().prop_map(ServerStep::Finish),
            2 => (0..100_000_usize).prop_map(ServerStep::Sent),
        ]
    }

    proptest! {
        #[test]
        fn random_steps_keep_server_bounded(steps in prop::collection::vec(step(), 1..200)) {
            let mut server = AgentServer::new(NONCE, 2);
            let mut running = alloc::collections::BTreeSet::new();
            for step in steps {
                let mut bytes = Vec::new();
                match step {
                    ServerStep::Bytes(to, bytes) => server.handle_bytes(to, &bytes),
                    ServerStep::Frame(kind, id, payload) => put_frame(kind, id, &payload, &mut bytes),
                    ServerStep::Sync(to, session) => server.handle_bytes(to, &sync(session)),
                    ServerStep::Begin(id) => HostMessage::Begin(id, run()).write(&mut bytes),
                    ServerStep::Input(id, n) => HostMessage::Input(id, &vec![1; n]).write(&mut bytes),
                    ServerStep::Window(id, n) => {
                        HostMessage::Window(id, OutputStream::Stdout, n).write(&mut bytes);
                    }
                    ServerStep::Close(transport) => server.handle_close(transport),
                    ServerStep::Ready => server.set_state(GuestState::Ready),
                    ServerStep::Output(id) => {
                        let room = server.output_room(id, OutputStream::Stdout);
                        server.put_output(id, OutputStream::Stdout, &vec![2; room]);
                    }
                    ServerStep::Take(id) => server.handle_taken(id, server.input(id).len()),
                    ServerStep::Finish(id) if running.remove(&id) => {
                        server.finish(id, OperationEnd::Done);
                    }
                    ServerStep::Finish(_) => {}
                    ServerStep::Sent(n) => server.handle_sent(n.min(server.output().len())),
                }
                server.handle_bytes(server.active().unwrap_or(0), &bytes);
                while let Some(event) = server.poll() {
                    match event {
                        ServerEvent::Reset => running.clear(),
                        ServerEvent::Begin(id, _) => {
                            prop_assert!(id != 0 && running.insert(id), "{} twice", id);
                        }
                        ServerEvent::Signal(id, _)
                        | ServerEvent::Resize(id, _)
                        | ServerEvent::Cancel(id) => prop_assert!(running.contains(&id)),
                    }
                }
                prop_assert!(server.output().len() <= MAX_BACKLOG + 2 * MAX_PAYLOAD);
                for id in 0..5 {
                    prop_assert!(server.input(id).len() <= INITIAL_WINDOW as usize);
                }
            }
        }
    }
}
