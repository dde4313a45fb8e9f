//! The door of a run for others of the same user: the socket `control` in its run directory.
//!
//! Who connects says one line of JSON, and gets one back:
//!
//! ```text
//! {"do": "stop", "grace": 30.0}     {"ok": true}, and when it is over how it ended; then the end
//! {"do": "kill"}                    the same
//! {"do": "console", "type": true}   {"ok": true, "types": true}, then the console's bytes both ways
//! ```
//!
//! Any number of consoles look on. One types: this run's own standard input, or else the first that
//! asked. One that does not read is cut off rather than waited for. The directory is open to its
//! owner alone, so whoever gets here may do all this.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use capsa::ConsoleMode;
use capsa::embed::{ReaderId, Vm};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::stdio::watch::Watch;

/// The socket's name in the run directory.
pub(crate) const SOCKET: &str = "control";
/// What is told of a run, in its directory.
pub(crate) const ABOUT: &str = "run.json";

/// Connections at once.
const MOST: usize = 64;
/// Bytes of a request.
const REQUEST: usize = 1024;
/// Bytes that a console may be behind.
const BEHIND: usize = 2 << 20;

/// What is told of a run to `capsa ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) name: Option<String>,
    pub(crate) backend: String,
    /// Seconds since 1970.
    pub(crate) started: u64,
    pub(crate) hypervisor: Option<u32>,
    /// There is a console to attach to.
    pub(crate) has_console: bool,
}

/// A request.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Request {
    /// The guest is asked to power off, and may take so many seconds.
    Stop {
        grace: Option<f64>,
    },
    Kill {},
    Console {
        r#type: bool,
    },
}

/// Who is ready: the door itself, or one who came through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Door,
    Guest(u64),
}

/// What somebody wants of the machine.
#[derive(Debug, PartialEq)]
pub(crate) enum Order {
    Stop(Option<Duration>),
    Kill,
    /// These bytes were typed. They are on their way to the guest already.
    Typed(Vec<u8>),
}

/// The door, and who came through it.
#[derive(Debug)]
pub(crate) struct Control {
    dir: PathBuf,
    about: About,
    door: UnixListener,
    peers: Vec<Connection>,
    /// The connection that types.
    typist: Option<u64>,
    next: u64,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    stream: UnixStream,
    /// What was read of the request.
    request: Vec<u8>,
    /// To be written.
    outgoing: Vec<u8>,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Its request has not come whole.
    New,
    /// Waits for the end.
    Waits,
    Console(ReaderId),
    /// Gone, or to be sent away when it has its answer.
    Leaves,
}

impl Control {
    /// Opens the door in the run directory, which is there while the machine lives.
    pub(crate) fn begin(vm: &Vm, name: Option<&str>) -> io::Result<Self> {
        let plan = vm.launch_plan();
        let dir = PathBuf::from(plan.run_dir.as_str());
        let door = UnixListener::bind(dir.join(SOCKET))?;
        door.set_nonblocking(true)?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let about = About {
            name: name.map(ToOwned::to_owned),
            backend: plan.backend.to_owned(),
            started: since.map(|since| since.as_secs()).unwrap_or_default(),
            hypervisor: vm.hypervisor_pid(),
            has_console: plan.console.mode() != ConsoleMode::Disabled,
        };
        write_whole(&dir.join(ABOUT), &serde_json::to_vec(&about)?)?;
        Ok(Self { dir, about, door, peers: Vec::new(), typist: None, next: 0 })
    }

    /// Tells of the hypervisor, once it runs. What is told stands where that cannot be written.
    pub(crate) fn tell(&mut self, vm: &Vm) {
        self.about.hypervisor = vm.hypervisor_pid();
        let about = serde_json::to_vec(&self.about).expect("plain data");
        let _ = write_whole(&self.dir.join(ABOUT), &about);
    }

    /// Whether others can find this run. Its directory may have been removed from under it.
    pub(crate) fn can_be_found(&self) -> bool {
        self.dir.join(ABOUT).exists()
    }

