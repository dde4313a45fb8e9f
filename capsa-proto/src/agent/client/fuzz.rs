//! Fuzz body of the [`AgentClient`]: an owner, a clock and a hostile agent, as the bytes say.
//!
//! Laws after each step: what the client sends is a sequence of sync marks and messages, within the windows
//! and the limit of operations; its memory is within bounds; and at the end every operation has ended.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::{AgentClient, OperationHandle};
use crate::agent::protocol::{
    CommandSpec, FrameDecoder, FrameEvent, GuestMessage, GuestState, HostMessage, INITIAL_WINDOW,
    MAX_OPERATIONS, MAX_PAYLOAD, NONCE_LEN, Operation, OperationEnd, OutputStream, VERSION,
    put_sync,
};
use crate::plan::AgentTransport;
use crate::time::Instant;

const NONCE: [u8; NONCE_LEN] = [7; NONCE_LEN];
const TRANSPORT: AgentTransport = AgentTransport::VirtioSerial;

/// The steps of one input.
const MAX_STEPS: usize = 2000;

/// More than a client keeps for a transport that takes nothing: its limit, and one message.
const MAX_OUTGOING: usize = 64 * 1024 + MAX_PAYLOAD + 100;

/// The client, its owner, and the agent's view of what it sends.
struct FuzzedClient<'a> {
    data: &'a [u8],
    now: Instant,
    client: AgentClient,
    handles: Vec<OperationHandle>,
    decoder: FrameDecoder,
    session: u64,
    /// How many bytes of input each operation of the session may be sent.
    begun: BTreeMap<u32, u32>,
}

/// Runs the steps in `data`.
///
/// # Panics
///
/// When a law does not hold.
pub(in crate::agent) fn run(data: &[u8]) {
    let mut client = AgentClient::new(&[AgentTransport::Vsock, TRANSPORT], true);
    client.set_nonce(NONCE);
    client.handle_connected(Instant::ZERO, TRANSPORT);
    let mut world = FuzzedClient {
        data,
        now: Instant::from_micros(1),
        client,
        handles: Vec::new(),
        decoder: FrameDecoder::new(),
        session: 0,
        begun: BTreeMap::new(),
    };
    for _ in 0..MAX_STEPS {
        if world.data.is_empty() {
            break;
        }
        world.step();
        world.client.check_laws();
    }
    world.end();
}

