//! What needs a process of its own: a fork, a limit of descriptors, a network namespace.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use capsa_proto::spec::{NetworkOptions, TransportProtocol};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;
use smoltcp::socket::{icmp, tcp};

use super::guest::{GATEWAY, NetworkTest};
use super::{any_port, forward, host_port, host_ports, listener};
use crate::sys::{DESCRIPTORS, run_in_fork};

const ALONE: &str = "CAPSA_TEST_ALONE";

/// Whether this process is the one of the test. Otherwise runs the test in one, started by `wrapper`.
pub(in crate::network) fn is_alone(name: &str, wrapper: &[&str]) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let mut words = wrapper.iter().map(std::ffi::OsStr::new).chain([this.as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args([name, "--exact", "--nocapture"]).env(ALONE, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
    false
}

#[test]
fn forked_child_leaves_the_connections_of_its_parent() {
    if !is_alone("network::tests::alone::forked_child_leaves_the_connections_of_its_parent", &[]) {
        return;
    }
    let (listener, port) = listener();
    let mut test = NetworkTest::new(host_ports([port]));
    let handle = test.connect((GATEWAY, port), 40_000);
    test.until("the connection", |test| test.tcp(handle).may_send());
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"before").unwrap();
    let mut owner = Some(test);
    let went_well = run_in_fork(|| {
        let mut test = owner.take().unwrap();
        assert!(test.network.on_ready(test.clock.now()).is_err());
        drop(test);
    });
    assert!(went_well, "see above");
    let mut test = owner.unwrap();
    test.until("the bytes", |test| test.tcp(handle).can_recv());
    test.tcp(handle).send_slice(b"after").unwrap();
    test.run(Duration::from_millis(20));
    let mut received = [0; 5];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"after");
}

#[test]
fn exhausted_descriptors_refuse_flows_and_end_nothing() {
    if !is_alone("network::tests::alone::exhausted_descriptors_refuse_flows_and_end_nothing", &[]) {
        return;
    }
    let (listener, port) = listener();
    let mut test = NetworkTest::new(host_ports([port]));
    let first = test.connect((GATEWAY, port), 40_000);
    test.until("the connection", |test| test.tcp(first).may_send());
    let (stream, _) = listener.accept().unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let highest = std::os::fd::AsRawFd::as_raw_fd(&stream) as u64;
    setrlimit(Resource::RLIMIT_NOFILE, highest + 1, hard).unwrap();
    // Nothing is free below the limit.
    let mut fill = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        fill.push(file);
    }
    let errors = test.bind_errors(5000);
    for port_of_guest in 41_000..41_020 {
        assert!(!test.connects((GATEWAY, port), port_of_guest));
    }
    let handle = test.bind_udp(5000);
    test.udp(handle).send_slice(b"x", (GATEWAY, port)).unwrap();
    test.until("an ICMP error", |test| test.sockets.get_mut::<icmp::Socket<'_>>(errors).can_recv());
    assert_eq!(test.network.counters().refused_resources, 21);
    assert!(test.tcp(first).may_send());
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert!(test.connects((GATEWAY, port), 42_000));
}

/// The number of open descriptors.
fn descriptors() -> usize {
    std::fs::read_dir(DESCRIPTORS).unwrap().count()
}

#[test]
fn many_connections_leave_no_descriptor() {
    if !is_alone("network::tests::alone::many_connections_leave_no_descriptor", &[]) {
        return;
    }
    let (listener, port) = listener();
    let mut test = NetworkTest::new(host_ports([port]));
    let before = descriptors();
    for n in 0..2_000 {
        let handle = test.connect((GATEWAY, port), 20_000 + n);
        test.until("the connection", |test| test.tcp(handle).may_send());
        drop(listener.accept().unwrap());
        // Half of them end with a reset.
        match n % 2 {
            0 => test.tcp(handle).abort(),
            _ => test.tcp(handle).close(),
        }
        test.until("the end", |test| test.network.has_no_socket());
        test.sockets.remove(handle);
    }
    assert_eq!(descriptors(), before);
}

