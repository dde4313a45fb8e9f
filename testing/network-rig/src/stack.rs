//! The stack of Capsa behind a tap device, in a process of its own.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use capsa_io::clock::MonotonicClock;
use capsa_io::network::Network;
use capsa_proto::path::HostPath;
use capsa_proto::plan::{MacAddress, NetworkLink, NetworkPlan};
use capsa_proto::policy::{NetworkPolicy, PolicyLimits};
use capsa_proto::spec::{ForwardHost, NetworkOptions, PortForward, TransportProtocol};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::RigError;
use crate::name_server;
use crate::namespace::{Namespace, TAP};
use crate::peers::RigProcess;
use crate::server::{GREETING, HTTP, REQUESTS, UDP_ECHO};

/// The port of the host, of TCP and of UDP, that is forwarded to the servers of a guest.
pub const FORWARDED: u16 = 7001;

/// The name that [`policy`] allows.
pub const ALLOWED_NAME: &str = "allowed.example";
/// A name that it does not allow.
pub const REFUSED_NAME: &str = "refused.example";

/// The rules of [`policy`].
const RULES: usize = 1000;

/// What a stack permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackOptions {
    /// The servers of the host, and the internet.
    Nat,
    /// The same, and [`FORWARDED`] is forwarded: one stack of a host can have it.
    Forwards,
    /// What [`policy`] allows. The host's resolver asks the name server of the rig.
    Policy,
}

/// A policy of 1,000 rules that allows the servers of the host, and those of the remote network by the name
/// [`ALLOWED_NAME`]. Its limits of rates are not reached.
pub fn policy() -> NetworkPolicy {
    let servers = [
        format!("host:{REQUESTS}"),
        format!("host:{GREETING}"),
        format!("{ALLOWED_NAME}:{REQUESTS}"),
        format!("{ALLOWED_NAME}:{HTTP}"),
    ];
    let others = (servers.len()..RULES).map(|n| match n % 4 {
        0 => format!("n{n}.registry.example:443"),
        1 => format!("*.n{n}.example:443"),
        2 => format!("**.n{n}.example:443"),
        _ => format!("93.{}.{}.0/{}:443", n / 256, n % 256, 24 + n % 5),
    });
    let mut limits = PolicyLimits::default();
    (limits.flows_per_second, limits.queries_per_second) = (100_000, 100_000);
    let rules = servers.into_iter().chain(others);
    rules.fold(NetworkPolicy::new(), NetworkPolicy::allow).limits(limits)
}

/// Starts the stack for a guest, whose card gets the address by hand.
///
/// # Errors
///
/// When it does not start.
pub fn start(
    host: &Namespace,
    guest: &mut Namespace,
    mtu: u16,
    options: StackOptions,
) -> Result<RigProcess, RigError> {
    let tap = guest.create_tap()?;
    let mut stack = host.rig("stack");
    stack.args([mtu.to_string(), format!("{options:?}")]).stdin(tap).stdout(Stdio::null());
    let stack = RigProcess(stack.spawn()?);
    guest.ip(&format!("link set {TAP} address {} mtu {mtu} up", MacAddress::GUEST))?;
    Ok(stack)
}

/// Gives the card of a guest its address, as DHCP would.
///
/// # Errors
///
/// When `ip` fails.
pub fn configure(guest: &Namespace) -> Result<(), RigError> {
    guest.ip(&format!("addr add 10.0.2.15/24 dev {TAP}"))?;
    guest.ip("route add default via 10.0.2.2")
}

/// Runs the stack behind the tap device that is standard input, until the process is killed.
pub(crate) fn run(mtu: &str, options: &str) -> Result<(), RigError> {
    let policy = (options == format!("{:?}", StackOptions::Policy)).then(policy);
    let with_forwards = options == format!("{:?}", StackOptions::Forwards);
    if policy.is_some() {
        name_server::use_for_names()?;
    }
    let tap: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    fcntl(&tap, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
    let forwards = [
        forward(FORWARDED, REQUESTS, TransportProtocol::Tcp),
        forward(FORWARDED, UDP_ECHO, TransportProtocol::Udp),
    ];
    let options = NetworkOptions {
        host_ports: match policy {
            Some(_) => BTreeSet::new(),
            None => [REQUESTS, GREETING, UDP_ECHO].into(),
        },
        forwards: if with_forwards { forwards.into() } else { Vec::new() },
        ..NetworkOptions::default()
    };
    let plan = NetworkPlan {
        mac: MacAddress::GUEST,
        mtu: mtu.parse()?,
        link: NetworkLink::Datagram,
        policy,
        options,
        carrier: None,
    };
    let mut network = Network::new(&plan, &HostPath::new("/")?)?;
    network.attach(&plan.link, tap)?;
    let clock = MonotonicClock::new();
    loop {
        let timeout = match network.poll_timeout() {
            _ if network.has_work() => PollTimeout::ZERO,
            Some(deadline) => {
                let left = clock.until(deadline).as_micros().div_ceil(1000);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        poll(&mut [PollFd::new(network.as_fd(), PollFlags::POLLIN)], timeout)?;
        network.on_ready(clock.now())?;
    }
}

fn forward(port: u16, guest: u16, protocol: TransportProtocol) -> PortForward {
    PortForward { host: ForwardHost::Port { address: None, port }, guest, protocol }
}
