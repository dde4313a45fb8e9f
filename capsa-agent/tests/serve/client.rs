//! A client of the agent for tests: blocking, with deadlines.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::Duration;

use capsa_proto::agent::protocol::{
    CommandSpec, FrameDecoder, FrameEvent, GuestMessage, GuestState, HostMessage, INITIAL_WINDOW,
    MAX_PAYLOAD, NONCE_LEN, Operation, OperationEnd, OutputStream, VERSION, put_sync,
};

/// A test fails when nothing happens for this long.
const PATIENCE: Duration = Duration::from_secs(30);

const NONCE: [u8; NONCE_LEN] = *b"0123456789abcdef0123456789abcdef";

/// The agent as a process of this host.
pub(crate) struct ServedAgent {
    pub(crate) process: Child,
    socket: UnixStream,
    decoder: FrameDecoder,
    last_id: u32,
    running: BTreeMap<u32, RunningOperation>,
}

/// What is known about an operation.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct RunningOperation {
    pub(crate) pid: Option<u32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) end: Option<OperationEnd>,
    /// Bytes of the input that the agent may still be sent.
    window: usize,
    /// Whether the output is not returned to the agent.
    is_held: bool,
}

/// The program and the nonce as files, written once.
fn files() -> &'static (PathBuf, PathBuf) {
    static FILES: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    FILES.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let write = |name: &str, content: &[u8]| {
            let path = directory.join(name);
            let scratch = directory.join(format!("{name}.{}", std::process::id()));
            fs::write(&scratch, content).unwrap();
            fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755)).unwrap();
            // Another process may be running the old one.
            fs::rename(scratch, &path).unwrap();
            path
        };
        (write("agent", capsa_agent::program().unwrap()), write("nonce", &NONCE))
    })
}

impl ServedAgent {
    /// Starts the agent, and a session with it.
    pub(crate) fn start() -> Self {
        let (program, nonce) = files();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(program);
        command.arg("serve").arg(nonce).stdin(OwnedFd::from(theirs));
        let process = command.spawn().unwrap();
        drop(command);
        let mut agent = Self {
            process,
            socket: ours,
            decoder: FrameDecoder::new(),
            last_id: 0,
            running: BTreeMap::new(),
        };
        agent.begin_session(1);
        agent
    }

    /// Begins a session, and checks the greeting.
    pub(crate) fn begin_session(&mut self, session: u64) {
        self.running.clear();
        let mut mark = Vec::new();
        put_sync(session, &mut mark);
        self.send_bytes(&mark);
        let mut expected = VecDeque::from([
            format!("Sync({session})"),
            format!("{:?}", GuestMessage::Hello { version: VERSION, nonce: NONCE }),
            format!("{:?}", GuestMessage::State(GuestState::Ready)),
        ]);
        self.decoder.resync();
        while let Some(next) = expected.front() {
            let text = match self.decoder.poll().unwrap() {
                Some(FrameEvent::Sync(session)) => format!("Sync({session})"),
                Some(FrameEvent::Frame(frame)) => {
                    format!("{:?}", GuestMessage::read(frame).unwrap())
                }
                None => {
                    self.receive();
                    continue;
                }
            };
            // The rest of an earlier session precedes its mark.
            if text == *next {
                expected.pop_front();
            } else {
                assert_eq!(expected.len(), 3, "{text} in place of {next}");
            }
        }
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub(crate) fn send(&mut self, message: &HostMessage<'_>) {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        self.send_bytes(&bytes);
    }

    /// Begins an operation.
    pub(crate) fn begin(&mut self, operation: Operation) -> u32 {
        self.last_id += 1;
        let id = self.last_id;
        let window = INITIAL_WINDOW as usize;
        self.running.insert(id, RunningOperation { window, ..RunningOperation::default() });
        self.send(&HostMessage::Begin(id, operation));
        id
    }

    /// Does not return the output of an operation to the agent any more.
    pub(crate) fn hold(&mut self, id: u32) {
        self.running.get_mut(&id).unwrap().is_held = true;
    }

    /// What is known about an operation.
    pub(crate) fn collected(&self, id: u32) -> &RunningOperation {
        &self.running[&id]
    }

    /// Handles messages until something is true.
    pub(crate) fn wait_until(&mut self, is_true: impl Fn(&Self) -> bool) {
        while !is_true(self) {
            self.step();
        }
    }

    /// Waits until an operation has ended.
    pub(crate) fn finish(&mut self, id: u32) -> RunningOperation {
        self.wait_until(|agent| agent.running[&id].end.is_some());
        self.running.remove(&id).unwrap()
    }

    /// Sends input as the window allows, and then its end.
    pub(crate) fn put_input(&mut self, id: u32, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let running = self.running.get_mut(&id).unwrap();
            let length = running.window.min(bytes.len()).min(MAX_PAYLOAD);
            if length == 0 {
                self.step();
                continue;
            }
            running.window -= length;
            let (now, later) = bytes.split_at(length);
            self.send(&HostMessage::Input(id, now));
            bytes = later;
        }
        self.send(&HostMessage::InputEnd(id));
    }

    /// Runs a command without input to its end.
    pub(crate) fn run(&mut self, args: &[&str]) -> RunningOperation {
        let id = self.begin(Operation::Run(command(args)));
        self.finish(id)
    }

    /// Carries an operation out to its end.
    pub(crate) fn carry_out(&mut self, operation: Operation) -> RunningOperation {
        let id = self.begin(operation);
        self.finish(id)
    }

    /// Closes the host's end.
    pub(crate) fn close(&mut self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
    }

    fn receive(&mut self) {
        let mut buffer = vec![0; 256 * 1024];
        let length = self.socket.read(&mut buffer).unwrap();
        assert!(length > 0, "the agent has closed the socket");
        self.decoder.handle_bytes(&buffer[..length]);
    }

    /// Handles one message.
    pub(crate) fn step(&mut self) {
        let mut returned = None;
        match self.decoder.poll().unwrap() {
            None => self.receive(),
            Some(FrameEvent::Sync(session)) => panic!("session {session}"),
            Some(FrameEvent::Frame(frame)) => {
                let message = GuestMessage::read(frame).unwrap();
                let all = &mut self.running;
                match message {
                    GuestMessage::Started(id, pid) => {
                        assert_eq!(running(all, id).pid.replace(pid), None, "started twice");
                    }
                    GuestMessage::Output(id, stream, bytes) => {
                        let running = running(all, id);
                        assert_eq!(running.end, None, "output after the end");
                        match stream {
                            OutputStream::Stdout => running.stdout.extend_from_slice(bytes),
                            OutputStream::Stderr => running.stderr.extend_from_slice(bytes),
                        }
                        if !running.is_held {
                            returned = Some(HostMessage::Window(id, stream, bytes.len() as u32));
                        }
                    }
                    GuestMessage::Window(id, bytes) => running(all, id).window += bytes as usize,
                    GuestMessage::Finished(id, end) => {
                        assert_eq!(running(all, id).end.replace(end), None, "finished twice");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        if let Some(message) = returned {
            self.send(&message);
        }
    }
}

fn running(all: &mut BTreeMap<u32, RunningOperation>, id: u32) -> &mut RunningOperation {
    all.get_mut(&id).expect("a running operation")
}

impl Drop for ServedAgent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A command without input.
pub(crate) fn command(args: &[&str]) -> CommandSpec {
    let args = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
    CommandSpec { args, ..CommandSpec::default() }
}
