//! The control socket of a run: a listener, its clients, and the client that owns the input.
//!
//! The session polls the descriptors ([`ControlServer::register`]), calls
//! [`ControlServer::on_ready`] for those that are ready, and carries out the commands that it
//! returns. Nothing here blocks. The module header of [`crate::running`] describes the protocol.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use capsa::embed::{PauseRequest, ReaderId, Vm};
use capsa::network::{NetworkPolicy, PolicyMode};
use capsa::{ConsoleMode, VmStatus};
use serde::Serialize;
use serde_json::Value;

use super::protocol::{
    CONTROL_SOCKET, LinkState, MAX_REQUEST_LEN, RUN_INFO_FILE, RunInfo, SocketReply, SocketRequest,
    to_line,
};
use crate::stdio::poll_set::PollSet;

/// Clients at once.
const MAX_CLIENTS: usize = 64;
/// A console client with more unread output than this is disconnected.
const MAX_UNREAD: usize = 2 << 20;

/// A descriptor of the control server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlSource {
    Listener,
    Client(u64),
}

/// What the session has to do for a client.
#[derive(Debug, PartialEq)]
pub(crate) enum ClientCommand {
    /// Stop the VM, with this grace period or the run's own.
    Stop(Option<Duration>),
    Kill,
    /// Record this input. It is already written to the console.
    Input(Vec<u8>),
}

/// The listener and its clients.
#[derive(Debug)]
pub(crate) struct ControlServer {
    run_dir: PathBuf,
    /// The grace period of a stop that names none.
    grace: Duration,
    info: RunInfo,
    listener: UnixListener,
    clients: Vec<ClientConnection>,
    /// The client whose input goes to the console.
    input_owner: Option<u64>,
    last_id: u64,
}

#[derive(Debug)]
struct ClientConnection {
    id: u64,
    stream: UnixStream,
    /// The part of the request that has been read.
    request: Vec<u8>,
    /// Bytes that are not written yet.
    outgoing: Vec<u8>,
    state: ClientState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientState {
    /// The request is not complete.
    AwaitingRequest,
    /// The client waits until the VM has ended.
    AwaitingEnd,
    /// The client waits until the guest is paused or resumed.
    AwaitingPause(PauseRequest),
    Console(ReaderId),
    /// The connection closes once `outgoing` is written.
    Closing,
}

/// The mode of a network with this policy, as after `--network`.
fn mode_name(policy: Option<&NetworkPolicy>) -> &'static str {
    match policy.map(|policy| policy.mode) {
        None => "nat",
        Some(PolicyMode::Record) => "record",
        Some(_) => "policy",
    }
}

impl ControlServer {
    /// Listens in the run directory, and publishes the run's information there.
    pub(crate) fn bind(vm: &Vm, name: Option<&str>, grace: Duration) -> io::Result<Self> {
        let plan = vm.launch_plan();
        let run_dir = plan.run_dir().to_owned();
        let listener = capsa::internal::listen(&run_dir.join(CONTROL_SOCKET))?;
        listener.set_nonblocking(true)?;
        let network = capsa::internal::parts(plan).network.as_ref();
        let services = network.iter().flat_map(|network| &network.options.services);
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let info = RunInfo {
            name: name.map(ToOwned::to_owned),
            backend: plan.backend().to_owned(),
            started: since_epoch.map(|time| time.as_secs()).unwrap_or_default(),
            hypervisor: vm.hypervisor_pid(),
            has_console: plan.console() != ConsoleMode::Disabled,
            status: vm.status().to_string(),
            disk_errors: Vec::new(),
            forwards: vm.forwards().iter().map(ToString::to_string).collect(),
            services: services.map(|service| service.to_string()).collect(),
            link: network.map(|_| LinkState::Up),
            network_mode: match network {
                Some(network) => mode_name(network.policy.as_ref()).into(),
                None => "none".into(),
            },
        };
        replace_file(&run_dir.join(RUN_INFO_FILE), &to_line(&info))?;
        let (clients, input_owner, last_id) = (Vec::new(), None, 0);
        Ok(Self { run_dir, grace, info, listener, clients, input_owner, last_id })
    }

    /// Publishes the hypervisor's process id, the status and the disk errors. On a write error the old
    /// file stays.
    pub(crate) fn publish(&mut self, vm: &Vm) {
        self.info.hypervisor = vm.hypervisor_pid();
        self.info.status = vm.status().to_string();
        self.info.disk_errors = vm.disk_errors().iter().map(ToString::to_string).collect();
        self.write_info();
    }

    fn write_info(&self) {
        let _ = replace_file(&self.run_dir.join(RUN_INFO_FILE), &to_line(&self.info));
    }

    /// Whether other processes can find this run; they cannot once its directory is removed.
    pub(crate) fn is_published(&self) -> bool {
        self.run_dir.join(RUN_INFO_FILE).exists()
    }