    /// Adds what it waits for.
    pub(crate) fn watch<'fd, Who: Copy>(
        &'fd self,
        watch: &mut Watch<'fd, Who>,
        who: impl Fn(Peer) -> Who,
    ) {
        if self.peers.len() < MOST {
            watch.readable(who(Peer::Door), self.door.as_fd());
        }
        for peer in &self.peers {
            watch.readable(who(Peer::Guest(peer.id)), peer.stream.as_fd());
            if !peer.outgoing.is_empty() {
                watch.writable(who(Peer::Guest(peer.id)), peer.stream.as_fd());
            }
        }
    }

    /// Hands on what the guest said.
    pub(crate) fn refill(&mut self, vm: &mut Vm) {
        for peer in &mut self.peers {
            if let Role::Console(reader) = peer.role {
                peer.outgoing.extend(vm.take(reader));
                peer.write();
                if peer.outgoing.len() > BEHIND {
                    peer.role = Role::Leaves;
                    peer.outgoing.clear();
                    vm.remove_reader(reader);
                }
            }
        }
        self.let_go();
    }

    /// Does what there is to do for one. `may_type` says that this run does not type itself.
    pub(crate) fn on_ready(&mut self, who: Peer, vm: &mut Vm, may_type: bool) -> Vec<Order> {
        let Peer::Guest(id) = who else {
            self.accept();
            return Vec::new();
        };
        let Some(at) = self.peers.iter().position(|peer| peer.id == id) else { return Vec::new() };
        let mut orders = Vec::new();
        self.peers[at].write();
        if let Some(bytes) = self.peers[at].read() {
            self.heard(at, &bytes, vm, may_type, &mut orders);
        } else {
            let peer = &mut self.peers[at];
            if let Role::Console(reader) = std::mem::replace(&mut peer.role, Role::Leaves) {
                vm.remove_reader(reader);
            }
            peer.outgoing.clear();
        }
        self.let_go();
        orders
    }

    /// Tells all who wait how the machine ended. They see the end of the connection.
    pub(crate) fn finish(mut self, told: &Value) {
        for peer in &mut self.peers {
            if peer.role == Role::Waits {
                peer.say(told);
            }
            peer.write();
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.door.accept() else { return };
        if stream.set_nonblocking(true).is_ok() {
            self.next += 1;
            let (id, role) = (self.next, Role::New);
            self.peers.push(Connection {
                id,
                stream,
                request: Vec::new(),
                outgoing: Vec::new(),
                role,
            });
        }
    }

    fn heard(
        &mut self,
        at: usize,
        bytes: &[u8],
        vm: &mut Vm,
        may_type: bool,
        orders: &mut Vec<Order>,
    ) {
        let peer = &mut self.peers[at];
        match peer.role {
            Role::New => {
                peer.request.extend_from_slice(bytes);
                let Some(end) = peer.request.iter().position(|byte| *byte == b'\n') else {
                    if peer.request.len() > REQUEST {
                        peer.refuse("the request is too long");
                    }
                    return;
                };
                let rest = peer.request.split_off(end + 1);
                let request = std::mem::take(&mut peer.request);
                match serde_json::from_slice(&request) {
                    Ok(request) => self.serve(at, &request, vm, may_type, orders),
                    Err(error) => peer.refuse(&format!("the request is not understood: {error}")),
                }
                if !rest.is_empty() {
                    self.typed(at, rest, vm, orders);
                }
            }
            Role::Console(_) => self.typed(at, bytes.to_vec(), vm, orders),
            Role::Waits | Role::Leaves => {}
        }
    }

    fn serve(
        &mut self,
        at: usize,
        request: &Request,
        vm: &mut Vm,
        may_type: bool,
        orders: &mut Vec<Order>,
    ) {
        let peer = &mut self.peers[at];
        match request {
            Request::Stop { grace } => {
                let grace = grace.and_then(|grace| Duration::try_from_secs_f64(grace).ok());
                orders.push(Order::Stop(grace));
                peer.role = Role::Waits;
                peer.say(&json!({"ok": true}));
            }
            Request::Kill {} => {
                orders.push(Order::Kill);
                peer.role = Role::Waits;
                peer.say(&json!({"ok": true}));
            }
            Request::Console { .. } if vm.launch_plan().console.mode() == ConsoleMode::Disabled => {
                peer.refuse("it has no console; start it with --console enabled");
            }
            Request::Console { r#type } => {
                let types = *r#type && may_type && self.typist.is_none();
                if types {
                    self.typist = Some(peer.id);
                }
                peer.say(&json!({"ok": true, "types": types}));
                peer.role = Role::Console(vm.add_reader());
            }
        }
    }

    /// What is typed by somebody who does not type is thrown away.
    fn typed(&mut self, at: usize, bytes: Vec<u8>, vm: &mut Vm, orders: &mut Vec<Order>) {
        if bytes.is_empty() || self.typist != Some(self.peers[at].id) {
            return;
        }
        // People do not type 256 KiB ahead; what does not fit is lost, as on a serial line.
        if vm.write(&bytes).is_ok() {
            orders.push(Order::Typed(bytes));
        }
    }

    fn let_go(&mut self) {
        self.peers.retain(|peer| peer.role != Role::Leaves || !peer.outgoing.is_empty());
        let typist = self.typist.filter(|id| self.peers.iter().any(|peer| peer.id == *id));
        self.typist = typist;
    }
}

impl Connection {
    /// What came; `None` when it is gone.
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

    /// Writes what it takes. One that is gone is noticed by its read.
    fn write(&mut self) {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(n @ 1..) => drop(self.outgoing.drain(..n)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn say(&mut self, value: &Value) {
        self.outgoing.extend(format!("{value}\n").into_bytes());
        self.write();
    }

    fn refuse(&mut self, why: &str) {
        self.role = Role::Leaves;
        self.say(&json!({"ok": false, "why": why}));
    }
}

/// A file that is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_header_says() {
        for (text, want) in [
            (r#"{"do": "stop", "grace": 1.5}"#, Request::Stop { grace: Some(1.5) }),
            (r#"{"do": "stop", "grace": null}"#, Request::Stop { grace: None }),
            (r#"{"do": "kill"}"#, Request::Kill {}),
            (r#"{"do": "console", "type": true}"#, Request::Console { r#type: true }),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), want);
            let again = serde_json::to_string(&want).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&again).unwrap(), want);
        }
        for text in ["{}", "[]", r#"{"do": "reboot"}"#, r#"{"do": "kill", "x": 1}"#] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}
