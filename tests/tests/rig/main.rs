//! The network stack with the kernel of this host as guest: a network namespace with a tap device.
//!
//! No packet leaves the namespaces. Where they, or tap devices, are not permitted, the tests are skipped.

#![cfg(target_os = "linux")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use capsa_fixtures::host::find_program;
use capsa_fixtures::programs::TestProgram;
use capsa_fixtures::{command, skip};
use capsa_network_rig::namespace::TAP;
use capsa_network_rig::rig::{
    Figures, GuestStack, HOST, REMOTE, Rig, RigGuest, asked_names, connect, result, serve, traffic,
};
use capsa_network_rig::server::{HTTP, HTTP_ANSWER, REQUESTS, UDP_ECHO};
use capsa_network_rig::stack::{self, ALLOWED_NAME, FORWARDED, REFUSED_NAME, StackOptions};
use capsa_network_rig::{Namespace, RigError};

const MIB: u64 = 1 << 20;

/// A guest behind the stack.
struct KernelGuest {
    rig: Rig,
    guest: RigGuest,
}

impl KernelGuest {
    /// Skips the calling test where the host does not permit a guest.
    fn new(mtu: u16) -> Option<Self> {
        Self::with(|rig| rig.guest(GuestStack::Capsa, mtu))
    }

    fn with(guest: impl FnOnce(&Rig) -> Result<RigGuest, RigError>) -> Option<Self> {
        let rig = Rig::new(TestProgram::new("network-rig").path());
        let new = rig.and_then(|rig| Ok(Self { guest: guest(&rig)?, rig }));
        new.map_err(skip).ok()
    }

    /// A guest without an address of IPv4.
    fn unconfigured() -> Option<Self> {
        Self::with(|rig| rig.unconfigured_guest(1500, StackOptions::Forwards))
    }

    fn namespace(&self) -> &Namespace {
        self.guest.namespace.as_ref().expect("a guest behind a stack")
    }