#[test]
fn flood_of_a_forward_is_bounded() {
    if !is_alone("network::tests::alone::flood_of_a_forward_is_bounded", &[]) {
        return;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut test = NetworkTest::new(forward(any_port(), 22, TransportProtocol::Tcp));
    // The guest does not answer.
    test.network.set_link(false);
    let before = descriptors();
    let mut clients = Vec::new();
    for _ in 0..1_200 {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, host_port(&test))).unwrap();
        clients.push(client);
        test.step();
    }
    test.until("refusals", |test| test.network.counters().refused_resources >= 100);
    assert!(descriptors() - before - clients.len() <= 1_024);
    // The guest is back: the waiting connections are refused, or work.
    test.network.set_link(true);
    let handle = test.listen(22);
    test.until("a connection", |test| test.tcp(handle).may_send());
    clients.clear();
}

/// A host on a link of this one.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(20, 1, 1, 9);

/// Addresses of the host and of its links, of all kinds: on an interface, in a route of type local (AnyIP),
/// by a policy rule, broadcast, anycast. All are public ones, which only the kernel knows to be local.
const SETUP: &str = "set -e
ip link set lo up
ip link add dummy0 type dummy || ip tuntap add dummy0 mode tap
ip addr add 20.1.1.7/24 brd 20.1.1.255 dev dummy0
ip link set dummy0 up
ip route add default via 20.1.1.1
ip route add local 20.2.0.0/24 dev lo
ip rule add ipproto tcp dport 81 lookup 100
ip route add local default dev lo table 100
ip route add unreachable 20.4.0.0/24
ip route add 20.5.0.0/24 dev lo
sysctl -qw net.ipv4.ping_group_range='0 2147483647' || true";

#[test]
fn local_addresses_are_refused_as_the_kernel_routes_them() {
    let wrapper: &[&str] = match geteuid().is_root() {
        true => &["unshare", "--net"],
        false => &["unshare", "--user", "--map-root-user", "--net"],
    };
    let (unshare, args) = wrapper.split_first().unwrap();
    let probe = Command::new(unshare).args(args).args(["ip", "link"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: this host permits no network namespaces");
        return;
    }
    if !is_alone(
        "network::tests::alone::local_addresses_are_refused_as_the_kernel_routes_them",
        wrapper,
    ) {
        return;
    }
    let setup = Command::new("sh").args(["-c", SETUP]).output().unwrap();
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    let servers = [80, 81].map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
    for server in &servers {
        server.set_nonblocking(true).unwrap();
    }
    udp.set_nonblocking(true).unwrap();
    let mut test = NetworkTest::new(NetworkOptions::default());
    let mut port = 40_000;
    let handle = test.bind_udp(5000);
    let errors = test.bind_errors(5000);
    let local = ["20.1.1.7", "20.2.0.9", "20.1.1.255", "20.5.0.1"].map(|ip| (ip, 80));
    for (address, remote_port) in local.into_iter().chain([("20.3.3.3", 81)]) {
        let address: Ipv4Addr = address.parse().unwrap();
        port += 1;
        let before = Instant::now();
        assert!(!test.connects((address, remote_port), port), "{address}");
        assert!(before.elapsed() < Duration::from_secs(1), "{address} is refused late");
        if remote_port == 80 {
            test.udp(handle).send_slice(b"x", (address, 80)).unwrap();
            test.until("an ICMP error", |test| {
                let socket = test.sockets.get_mut::<icmp::Socket<'_>>(errors);
                let can_recv = socket.can_recv();
                if can_recv {
                    socket.recv().unwrap();
                }
                can_recv
            });
        }
    }
    for server in &servers {
        assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    assert_eq!(udp.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    // An address of the link beyond the host is tried. Another one has no route.
    let stream = test.connect((NEIGHBOUR, 80), 41_000);
    test.run(Duration::from_millis(100));
    assert_eq!(test.tcp(stream).state(), tcp::State::SynSent);
    assert_eq!(test.network.counters().refused_host, 9);
    // The address moves to the host while the network runs, and has an open flow.
    test.udp(handle).send_slice(b"beyond the host", (NEIGHBOUR, 80)).unwrap();
    test.run(Duration::from_millis(100));
    let added = Command::new("ip").args(["addr", "add", "20.1.1.9/24", "dev", "dummy0"]).status();
    assert!(added.unwrap().success());
    assert!(!test.connects((NEIGHBOUR, 80), 41_001));
    let refused = test.network.counters().refused_host;
    test.run(Duration::from_secs(1));
    test.udp(handle).send_slice(b"to the host", (NEIGHBOUR, 80)).unwrap();
    test.until("a refusal", |test| test.network.counters().refused_host > refused);
    assert_eq!(udp.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}