impl FuzzedClient<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.data.split_first() else { return 0 };
        self.data = rest;
        byte
    }

    /// A handle of the owner, or one that it does not have any more.
    fn handle(&mut self) -> OperationHandle {
        let n = usize::from(self.byte());
        match self.handles.len() {
            0 => OperationHandle::from_wire(1 << 10 | n as u32),
            all => self.handles[n % all],
        }
    }

    fn stream(&mut self) -> OutputStream {
        if self.byte().is_multiple_of(2) { OutputStream::Stdout } else { OutputStream::Stderr }
    }

    fn step(&mut self) {
        match self.byte() % 20 {
            0 => self.client.handle_started(self.now),
            1 | 2 => self.begin(),
            3 => {
                let (handle, n) = (self.handle(), usize::from(self.byte()) * 2000);
                self.client.write_input(handle, &vec![b'i'; n]);
            }
            4 => {
                let handle = self.handle();
                self.client.end_input(handle);
            }
            5 => {
                let (handle, stream, n) = (self.handle(), self.stream(), self.byte());
                self.client.read_output(handle, stream, &mut vec![0; usize::from(n) * 1000]);
            }
            6 => {
                let (handle, number) = (self.handle(), i32::from(self.byte()));
                match number % 3 {
                    0 => self.client.signal(handle, number),
                    1 => self.client.kill(handle),
                    _ => self.client.ignore_output(handle, OutputStream::Stdout),
                }
            }
            7 => {
                let handle = self.handle();
                self.client.cancel(self.now, handle);
            }
            8 => {
                let handle = self.handle();
                self.client.discard(self.now, handle);
            }
            9 => {
                let handle = self.handle();
                let ended = self.client.has_ended(handle);
                assert!(ended || self.client.take_end(handle).is_none(), "it runs");
                self.client.take_end(handle);
            }
            10 => {
                self.now = self.now + Duration::from_millis(u64::from(self.byte()).pow(2));
                self.client.handle_timeout(self.now);
                let deadline = self.client.poll_timeout();
                assert!(deadline.is_none_or(|deadline| deadline.at > self.now), "{deadline:?}");
            }
            11 => self.client.handle_reboot(self.now),
            12 => {
                self.client.handle_closed(self.now, TRANSPORT);
                self.decoder = FrameDecoder::new();
                self.client.handle_connected(self.now, TRANSPORT);
            }
            13 => while self.client.poll_event().is_some() {},
            14 => {
                let n = usize::from(self.byte());
                let (bytes, rest) = self.data.split_at(n.min(self.data.len()));
                self.data = rest;
                self.client.handle_bytes(self.now, TRANSPORT, bytes);
            }
            15 | 16 => {
                let n = usize::from(self.byte()) * 1000;
                self.take_outgoing(n);
            }
            17 => self.greet(),
            _ => self.message(),
        }
    }

    fn begin(&mut self) {
        let has_input = self.byte().is_multiple_of(2);
        let args = vec![b"x".to_vec()];
        let command = CommandSpec { args, has_input, ..CommandSpec::default() };
        let operation = match self.byte() % 4 {
            0 => Operation::Stat(b"/".to_vec()),
            _ => Operation::Run(command),
        };
        let limit = match self.byte() {
            0 => None,
            n => Some(Duration::from_secs(n.into())),
        };
        if let Ok(handle) = self.client.begin(self.now, operation, limit) {
            assert!(!self.handles.contains(&handle), "a handle occurs twice");
            self.handles.push(handle);
        }
    }

    /// The agent reads what the client has sent.
    fn take_outgoing(&mut self, n: usize) {
        let Some(outgoing) = self.client.outgoing(TRANSPORT) else { return };
        assert!(outgoing.len() <= MAX_OUTGOING, "{} bytes wait", outgoing.len());
        let bytes: Vec<u8> = outgoing.drain(..n.min(outgoing.len())).collect();
        self.decoder.handle_bytes(&bytes);
        while let Some(found) = self.decoder.poll().expect("the client sends frames") {
            let frame = match found {
                FrameEvent::Sync(session) => {
                    if session != self.session {
                        self.begun.clear();
                    }
                    self.session = session;
                    continue;
                }
                FrameEvent::Frame(frame) => frame,
            };
            match HostMessage::read(frame).expect("the client sends messages") {
                HostMessage::Begin(id, _) => {
                    assert!(id != 0 && self.begun.insert(id, INITIAL_WINDOW).is_none(), "{id}");
                    assert!(self.begun.len() <= MAX_OPERATIONS, "too many operations");
                }
                HostMessage::Input(id, bytes) => {
                    // The operation may have finished on the way.
                    if let Some(window) = self.begun.get_mut(&id) {
                        *window = window.checked_sub(bytes.len() as u32).expect("in the window");
                    }
                }
                _ => {}
            }
        }
    }

    fn greet(&mut self) {
        self.take_outgoing(usize::MAX);
        let mut bytes = Vec::new();
        put_sync(self.session, &mut bytes);
        GuestMessage::Hello { version: VERSION, nonce: NONCE }.write(&mut bytes);
        GuestMessage::State(GuestState::Ready).write(&mut bytes);
        self.client.handle_bytes(self.now, TRANSPORT, &bytes);
    }

    /// A message of the agent for an operation that it runs.
    fn message(&mut self) {
        let n = usize::from(self.byte());
        let id = self.begun.keys().nth(n % self.begun.len().max(1)).copied().unwrap_or(n as u32);
        let payload = vec![b'o'; usize::from(self.byte()) * 257];
        let stream = self.stream();
        let message = match self.byte() % 8 {
            0 => GuestMessage::Started(id, 1),
            1..=3 => GuestMessage::Output(id, stream, &payload),
            4 => {
                let window = self.begun.get_mut(&id);
                let returned =
                    window.map_or(0, |n| INITIAL_WINDOW - core::mem::replace(n, INITIAL_WINDOW));
                GuestMessage::Window(id, returned)
            }
            5 => GuestMessage::Finished(id, OperationEnd::Exited(0)),
            6 => GuestMessage::Finished(id, OperationEnd::Cancelled),
            _ => GuestMessage::Finished(id, OperationEnd::Failed(2)),
        };
        if matches!(message, GuestMessage::Finished(..)) {
            self.begun.remove(&id);
        }
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        self.client.handle_bytes(self.now, TRANSPORT, &bytes);
    }

    fn end(mut self) {
        self.client.handle_ended();
        self.client.check_laws();
        let mut reported = BTreeSet::new();
        while let Some(event) = self.client.poll_event() {
            assert!(reported.insert(alloc::format!("{event:?}")), "{event:?} twice");
        }
        for handle in self.handles {
            assert!(self.client.has_ended(handle), "it runs after the end of the VM");
            self.client.take_end(handle);
        }
        assert!(self.client.is_idle(), "operations are left");
        assert_eq!(self.client.poll_timeout(), None);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn random_bytes_hold_the_laws() {
        let mut random = fastrand::Rng::with_seed(18);
        for _ in 0..3000 {
            let mut data: alloc::vec::Vec<u8> =
                (0..random.usize(..600)).map(|_| random.u8(..)).collect();
            // A session, so that the rest reaches operations.
            data.splice(0..0, [0, 10, 30, 17]);
            super::run(&data);
        }
    }
}