    /// Adds the descriptors to poll.
    pub(crate) fn register<'fd, Source: Copy>(
        &'fd self,
        poll_set: &mut PollSet<'fd, Source>,
        source: impl Fn(ControlSource) -> Source,
    ) {
        if self.clients.len() < MAX_CLIENTS {
            poll_set.readable(source(ControlSource::Listener), self.listener.as_fd());
        }
        for client in &self.clients {
            let source = source(ControlSource::Client(client.id));
            poll_set.readable(source, client.stream.as_fd());
            if !client.outgoing.is_empty() {
                poll_set.writable(source, client.stream.as_fd());
            }
        }
    }

    /// Writes new console output to the attached clients.
    pub(crate) fn send_console_output(&mut self, vm: &mut Vm) {
        for client in &mut self.clients {
            if let ClientState::Console(reader) = client.state {
                client.outgoing.extend(vm.take(reader));
                client.write();
                if client.outgoing.len() > MAX_UNREAD {
                    client.state = ClientState::Closing;
                    client.outgoing.clear();
                    vm.remove_reader(reader);
                }
            }
        }
        self.remove_closed();
    }

    /// Accepts a client, or reads and writes one. `input_is_free`: the run itself does not use the
    /// console's input, so a client may own it.
    pub(crate) fn on_ready(
        &mut self,
        source: ControlSource,
        vm: &mut Vm,
        input_is_free: bool,
    ) -> Vec<ClientCommand> {
        let ControlSource::Client(id) = source else {
            self.accept();
            return Vec::new();
        };
        let Some(at) = self.clients.iter().position(|client| client.id == id) else {
            return Vec::new();
        };
        let mut commands = Vec::new();
        self.clients[at].write();
        if let Some(bytes) = self.clients[at].read() {
            self.received(at, &bytes, vm, input_is_free, &mut commands);
        } else {
            let client = &mut self.clients[at];
            let state = std::mem::replace(&mut client.state, ClientState::Closing);
            if let ClientState::Console(reader) = state {
                vm.remove_reader(reader);
            }
            client.outgoing.clear();
        }
        self.remove_closed();
        commands
    }

    /// Sends the final report to the clients that wait for the end, and closes all connections.
    pub(crate) fn finish(mut self, report: &Value) {
        for client in &mut self.clients {
            if client.state == ClientState::AwaitingEnd {
                client.send(report);
            }
            client.write();
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if stream.set_nonblocking(true).is_ok() {
            self.last_id += 1;
            self.clients.push(ClientConnection {
                id: self.last_id,
                stream,
                request: Vec::new(),
                outgoing: Vec::new(),
                state: ClientState::AwaitingRequest,
            });
        }
    }

    fn received(
        &mut self,
        at: usize,
        bytes: &[u8],
        vm: &mut Vm,
        input_is_free: bool,
        commands: &mut Vec<ClientCommand>,
    ) {
        let client = &mut self.clients[at];
        match client.state {
            ClientState::AwaitingRequest => {
                let known = client.request.len();
                client.request.extend_from_slice(bytes);
                let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                    if client.request.len() > MAX_REQUEST_LEN {
                        client.reject(format!("the request exceeds {MAX_REQUEST_LEN} bytes"));
                    }
                    return;
                };
                let rest = client.request.split_off(known + end + 1);
                let request = std::mem::take(&mut client.request);
                match serde_json::from_slice(&request) {
                    Ok(request) => self.serve(at, &request, vm, input_is_free, commands),
                    Err(error) => client.reject(format!("invalid request: {error}")),
                }
                if !rest.is_empty() {
                    self.write_input(at, rest, vm, commands);
                }
            }
            ClientState::Console(_) => self.write_input(at, bytes.to_vec(), vm, commands),
            ClientState::AwaitingEnd | ClientState::AwaitingPause(_) | ClientState::Closing => {}
        }
    }

    fn serve(
        &mut self,
        at: usize,
        request: &SocketRequest,
        vm: &mut Vm,
        input_is_free: bool,
        commands: &mut Vec<ClientCommand>,
    ) {
        let client = &mut self.clients[at];
        match request {
            SocketRequest::Stop { grace } => {
                let grace = grace.and_then(|grace| Duration::try_from_secs_f64(grace).ok());
                commands.push(ClientCommand::Stop(grace));
                client.state = ClientState::AwaitingEnd;
                client.send(&SocketReply::stopping(grace.unwrap_or(self.grace)));
            }
            SocketRequest::Kill {} => {
                commands.push(ClientCommand::Kill);
                client.state = ClientState::AwaitingEnd;
                client.send(&SocketReply::accepted());
            }
            SocketRequest::Pause {} => client.await_pause(PauseRequest::Pause, vm.pause()),
            SocketRequest::Resume {} => client.await_pause(PauseRequest::Resume, vm.resume()),
            SocketRequest::Link { up } => {
                let link = if *up { LinkState::Up } else { LinkState::Down };
                let changed = vm.set_network_link(*up).map(|()| self.info.link = Some(link));
                self.answer_change(at, changed);
            }
            SocketRequest::Policy { policy } => {
                let changed = vm.set_network_policy(policy.clone());
                let changed =
                    changed.map(|()| self.info.network_mode = mode_name(Some(policy)).into());
                self.answer_change(at, changed);
            }
            SocketRequest::Counters {} => {
                client.state = ClientState::Closing;
                client.send(&match capsa::internal::parts(vm.launch_plan()).network {
                    Some(_) => {
                        let counters = vm.network_counters().named();
                        let counters = counters.map(|(name, count)| (name.to_owned(), count));
                        SocketReply::counters(counters.into())
                    }
                    None => SocketReply::rejected("the VM has no network".into()),
                });
            }
            SocketRequest::Console { .. }
                if vm.launch_plan().console() == ConsoleMode::Disabled =>
            {
                client.reject("the VM has no console; start it with --console enabled".into());
            }
            SocketRequest::Console { input } => {
                let owns_input = *input && input_is_free && self.input_owner.is_none();
                if owns_input {
                    self.input_owner = Some(client.id);
                }
                client.send(&SocketReply::attached(owns_input));
                client.state = ClientState::Console(vm.add_reader());
            }
        }
    }

    /// Publishes a change of the network, and then replies, so that a client that has the reply reads the
    /// new state.
    fn answer_change(&mut self, at: usize, changed: capsa::Result<()>) {
        self.write_info();
        let client = &mut self.clients[at];
        match changed {
            Ok(()) => {
                client.state = ClientState::Closing;
                client.send(&SocketReply::accepted());
            }
            Err(error) => client.reject(error.to_string()),
        }
    }

    /// Replies to clients whose request to pause or resume is done, or cannot be done any more.
    /// Call it for each status, because the next one may follow at once, and without a request that is not
    /// answered yet.
    pub(crate) fn answer_pauses(&mut self, status: &VmStatus) {
        for client in &mut self.clients {
            let ClientState::AwaitingPause(request) = client.state else { continue };
            match (request, status) {
                (PauseRequest::Pause, VmStatus::Paused)
                | (PauseRequest::Resume, VmStatus::Running) => {
                    client.state = ClientState::Closing;
                    client.send(&SocketReply::accepted());
                }
                (_, VmStatus::Running | VmStatus::Paused) => {}
                (_, status) => client.reject(format!("the VM is {status}")),
            }
        }
        self.remove_closed();
    }

    /// Replies to clients whose request to pause or resume was rejected by the hypervisor.
    pub(crate) fn reject_pauses(&mut self, request: PauseRequest, reason: &str) {
        for client in &mut self.clients {
            if client.state == ClientState::AwaitingPause(request) {
                client.reject(reason.to_owned());
            }
        }
        self.remove_closed();
    }

    /// Writes a client's input to the console. Input of a client that is not the owner is discarded.
    fn write_input(
        &mut self,
        at: usize,
        bytes: Vec<u8>,
        vm: &mut Vm,
        commands: &mut Vec<ClientCommand>,
    ) {
        if bytes.is_empty() || self.input_owner != Some(self.clients[at].id) {
            return;
        }
        // What exceeds the input queue of 256 KiB is lost, as on a serial line.
        if vm.write(&bytes).is_ok() {
            commands.push(ClientCommand::Input(bytes));
        }
    }

    fn remove_closed(&mut self) {
        self.clients
            .retain(|client| client.state != ClientState::Closing || !client.outgoing.is_empty());
        let is_connected = |id: &u64| self.clients.iter().any(|client| client.id == *id);
        self.input_owner = self.input_owner.filter(is_connected);
    }
}

impl ClientConnection {
    /// What can be read now; `None` when the client has disconnected.
    fn read(&mut self) -> Option<Vec<u8>> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => None,
            Ok(n) => Some(chunk[..n].to_vec()),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Some(Vec::new())
            }
            Err(_) => None,
        }
    }

    /// Writes as much as the socket takes. A disconnected client is detected by its read.
    fn write(&mut self) {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(n @ 1..) => drop(self.outgoing.drain(..n)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn send(&mut self, message: &impl Serialize) {
        self.outgoing.extend(to_line(message));
        self.write();
    }

    /// Waits for the end of a request to pause or resume, unless the VM rejects it at once.
    fn await_pause(&mut self, request: PauseRequest, requested: capsa::Result<()>) {
        match requested {
            Ok(()) => self.state = ClientState::AwaitingPause(request),
            Err(error) => self.reject(error.to_string()),
        }
    }

    fn reject(&mut self, reason: String) {
        self.state = ClientState::Closing;
        self.send(&SocketReply::rejected(reason));
    }
}

/// Replaces a file at once, so that a reader sees the old content or the new.
fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}
