//! The network stack with the kernel of this host as guest: a network namespace with a tap device.
//!
//! No packet leaves the namespaces. Where they, or tap devices, are not permitted, the tests are skipped.

use std::net::SocketAddr;

use capsa_fixtures::programs::TestProgram;
use capsa_fixtures::skip;
use capsa_network_rig::rig::{Figures, GuestStack, HOST, REMOTE, Rig, RigGuest, connect, traffic};
use capsa_network_rig::server::REQUESTS;

const MIB: u64 = 1 << 20;

/// A guest behind the stack.
struct Guest {
    rig: Rig,
    guest: RigGuest,
}

impl Guest {
    /// Skips the calling test where the host does not permit a guest.
    fn new(mtu: u16) -> Option<Self> {
        let new = || {
            let rig = Rig::new(TestProgram::new("network-rig").path())?;
            let guest = rig.guest(GuestStack::Capsa, mtu)?;
            Ok(Self { rig, guest })
        };
        let outcome: Result<_, capsa_network_rig::RigError> = new();
        outcome.map_err(skip).ok()
    }

    /// Traffic with the servers on the host's loopback, at the gateway.
    fn traffic(&self, name: &str, n: u64) -> Figures {
        let figures = self.rig.traffic(&self.guest, name, n);
        figures.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Traffic with another server.
    fn traffic_to(&self, server: SocketAddr, name: &str, n: u64) -> Figures {
        let namespace = self.guest.namespace.as_ref().expect("a guest behind a stack");
        let figures = traffic(namespace, name, server, n);
        figures.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The result of a connection attempt.
    fn connect(&self, server: SocketAddr) -> String {
        let namespace = self.guest.namespace.as_ref().expect("a guest behind a stack");
        connect(namespace, server).unwrap_or_else(|error| panic!("{server}: {error}"))
    }

    /// Asserts that traffic transfers `bytes`, unchanged, and that the guest sent no segment twice.
    fn transfers(&self, name: &str, n: u64, bytes: u64) {
        let figures = self.traffic(name, n);
        assert_eq!(figures["bytes"] as u64, bytes, "{name}: {figures:?}");
        assert_eq!(figures["intact"], 1.0, "{name}: {figures:?}");
        assert_eq!(figures["retransmitted"], 0.0, "{name}: {figures:?}");
    }
}

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

#[test]
fn kernel_guest_bulk_arrives_intact() {
    for mtu in [1500, 65520] {
        let Some(guest) = Guest::new(mtu) else { return };
        guest.transfers("upload-bytes", 32 * MIB, 32 * MIB);
        guest.transfers("download-bytes", 32 * MIB, 32 * MIB);
    }
}

#[test]
fn kernel_guest_runs_100_flows_at_once() {
    let Some(guest) = Guest::new(1500) else { return };
    assert_eq!(guest.traffic("flows", 100)["intact"], 100.0);
}

#[test]
fn kernel_guest_half_closed_by_server_still_sends() {
    let Some(guest) = Guest::new(1500) else { return };
    let figures = guest.traffic("half-close", 3 * MIB);
    for (bytes, intact) in [("bytes", "intact"), ("later_bytes", "later_intact")] {
        assert_eq!(figures[bytes] as u64, 3 * MIB, "{figures:?}");
        assert_eq!(figures[intact], 1.0, "{figures:?}");
    }
}

#[test]
fn kernel_guest_half_closed_still_receives() {
    // The server answers after the end of the guest's stream.
    let Some(guest) = Guest::new(1500) else { return };
    guest.transfers("upload-bytes", 1, 1);
}

#[test]
fn kernel_guest_with_slow_peer_retransmits_nothing() {
    for mtu in [1500, 65520] {
        let Some(guest) = Guest::new(mtu) else { return };
        guest.transfers("upload-slowly", 8 * MIB, 16 * MIB);
    }
}

#[test]
fn kernel_guest_that_reads_slowly_gets_all() {
    let Some(guest) = Guest::new(1500) else { return };
    guest.transfers("download-slowly", 8 * MIB, 16 * MIB);
}

#[test]
fn kernel_guest_reaches_remote_server() {
    let Some(guest) = Guest::new(1500) else { return };
    let server = address(REMOTE[0], REQUESTS);
    let figures = guest.traffic_to(server, "upload-bytes", MIB);
    assert_eq!((figures["bytes"] as u64, figures["intact"]), (MIB, 1.0), "{figures:?}");
    assert_eq!(guest.traffic_to(server, "udp", 50)["intact"], 50.0);
    assert_eq!(guest.traffic_to(server, "ping", 3)["intact"], 3.0);
}

#[test]
fn kernel_guest_reaches_no_server_of_the_host() {
    let Some(guest) = Guest::new(1500) else { return };
    // A server listens on each of these.
    for server in [address(HOST[0], REQUESTS), address("127.0.0.1", REQUESTS)] {
        assert_eq!(guest.connect(server), "ConnectionRefused", "{server}");
    }
}

#[test]
fn kernel_guest_learns_why_a_connection_failed() {
    let Some(guest) = Guest::new(1500) else { return };
    guest.rig.host.ip("route add unreachable 203.0.115.0/24").expect("a route");
    for (server, expected) in [
        (address(REMOTE[0], 1), "ConnectionRefused"),
        (address("203.0.115.1", 80), "HostUnreachable"),
        (address("10.0.2.2", 1), "ConnectionRefused"),
    ] {
        assert_eq!(guest.connect(server), expected, "{server}");
    }
}
