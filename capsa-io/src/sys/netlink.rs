//! Linux: where the kernel would route a packet, by a request to its routing tables (`rtnetlink(7)`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::libc;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

use super::RouteProtocol;

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The length of `struct rtmsg`.
const ROUTE: usize = 12;
/// Where the type of the route is in the answer: the eighth byte of `struct rtmsg`.
const ROUTE_TYPE: usize = HEADER + 7;

// Attributes; the C library has no names for the last two.
const RTA_DST: u16 = libc::RTA_DST;
const RTA_OIF: u16 = libc::RTA_OIF;
const RTA_IP_PROTO: u16 = 27;
const RTA_DPORT: u16 = 29;

/// The number of the loopback interface in each network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Whether the kernel would deliver a packet for `remote` to this host, or to all stations of a link: its
/// route is not a unicast route over a link. Policy rules for the protocol and the port apply.
///
/// # Errors
///
/// When there is no route, or the routing tables cannot be asked.
pub(crate) fn is_route_to_host(remote: SocketAddr, protocol: RouteProtocol) -> io::Result<bool> {
    if remote.ip().is_unspecified() {
        return Ok(true);
    }
    let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, None)?;
    let request = request(remote, protocol);
    sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 4096];
    let len = loop {
        match recv(&socket, &mut answer, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            received => break received?.0,
        }
    };
    is_to_host(&answer[..len])
}

fn request(remote: SocketAddr, protocol: RouteProtocol) -> Vec<u8> {
    let (family, address) = match remote.ip() {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let mut request = vec![0; HEADER + ROUTE];
    request[4..6].copy_from_slice(&libc::RTM_GETROUTE.to_ne_bytes());
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request[HEADER] = family as u8;
    request[HEADER + 1] = 8 * address.len() as u8;
    add_attribute(&mut request, RTA_DST, &address);
    let number = match protocol {
        RouteProtocol::Tcp => Some(libc::IPPROTO_TCP as u8),
        RouteProtocol::Udp => Some(libc::IPPROTO_UDP as u8),
        RouteProtocol::Icmp => None,
    };
    if let Some(number) = number {
        add_attribute(&mut request, RTA_IP_PROTO, &[number]);
        add_attribute(&mut request, RTA_DPORT, &remote.port().to_be_bytes());
    }
    let len = request.len() as u32;
    request[..4].copy_from_slice(&len.to_ne_bytes());
    request
}

fn add_attribute(request: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = 4 + value.len() as u16;
    request.extend_from_slice(&len.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(value);
    request.resize(request.len().next_multiple_of(4), 0);
}

/// Whether the answer has a route to the host itself.
fn is_to_host(answer: &[u8]) -> io::Result<bool> {
    let number = |at: usize| answer.get(at..at + 2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed answer of rtnetlink");
    match number(4) {
        Some(libc::RTM_NEWROUTE) => {}
        Some(kind) if i32::from(kind) == libc::NLMSG_ERROR => {
            let code = answer.get(HEADER..HEADER + 4).and_then(|b| b.try_into().ok());
            let code = code.map(i32::from_ne_bytes).ok_or_else(malformed)?;
            return Err(io::Error::from_raw_os_error(-code));
        }
        _ => return Err(malformed()),
    }
    if *answer.get(ROUTE_TYPE).ok_or_else(malformed)? != libc::RTN_UNICAST {
        return Ok(true);
    }
    let mut at = HEADER + ROUTE;
    while let (Some(len), Some(kind)) = (number(at), number(at + 2)) {
        if kind == RTA_OIF {
            let index = answer.get(at + 4..at + 8).and_then(|b| b.try_into().ok());
            return Ok(index.map(u32::from_ne_bytes) == Some(LOOPBACK));
        }
        at += usize::from(len.max(4)).next_multiple_of(4);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_to_own_addresses_is_to_host() {
        for own in ["127.0.0.1:80", "127.99.0.1:80", "[::1]:80", "0.0.0.0:80", "[::]:80"] {
            for protocol in [RouteProtocol::Tcp, RouteProtocol::Udp, RouteProtocol::Icmp] {
                let is_to_host = is_route_to_host(own.parse().unwrap(), protocol);
                assert!(is_to_host.unwrap(), "{own}");
            }
        }
    }

    #[test]
    fn truncated_answer_is_an_error_or_no_panic() {
        let mut answer = vec![0; HEADER + ROUTE];
        answer[4..6].copy_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
        answer[ROUTE_TYPE] = libc::RTN_UNICAST;
        add_attribute(&mut answer, RTA_OIF, &LOOPBACK.to_ne_bytes());
        assert!(is_to_host(&answer).unwrap(), "over the loopback interface");
        for len in 0..answer.len() {
            assert!(!is_to_host(&answer[..len]).unwrap_or(false), "{len}");
        }
    }
}
