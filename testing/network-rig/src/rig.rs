//! [`Rig`]: a host with servers, a remote network, and guests behind stacks.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use capsa_fixtures::command;

use crate::RigError;
use crate::namespace::{Namespace, TAP};
use crate::peers::{self, GATEWAY, NAME_SERVER, RigProcess};
use crate::stack::{self, StackOptions};

/// The addresses of the host on the network that it shares with the remote network.
pub const HOST: [&str; 2] = ["203.0.114.1", "2001:db9::1"];
/// The addresses of the remote network.
pub const REMOTE: [&str; 2] = ["203.0.114.2", "2001:db9::2"];

/// The host of guests: servers on its loopback, and a remote network with the same servers.
#[derive(Debug)]
pub struct Rig {
    program: PathBuf,
    /// The host.
    pub host: Namespace,
    /// The remote network.
    pub remote: Namespace,
    _servers: [RigProcess; 2],
}

/// What connects a guest with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GuestStack {
    /// Nothing: the traffic runs on the loopback of the host.
    Loopback,
    /// slirp4netns.
    Slirp4netns,
    /// pasta.
    Pasta,
    /// The stack of Capsa.
    Capsa,
    /// The stack of Capsa under [`stack::policy`].
    CapsaPolicy,
}

/// A guest with a configured card.
#[derive(Debug)]
pub struct RigGuest {
    /// Its namespace; none for the loopback.
    pub namespace: Option<Namespace>,
    stack: Option<RigProcess>,
}

/// The figures of one kind of traffic, by name.
pub type Figures = BTreeMap<String, f64>;

impl RigGuest {
    /// The time that the stack has run on a CPU, in seconds. It includes what the guest's kernel does with a
    /// frame of the stack.
    ///
    /// # Errors
    ///
    /// Without `/proc/PID/schedstat`.
    pub fn cpu_seconds(&self) -> Result<f64, RigError> {
        let Some(stack) = &self.stack else { return Ok(0.0) };
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", stack.0.id()))?;
        let nanos: u64 = text.split(' ').next().unwrap_or_default().parse()?;
        Ok(nanos as f64 / 1e9)
    }
}

impl Rig {
    /// Creates the host and the remote network. `program` is the program `network-rig`.
    ///
    /// # Errors
    ///
    /// When this host permits no namespaces, or has no `ip`.
    pub fn new(program: &Path) -> Result<Self, RigError> {
        let host = Namespace::new(program)?;
        let remote = host.beside()?;
        let addresses = |all: [&str; 2]| [format!("{}/24", all[0]), format!("{}/64", all[1])];
        let (ours, theirs) = (addresses(HOST), addresses(REMOTE));
        host.connect("out0", &[&ours[0], &ours[1]], &remote, &[&theirs[0], &theirs[1]])?;
        for address in REMOTE {
            let family = if address.contains(':') { "-6" } else { "-4" };
            host.ip(&format!("{family} route add default via {address}"))?;
        }
        let servers = [serve(&host)?, serve(&remote)?];
        Ok(Self { program: program.to_owned(), host, remote, _servers: servers })
    }

    /// A guest behind a stack.
    ///
    /// # Errors
    ///
    /// When the stack does not start.
    pub fn guest(&self, stack: GuestStack, mtu: u16) -> Result<RigGuest, RigError> {
        let (namespace, process) = match stack {
            GuestStack::Loopback => return Ok(RigGuest { namespace: None, stack: None }),
            GuestStack::Slirp4netns => {
                let guest = self.host.beside()?;
                let process = peers::slirp4netns(&self.host, &guest, mtu)?;
                (guest, process)
            }
            GuestStack::Pasta => {
                let guest = Namespace::new_unprivileged(&self.program)?;
                let process = peers::pasta(&self.program, &self.host, &guest, mtu)?;
                (guest, process)
            }
            GuestStack::Capsa | GuestStack::CapsaPolicy => {
                let options = match stack {
                    GuestStack::CapsaPolicy => StackOptions::Policy,
                    _ => StackOptions::Nat,
                };
                let guest = self.unconfigured_guest(mtu, options)?;
                let namespace = guest.namespace.as_ref().expect("a guest behind a stack");
                stack::configure(namespace)?;
                return Ok(guest);
            }
        };
        Ok(RigGuest { namespace: Some(namespace), stack: Some(process) })
    }

