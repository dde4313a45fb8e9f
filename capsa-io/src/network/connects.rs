//! Connects the sockets of TCP flows, to one address after the other.
//!
//! The next address is tried when one fails, or 250 ms after the last one was tried (RFC 8305). The first
//! socket that is connected becomes that of the flow. An address that the host's kernel would deliver to the
//! host itself is left out; if all are, the flow is refused.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use capsa_net::{Destination, FlowId};
use capsa_proto::time::{Deadline, Instant};
use rustix::io::Errno;
use rustix::net::{SocketType, connect, getpeername, sockopt};

use super::sockets::{family, open_remote};
use super::{Key, Network};
use crate::sys::{self, Poll, PollSource, RouteProtocol};

/// After this time without an answer the next address is tried too.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of a name that are tried, at most.
const ATTEMPTS: usize = 8;

/// The flows that are connecting, by their index.
#[derive(Debug, Default)]
pub(super) struct ConnectTable {
    pending: BTreeMap<usize, PendingConnect>,
}

/// A flow that is connecting.
#[derive(Debug)]
struct PendingConnect {
    flow: FlowId,
    /// The sockets that are connecting.
    attempts: Vec<PollSource<OwnedFd>>,
    /// The addresses that were not tried, the next one last.
    rest: Vec<SocketAddr>,
    /// Whether an address may be the host's own.
    may_be_host: bool,
    /// When the next address is tried.
    next_at: Option<Instant>,
    /// Why the last attempt failed. An address of the host counts only if there is no other.
    error: Option<io::Error>,
}