    /// Traffic with the servers on the host's loopback, at the gateway.
    fn traffic(&self, name: &str, n: u64) -> Figures {
        let figures = self.rig.traffic(&self.guest, name, n);
        figures.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Traffic with another server.
    fn traffic_to(&self, server: SocketAddr, name: &str, n: u64) -> Figures {
        let figures = traffic(self.namespace(), name, server, n);
        figures.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The result of a connection attempt.
    fn connect(&self, server: SocketAddr) -> String {
        connect(self.namespace(), server).unwrap_or_else(|error| panic!("{server}: {error}"))
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
        let Some(guest) = KernelGuest::new(mtu) else { return };
        guest.transfers("upload-bytes", 32 * MIB, 32 * MIB);
        guest.transfers("download-bytes", 32 * MIB, 32 * MIB);
    }
}

#[test]
fn kernel_guest_runs_100_flows_at_once() {
    let Some(guest) = KernelGuest::new(1500) else { return };
    assert_eq!(guest.traffic("flows", 100)["intact"], 100.0);
}

#[test]
fn kernel_guest_half_closed_by_server_still_sends() {
    let Some(guest) = KernelGuest::new(1500) else { return };
    let figures = guest.traffic("half-close", 3 * MIB);
    for (bytes, intact) in [("bytes", "intact"), ("later_bytes", "later_intact")] {
        assert_eq!(figures[bytes] as u64, 3 * MIB, "{figures:?}");
        assert_eq!(figures[intact], 1.0, "{figures:?}");
    }
}

#[test]
fn kernel_guest_half_closed_still_receives() {
    // The server answers after the end of the guest's stream.
    let Some(guest) = KernelGuest::new(1500) else { return };
    guest.transfers("upload-bytes", 1, 1);
}

#[test]
fn kernel_guest_with_slow_peer_retransmits_nothing() {
    for mtu in [1500, 65520] {
        let Some(guest) = KernelGuest::new(mtu) else { return };
        guest.transfers("upload-slowly", 8 * MIB, 16 * MIB);
    }
}

#[test]
fn kernel_guest_that_reads_slowly_gets_all() {
    let Some(guest) = KernelGuest::new(1500) else { return };
    guest.transfers("download-slowly", 8 * MIB, 16 * MIB);
}

#[test]
fn kernel_guest_reaches_remote_server() {
    let Some(guest) = KernelGuest::new(1500) else { return };
    let server = address(REMOTE[0], REQUESTS);
    let figures = guest.traffic_to(server, "upload-bytes", MIB);
    assert_eq!((figures["bytes"] as u64, figures["intact"]), (MIB, 1.0), "{figures:?}");
    let udp = address(REMOTE[0], UDP_ECHO);
    assert_eq!(guest.traffic_to(udp, "udp", 50)["intact"], 50.0);
    assert_eq!(guest.traffic_to(server, "ping", 3)["intact"], 3.0);
}

#[test]
fn kernel_guest_reaches_no_server_of_the_host() {
    let Some(guest) = KernelGuest::new(1500) else { return };
    // A server listens on each of these.
    for server in [address(HOST[0], REQUESTS), address("127.0.0.1", REQUESTS)] {
        assert_eq!(guest.connect(server), "ConnectionRefused", "{server}");
    }
}

#[test]
fn kernel_guest_learns_why_a_connection_failed() {
    let Some(guest) = KernelGuest::new(1500) else { return };
    guest.rig.host.ip("route add unreachable 203.0.115.0/24").expect("a route");
    for (server, expected) in [
        (address(REMOTE[0], 1), "ConnectionRefused"),
        (address("203.0.115.1", 80), "HostUnreachable"),
        (address("10.0.2.2", 1), "ConnectionRefused"),
    ] {
        assert_eq!(guest.connect(server), expected, "{server}");
    }
}

#[test]
fn kernel_guest_gets_ipv6_by_advertisement() {
    let Some(guest) = KernelGuest::new(1500) else { return };
    let server = address(REMOTE[1], REQUESTS);
    wait_until("an address", || {
        let mut show = guest.namespace().command("ip");
        let shown = command::text(show.args(["-6", "addr", "show", "scope", "global"]));
        shown.is_ok_and(|text| text.contains("inet6") && !text.contains("tentative"))
    });
    let figures = guest.traffic_to(server, "upload-bytes", MIB);
    assert_eq!((figures["bytes"] as u64, figures["intact"]), (MIB, 1.0), "{figures:?}");
    let udp = address(REMOTE[1], UDP_ECHO);
    assert_eq!(guest.traffic_to(udp, "udp", 50)["intact"], 50.0);
    assert_eq!(guest.traffic_to(server, "ping", 3)["intact"], 3.0);
    assert_eq!(guest.connect(address(HOST[1], REQUESTS)), "ConnectionRefused");
}

#[test]
fn kernel_guest_gets_a_lease_by_udhcpc() {
    let Some(busybox) = find_program("busybox") else { return skip("no busybox") };
    let Some(guest) = KernelGuest::unconfigured() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("script");
    let text = "#!/bin/sh\nif [ $1 = bound ]; then echo $ip/$mask $router $dns $lease; fi\n";
    std::fs::write(&script, text).expect("a script");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("a script");
    let mut client = guest.namespace().command(busybox);
    client.args(["udhcpc", "-i", TAP, "-n", "-q", "-f", "-s"]).arg(script);
    let lease = command::text(&mut client).expect("a lease");
    assert_eq!(lease.trim(), "10.0.2.15/24 10.0.2.2 10.0.2.3 86400");
}

#[test]
fn kernel_guest_serves_forwarded_ports() {
    let Some(guest) = KernelGuest::unconfigured() else { return };
    stack::configure(guest.namespace()).expect("an address");
    let _servers = serve(guest.namespace()).expect("servers in the guest");
    let from_host = |name, n| {
        let figures = traffic(&guest.rig.host, name, address("127.0.0.1", FORWARDED), n);
        figures.unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    for name in ["upload-bytes", "download-bytes"] {
        let figures = from_host(name, 4 * MIB);
        assert_eq!((figures["bytes"] as u64, figures["intact"]), (4 * MIB, 1.0), "{figures:?}");
    }
    assert_eq!(from_host("flows", 20)["intact"], 20.0);
    assert_eq!(from_host("udp", 20)["intact"], 20.0);
}

#[test]
fn kernel_guest_under_policy_reaches_named_host() {
    let Some(guest) = KernelGuest::with(|rig| rig.guest(GuestStack::CapsaPolicy, 1500)) else {
        return;
    };
    let result_of = |name: &str, server| {
        let result = result(guest.namespace(), name, server);
        result.unwrap_or_else(|error| panic!("{name}: {error}")).unwrap_or_default()
    };
    // The name server of the guest, and one of the remote network, in whose place the stack answers.
    for server in [address("10.0.2.3", 53), address(REMOTE[0], 53)] {
        let figures = guest.traffic_to(server, &format!("query={REFUSED_NAME}"), 0);
        assert_eq!(figures["code"], 3.0, "{server}: {figures:?}");
    }
    assert_eq!(guest.connect(address(REMOTE[0], REQUESTS)), "ConnectionRefused");
    let name = format!("query={ALLOWED_NAME}");
    let named = result_of(&name, address("10.0.2.3", 53));
    assert!(named.starts_with("198.18."), "{named:?}");
    let figures = guest.traffic_to(address(&named, REQUESTS), "upload-bytes", MIB);
    assert_eq!((figures["bytes"] as u64, figures["intact"]), (MIB, 1.0), "{figures:?}");
    assert_eq!(guest.connect(address(&named, UDP_ECHO)), "ConnectionRefused");
    for (host, expected) in [(ALLOWED_NAME, HTTP_ANSWER), (REFUSED_NAME, "ConnectionReset")] {
        let got = result_of(&format!("http={host}"), address(&named, HTTP));
        assert_eq!(got, expected, "{host}");
    }
    let asked = |namespace| asked_names(namespace).expect("the names");
    assert_eq!(asked(&guest.rig.host), [ALLOWED_NAME]);
    assert!(asked(&guest.rig.remote).is_empty(), "a query left the host");
}

fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(Instant::now() < end, "{what}: not after 20 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}