    /// A guest behind the stack of Capsa whose card is up, without an address of IPv4.
    ///
    /// # Errors
    ///
    /// When the stack does not start.
    pub fn unconfigured_guest(
        &self,
        mtu: u16,
        options: StackOptions,
    ) -> Result<RigGuest, RigError> {
        let mut guest = self.host.beside()?;
        let process = stack::start(&self.host, &mut guest, mtu, options)?;
        Ok(RigGuest { namespace: Some(guest), stack: Some(process) })
    }

    /// The microseconds that a guest waits for a lease.
    ///
    /// # Errors
    ///
    /// When it gets none.
    pub fn lease_micros(&self) -> Result<f64, RigError> {
        let guest = self.unconfigured_guest(1500, StackOptions::Nat)?;
        let namespace = guest.namespace.as_ref().expect("a guest behind a stack");
        namespace.ip(&format!("route add default dev {TAP}"))?;
        let figures = traffic(namespace, "dhcp", SocketAddr::from(([255; 4], 67)), 0)?;
        Ok(*figures.get("micros").ok_or("no lease")?)
    }

    /// Runs traffic of a guest with the servers on the host's loopback, and returns its figures. `n` is the
    /// number of the traffic: seconds, bytes or times.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn traffic(&self, guest: &RigGuest, name: &str, n: u64) -> Result<Figures, RigError> {
        let (address, port) = match (name.starts_with("query="), &guest.namespace) {
            // Of a guest: the name server. On the loopback, each datagram comes back.
            (true, Some(_)) => (NAME_SERVER, 53),
            (true, None) => ("127.0.0.1", crate::server::UDP_ECHO),
            (false, Some(_)) => (GATEWAY, crate::server::REQUESTS),
            (false, None) => ("127.0.0.1", crate::server::REQUESTS),
        };
        let server = SocketAddr::new(address.parse()?, port);
        traffic(guest.namespace.as_ref().unwrap_or(&self.host), name, server, n)
    }
}

/// Runs traffic in a namespace and returns its figures.
///
/// # Errors
///
/// When it fails.
pub fn traffic(
    guest: &Namespace,
    name: &str,
    server: SocketAddr,
    n: u64,
) -> Result<Figures, RigError> {
    Ok(figures(&output(guest, name, server, n)?))
}

/// The figures that a program printed.
pub(crate) fn figures(text: &str) -> Figures {
    let figure = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(figure).collect()
}

/// Connects once from a namespace: `Connected`, or the kind of the error.
///
/// # Errors
///
/// When the program of the guest fails.
pub fn connect(guest: &Namespace, server: SocketAddr) -> Result<String, RigError> {
    Ok(result(guest, "connect", server)?.ok_or("no result")?)
}

/// Runs traffic in a namespace and returns its result, if it has one.
///
/// # Errors
///
/// When it fails.
pub fn result(
    guest: &Namespace,
    name: &str,
    server: SocketAddr,
) -> Result<Option<String>, RigError> {
    let text = output(guest, name, server, 0)?;
    Ok(text.lines().find_map(|line| line.strip_prefix("result ")).map(str::to_owned))
}

/// The names that the name server in a namespace was asked for.
///
/// # Errors
///
/// When it does not answer.
pub fn asked_names(host: &Namespace) -> Result<Vec<String>, RigError> {
    let server = SocketAddr::from(([127, 0, 0, 1], crate::server::REQUESTS));
    let text = output(host, "asked-names", server, 0)?;
    // The figures come after the names.
    Ok(text.lines().filter(|line| !line.contains(' ')).map(str::to_owned).collect())
}

fn output(guest: &Namespace, name: &str, server: SocketAddr, n: u64) -> Result<String, RigError> {
    let mut command = guest.rig("traffic");
    command.args([name, &server.to_string(), &n.to_string()]);
    Ok(command::text(&mut command)?)
}

/// Starts the servers in a namespace.
///
/// # Errors
///
/// When they do not start.
pub fn serve(namespace: &Namespace) -> Result<RigProcess, RigError> {
    let mut servers = namespace.rig("serve").stdout(Stdio::piped()).spawn()?;
    let output = servers.stdout.take().expect("piped");
    let servers = RigProcess(servers);
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if line != "ready\n" {
        return Err("the servers did not start".into());
    }
    Ok(servers)
}