impl ConnectTable {
    /// When [`Network::try_further_addresses`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let at = self.pending.values().filter_map(|pending| pending.next_at).min()?;
        Some(Deadline { at, why: "next address of a name" })
    }

    /// Closes the sockets of a flow that has ended.
    pub(super) fn remove(&mut self, flow: FlowId) {
        if self.pending.get(&flow.index()).is_some_and(|pending| pending.flow == flow) {
            self.pending.remove(&flow.index());
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

impl PendingConnect {
    /// Tries the next addresses until one is connecting. Returns a socket that is connected at once.
    fn try_next(&mut self, poll: &Poll, now: Instant) -> Option<PollSource<OwnedFd>> {
        self.next_at = None;
        while let Some(remote) = self.rest.pop() {
            match self.attempt(remote, poll) {
                Ok((source, true)) => return Some(source),
                Ok((source, false)) => {
                    self.attempts.push(source);
                    self.next_at = (!self.rest.is_empty()).then_some(now + ATTEMPT_DELAY);
                    return None;
                }
                Err(error) => self.note(error),
            }
        }
        None
    }

    /// Starts to connect to an address; `true` if the socket is connected at once.
    fn attempt(&self, remote: SocketAddr, poll: &Poll) -> io::Result<(PollSource<OwnedFd>, bool)> {
        let remote = match self.may_be_host {
            true => open_remote(remote, RouteProtocol::Tcp)?,
            false => remote,
        };
        let socket = sys::inet_socket(family(remote), SocketType::STREAM, None)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        let is_connected = match connect(&socket, &remote) {
            Ok(()) => true,
            Err(Errno::INPROGRESS | Errno::INTR) => false,
            Err(error) => return Err(error.into()),
        };
        let mut source = poll.add_idle(socket, Key::Flow(self.flow.index()).encode());
        if !is_connected {
            source.set_interest(false, true)?;
        }
        Ok((source, is_connected))
    }

    fn note(&mut self, error: io::Error) {
        if self.error.is_none() || error.kind() != io::ErrorKind::PermissionDenied {
            self.error = Some(error);
        }
    }
}

impl Network {
    /// Connects a flow, whose result the stack gets now or later.
    pub(super) fn connect(&mut self, flow: FlowId, destination: Destination, now: Instant) {
        let (mut addresses, may_be_host) = match destination {
            Destination::Remote(remote) => (vec![remote], true),
            Destination::Name(addresses) => (by_turns(addresses), true),
            Destination::Host(port) => {
                let v4 = (Ipv4Addr::LOCALHOST, port).into();
                (vec![v4, (Ipv6Addr::LOCALHOST, port).into()], false)
            }
            Destination::Service(index) => {
                return match self.connect_service(flow, index) {
                    Ok(source) => self.handle_connected(flow, source, now),
                    Err(error) => self.handle_connect_error(flow, &error),
                };
            }
        };
        addresses.truncate(ATTEMPTS);
        addresses.reverse();
        let (attempts, next_at, error) = (Vec::new(), None, None);
        let rest = addresses;
        let pending = PendingConnect { flow, attempts, rest, may_be_host, next_at, error };
        self.advance_connect(pending, true, now);
    }

    /// A socket of this flow may have connected or failed.
    pub(super) fn on_connecting(&mut self, index: usize, now: Instant) -> bool {
        let Some(mut pending) = self.connects.pending.remove(&index) else { return false };
        let mut has_failed = false;
        for source in std::mem::take(&mut pending.attempts) {
            match connect_result(source.io_ref()) {
                Ok(Some(remote)) => {
                    self.net.set_remote_address(pending.flow, remote.ip());
                    self.handle_connected(pending.flow, source, now);
                    return true;
                }
                Ok(None) => pending.attempts.push(source),
                Err(error) => {
                    pending.note(error);
                    has_failed = true;
                }
            }
        }
        self.advance_connect(pending, has_failed, now);
        true
    }

    /// Tries further addresses of the flows whose last attempt has no answer yet.
    pub(super) fn try_further_addresses(&mut self, now: Instant) {
        let is_due = |pending: &PendingConnect| pending.next_at.is_some_and(|at| at <= now);
        let due = self.connects.pending.iter().filter(|(_, pending)| is_due(pending));
        let due: Vec<usize> = due.map(|(index, _)| *index).collect();
        for index in due {
            if let Some(pending) = self.connects.pending.remove(&index) {
                self.advance_connect(pending, true, now);
            }
        }
    }

    fn advance_connect(&mut self, mut pending: PendingConnect, tries_next: bool, now: Instant) {
        if tries_next && let Some(source) = pending.try_next(&self.poll, now) {
            return self.handle_connected(pending.flow, source, now);
        }
        if pending.attempts.is_empty() {
            let none = || io::ErrorKind::HostUnreachable.into();
            let error = pending.error.unwrap_or_else(none);
            return self.handle_connect_error(pending.flow, &error);
        }
        self.connects.pending.insert(pending.flow.index(), pending);
    }

    fn handle_connected(&mut self, flow: FlowId, mut source: PollSource<OwnedFd>, now: Instant) {
        let idle = source.set_interest(false, false);
        self.insert_stream(flow, source);
        if idle.is_err() {
            self.net.handle_socket_error(flow);
        }
        self.net.handle_connected(flow, now);
    }

    fn handle_connect_error(&mut self, flow: FlowId, error: &io::Error) {
        let error = self.connect_error(error);
        self.net.handle_connect_error(flow, error);
    }
}

/// What a socket is connected to, if it is; an error if it has failed.
fn connect_result(socket: &OwnedFd) -> io::Result<Option<SocketAddr>> {
    match sockopt::socket_error(socket) {
        // The readiness may be that of another socket of the flow.
        Ok(Ok(())) => {
            let remote = getpeername(socket).ok().flatten();
            Ok(remote.and_then(|remote| remote.try_into().ok()))
        }
        Ok(Err(error)) | Err(error) => Err(error.into()),
    }
}

/// The families by turns, beginning with that of the first address.
fn by_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (same, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let mut out = Vec::with_capacity(same.len() + other.len());
    loop {
        let before = out.len();
        out.extend(same.next());
        out.extend(other.next());
        if out.len() == before {
            return out;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let list = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let addresses =
            list(&["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1", "[2001:db8::3]:1"]);
        let want = list(&["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "[2001:db8::3]:1"]);
        assert_eq!(by_turns(addresses), want);
        assert_eq!(by_turns(Vec::new()), []);
    }
}
