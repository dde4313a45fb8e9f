//! What a guest with NAT reaches of the host, and what reaches the guest: closed ports, forwards, services.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use capsa::network::ListenAddress;
use capsa::{Error, NetworkMode};

use super::vm::{PATIENCE, TestVm};
use super::{Fixture, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::linux("nat_opens_only_the_allowed_host_port", host).uses(&["network_modes.nat"]),
    Scenario::linux("nat_forwards_and_services_carry_streams", streams)
        .uses(&["network_modes.nat"]),
];

/// The guest requests its address during the boot and does not wait for it.
fn wait_for_address(vm: &mut TestVm) {
    let routed = "ip -4 route | sed -n 's/^default via \\([0-9.]*\\) .*/\\1/p'";
    let gateway = vm.sh(&format!(
        "for i in $(seq 300); do gw=$({routed}); [ -n \"$gw\" ] && break; sleep 0.1; done; echo $gw"
    ));
    assert_eq!(gateway, "10.0.2.2", "{}", vm.sh("cat /var/log/dhcp.log; ip addr"));
}

fn host(fixture: &Fixture<'_>) {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (open, closed) = (listen(), listen());
    let port_of = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let (open_port, closed_port) = (port_of(&open), port_of(&closed));
    let builder = fixture.builder().network(NetworkMode::Nat).allow_host_port(open_port);
    let mut vm = fixture.boot(builder);
    assert_eq!(vm.sh("ls -1 /sys/class/net"), "eth0\nlo");
    wait_for_address(&mut vm);
    let address = "ip -4 addr show eth0 | sed -n 's/.*inet \\([0-9.]*\\).*/\\1/p'";
    assert_eq!(vm.sh(address), "10.0.2.15");

    let server = thread::spawn(move || {
        let (mut stream, _) = open.accept().unwrap();
        stream.write_all(b"hello guest\n").unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        received
    });
    let received = vm.sh(&format!("echo hello host | nc -w 30 10.0.2.2 {open_port}"));
    assert_eq!(received, "hello guest");
    assert_eq!(server.join().unwrap(), "hello host\n");

    // No address of the host reaches a service that was not opened. Its address on the network is that of
    // a socket that is connected to a far address, which sends nothing.
    let mut addresses = vec!["10.0.2.2".to_owned(), "10.0.2.3".into(), "0.0.0.0".into()];
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    if socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).is_ok() {
        addresses.push(socket.local_addr().unwrap().ip().to_string());
    }
    let refused_before = refused(&vm);
    for address in &addresses {
        // `nc` prints why; a time-out is not a refusal.
        let command = format!("nc -w 20 {address} {closed_port} </dev/null 2>&1; true");
        let output = vm.sh(&command);
        assert!(output.contains("refused"), "{address}: {output:?}");
    }
    // 0.0.0.0 is the guest itself.
    assert!(refused(&vm) >= refused_before + addresses.len() as u64 - 1, "{addresses:?}");
    closed.set_nonblocking(true).unwrap();
    assert!(closed.accept().is_err(), "a connection arrived");
}

/// How many connections of the guest were refused because of where they go.
fn refused(vm: &TestVm) -> u64 {
    let counters = vm.handle.network_counters();
    counters.refused_host + counters.refused_private + counters.refused_special
}

fn streams(fixture: &Fixture<'_>) {
    let (socket, forward) = (fixture.dir().join("service"), fixture.dir().join("forward"));
    let listener = UnixListener::bind(&socket).unwrap();
    let builder = fixture
        .builder()
        .network(NetworkMode::Nat)
        .service("files.capsa.internal:80", &socket)
        .owner_service("owner.capsa.internal:7")
        .owner_service("idle.capsa.internal:7")
        .forward(0, 8080)
        .forward(ListenAddress::unix(&forward), 8080);
    let vm = fixture.vm(builder.clone());
    let owner = vm.handle.service_listen("owner.capsa.internal:7").unwrap();
    let absent = vm.handle.service_listen("files.capsa.internal:80");
    assert!(matches!(absent, Err(Error::ServiceNotNamed { .. })), "{absent:?}");
    let port = vm.handle.forwards()[0].host.address().unwrap();
    let taken = builder.forward(port, 1).build_blocking().unwrap_err();
    assert!(taken.violations().iter().any(|v| v.field == "forwards[2]"), "{taken}");

    let mut vm = vm;
    vm.start();
    // Made before the guest has booted: the connection waits for the guest.
    let mut early = TcpStream::connect(port).unwrap();
    vm.wait_until_ready();
    wait_for_address(&mut vm);
    vm.sh("(echo from guest | nc -l -p 8080 >/tmp/early &)");
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    early.write_all(b"early\n").unwrap();
    let mut line = String::new();
    BufReader::new(&early).read_line(&mut line).unwrap();
    assert_eq!(line, "from guest\n");
    drop(early);
    vm.sh("for i in $(seq 300); do [ -s /tmp/early ] && break; sleep 0.1; done");
    assert_eq!(vm.sh("cat /tmp/early"), "early");

    vm.sh("(echo over a socket | nc -l -p 8080 &)");
    let unix = UnixStream::connect(&forward).unwrap();
    unix.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(&unix).read_line(&mut line).unwrap();
    assert_eq!(line, "over a socket\n");
    drop(unix);

    let server = thread::spawn(move || answer(listener.accept().unwrap().0));
    let fetched = vm.sh("echo question | nc -w 30 files.capsa.internal 80");
    assert_eq!(fetched, "answer to question");
    server.join().unwrap();
    let server = thread::spawn(move || answer(owner.accept().unwrap()));
    let fetched = vm.sh("echo word | nc -w 30 owner.capsa.internal 7");
    assert_eq!(fetched, "answer to word");
    server.join().unwrap();
    let idle = vm.sh("nc -w 20 idle.capsa.internal 7 </dev/null 2>&1; true");
    assert!(idle.contains("refused"), "{idle:?}");
}

/// Reads a line from the guest and answers.
fn answer(mut stream: UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    write!(stream, "answer to {line}").unwrap();
}
