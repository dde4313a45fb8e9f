//! The network with a guest: sockets of the host, forwards, services.

mod alone;
mod guest;
mod links;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use capsa_proto::path::HostPath;
use capsa_proto::plan::{NetworkLink, NetworkPlan};
use capsa_proto::spec::{
    ForwardHost, NetworkOptions, NetworkService, PortForward, ServiceTarget, TransportProtocol,
};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::{icmp, tcp};

use self::guest::GATEWAY;

pub(super) use self::alone::is_alone;
pub(super) use self::guest::NetworkTest;

/// The address of the first service.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 32);

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ i as u8).collect()
}

fn host_ports(ports: impl IntoIterator<Item = u16>) -> NetworkOptions {
    NetworkOptions { host_ports: ports.into_iter().collect(), ..NetworkOptions::default() }
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A server that reads `pause` after each read, to the end, and then writes `answer`.
fn serve(listener: TcpListener, pause: Duration, answer: Vec<u8>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut received, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            received.extend_from_slice(&chunk[..count]);
            thread::sleep(pause);
        }
        stream.write_all(&answer).unwrap();
        received
    })
}

/// Sends `data` from the guest, shuts down its side, and returns what arrives until the end.
#[track_caller]
fn exchange(test: &mut NetworkTest, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
    let (mut sent, mut received, mut is_closed) = (0, Vec::new(), false);
    test.until("the exchange", |test| {
        let socket = test.tcp(handle);
        if socket.can_send() && sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        if sent == data.len() && socket.may_send() && !is_closed {
            socket.close();
            is_closed = true;
        }
        while socket.can_recv() {
            let part = |part: &mut [u8]| (part.len(), received.extend_from_slice(part));
            socket.recv(part).unwrap();
        }
        is_closed && !socket.may_recv()
    });
    received
}

fn forward(host: ForwardHost, guest: u16, protocol: TransportProtocol) -> NetworkOptions {
    let forwards = vec![PortForward { host, guest, protocol }];
    NetworkOptions { forwards, ..NetworkOptions::default() }
}

fn any_port() -> ForwardHost {
    ForwardHost::Port { address: None, port: 0 }
}

fn host_port(test: &NetworkTest) -> u16 {
    match test.network.forwards()[0].host {
        ForwardHost::Port { port, .. } => port,
        ForwardHost::Unix(_) => unreachable!("the forward has a port"),
    }
}

#[test]
fn connection_carries_both_ways_after_half_close() {
    let (listener, port) = listener();
    let answer = bytes(3 << 20);
    let server = serve(listener, Duration::ZERO, answer.clone());
    let mut test = NetworkTest::new(host_ports([port]));
    let handle = test.connect((GATEWAY, port), 40_000);
    let data = bytes(1 << 20);
    assert!(exchange(&mut test, handle, &data) == answer);
    assert!(server.join().unwrap() == data);
    test.until("the end of the flow", |test| test.network.has_no_socket());
}

#[test]
fn fast_streams_share_the_bytes_of_a_call() {
    let (listener, port) = listener();
    let mut test = NetworkTest::new(host_ports([port]));
    let mut open = |from| {
        let handle = test.connect((GATEWAY, port), from);
        test.until("the connection", |test| test.tcp(handle).may_send());
        listener.accept().unwrap().0
    };
    let mut streams: Vec<_> = (40_000..40_008).map(&mut open).collect();
    // The network receives the last segment of each handshake.
    test.run(Duration::from_millis(20));
    for stream in &mut streams {
        stream.set_nonblocking(true).unwrap();
        // More than the share of a stream, 32 KiB: four of them have more than the bytes of a call.
        while stream.write(&[1; 1 << 16]).is_ok() {}
    }
    test.network.on_ready(test.clock.now()).unwrap();
    assert_eq!((test.network.budget, test.network.starved), (0, None));
    assert!(test.network.has_work());
}

#[test]
fn next_address_is_tried_when_one_is_silent() {
    let (silent, port) = listener();
    let Ok(answering) = TcpListener::bind((Ipv6Addr::LOCALHOST, port)) else { return };
    // A listener without room: the kernel drops the SYNs of further clients.
    rustix::net::listen(&silent, 0).unwrap();
    let address = silent.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(100));
    let clients: Vec<_> = (0..8).map_while(|_| connect().ok()).collect();
    assert!(clients.len() < 8, "the listener has room for any number of clients");
    let server = serve(answering, Duration::ZERO, b"from ::1".to_vec());
    let mut test = NetworkTest::new(host_ports([port]));
    let began = Instant::now();
    let handle = test.connect((GATEWAY, port), 40_000);
    assert_eq!(exchange(&mut test, handle, b"x"), b"from ::1");
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
    assert_eq!(server.join().unwrap(), b"x");
    test.until("the end of the flow", |test| test.network.has_no_socket());
}

#[test]
fn slow_reader_slows_the_guest_and_loses_nothing() {
    let (listener, port) = listener();
    let server = serve(listener, Duration::from_millis(2), b"done".to_vec());
    let mut test = NetworkTest::new(host_ports([port]));
    let handle = test.connect((GATEWAY, port), 40_000);
    let data = bytes(16 << 20);
    assert_eq!(exchange(&mut test, handle, &data), b"done");
    assert!(server.join().unwrap() == data);
    // Without a repeated segment: 1460 bytes each, and few others.
    let needed = data.len() / 1460;
    assert!(test.card.frames_sent < needed + needed / 50 + 100, "{}", test.card.frames_sent);
}

#[test]
fn closed_port_is_refused_at_once() {
    let (taken, port) = listener();
    drop(taken);
    let mut test = NetworkTest::new(host_ports([port]));
    let before = Instant::now();
    assert!(!test.connects((GATEWAY, port), 40_000));
    assert!(before.elapsed() < Duration::from_secs(2));
}

#[test]
fn port_that_is_not_allowed_is_refused_at_once() {
    let (listener, port) = listener();
    listener.set_nonblocking(true).unwrap();
    let mut test = NetworkTest::new(NetworkOptions::default());
    assert!(!test.connects((GATEWAY, port), 40_000));
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn host_port_of_ipv6_loopback_is_reached() {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut test = NetworkTest::new(host_ports([port]));
    assert!(test.connects((GATEWAY, port), 40_000));
}

#[test]
fn reset_is_passed_on_in_both_directions() {
    let (listener, port) = listener();
    let mut test = NetworkTest::new(host_ports([port]));
    let handle = test.connect((GATEWAY, port), 40_000);
    test.until("the connection", |test| test.tcp(handle).may_send());
    let (mut stream, _) = listener.accept().unwrap();
    test.tcp(handle).abort();
    test.until("the reset of the guest", |test| test.network.has_no_socket());
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let handle = test.connect((GATEWAY, port), 40_001);
    test.until("the connection", |test| test.tcp(handle).may_send());
    let (stream, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    test.until("the reset", |test| test.tcp(handle).state() == tcp::State::Closed);
}

#[test]
fn attack_40_spoofed_answers_are_not_delivered() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut test = NetworkTest::new(host_ports([port]));
    let handle = test.bind_udp(5000);
    test.udp(handle).send_slice(b"ping", (GATEWAY, port)).unwrap();
    let mut client = None;
    test.until("the datagram", |_| match server.recv_from(&mut [0; 64]) {
        Ok((_, from)) => client.insert(from).is_ipv4(),
        Err(_) => false,
    });
    // Another program of the host sends to the socket of the flow, before its remote end does.
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for _ in 0..10 {
        let _ = stranger.send_to(b"spoof", client.unwrap());
    }
    server.send_to(b"pong", client.unwrap()).unwrap();
    test.until("the answer", |test| test.udp(handle).can_recv());
    assert_eq!(test.udp(handle).recv().unwrap().0, b"pong");
    assert!(!test.udp(handle).can_recv());
}

#[test]
fn datagrams_travel_both_ways_and_errors_back() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut test = NetworkTest::new(host_ports([port]));
    let (handle, errors) = (test.bind_udp(5000), test.bind_errors(5000));
    test.udp(handle).send_slice(b"ping", (GATEWAY, port)).unwrap();
    let mut buffer = [0; 64];
    let mut client = None;
    test.until("the datagram", |_| match server.recv_from(&mut buffer) {
        Ok((4, from)) => client.insert(from).is_ipv4(),
        _ => false,
    });
    server.send_to(b"pong", client.unwrap()).unwrap();
    test.until("the answer", |test| test.udp(handle).can_recv());
    let (answer, from) = test.udp(handle).recv().unwrap();
    assert_eq!((answer, from.endpoint), (&b"pong"[..], (GATEWAY, port).into()));

    drop(server);
    test.udp(handle).send_slice(b"ping", (GATEWAY, port)).unwrap();
    test.until("port unreachable", |test| {
        test.sockets.get_mut::<icmp::Socket<'_>>(errors).can_recv()
    });
}

#[test]
fn early_client_waits_until_the_guest_listens() {
    let mut test = NetworkTest::new(forward(any_port(), 22, TransportProtocol::Tcp));
    let port = host_port(&test);
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let mut client = TcpStream::connect((address, port)).unwrap();
        client.write_all(b"hello guest").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        // The guest refuses, as nothing listens.
        if address.is_ipv4() {
            test.run(Duration::from_millis(400));
            client.set_nonblocking(true).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            client.set_nonblocking(false).unwrap();
        }
        let handle = test.listen(22);
        let received = exchange(&mut test, handle, b"hello host");
        assert_eq!(received, b"hello guest");
        let remote = test.tcp(handle).remote_endpoint();
        assert!(remote.is_none_or(|remote| remote.addr == GATEWAY.into()));
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello host");
    }
}

#[test]
fn early_client_waits_while_the_guest_boots() {
    let mut test = NetworkTest::new(forward(any_port(), 22, TransportProtocol::Tcp));
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, host_port(&test))).unwrap();
    client.set_nonblocking(true).unwrap();
    let begin = test.clock.now();
    let mut wait = |test: &mut NetworkTest, seconds: std::ops::Range<u64>| {
        for second in seconds {
            test.network.on_ready(begin + Duration::from_secs(second)).unwrap();
            test.card.receive();
        }
        client.read(&mut [0]).map_err(|error| error.kind())
    };
    assert_eq!(wait(&mut test, 0..300), Err(ErrorKind::WouldBlock));
    test.network.handle_frame(&[0; 60], begin + Duration::from_secs(300));
    assert_eq!(wait(&mut test, 300..500), Err(ErrorKind::ConnectionReset));
}

#[test]
fn refusal_after_the_forward_has_worked_resets_the_client() {
    let mut test = NetworkTest::new(forward(any_port(), 22, TransportProtocol::Tcp));
    let port = host_port(&test);
    let handle = test.listen(22);
    let _first = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    test.until("the first connection", |test| test.tcp(handle).may_send());
    let mut second = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    second.set_nonblocking(true).unwrap();
    let mut error = None;
    test.until("a reset", |_| {
        error = second.read(&mut [0]).err().map(|error| error.kind());
        error != Some(ErrorKind::WouldBlock)
    });
    assert_eq!(error, Some(ErrorKind::ConnectionReset));
}

#[test]
fn forwarded_datagrams_have_a_flow_for_each_client() {
    let mut test = NetworkTest::new(forward(any_port(), 53, TransportProtocol::Udp));
    let port = host_port(&test);
    let handle = test.bind_udp(53);
    let clients = [b"one", b"two"].map(|name| {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client.send(name).unwrap();
        client.set_nonblocking(true).unwrap();
        (client, name)
    });
    let mut answered = BTreeSet::new();
    test.until("both datagrams", |test| {
        while test.udp(handle).can_recv() {
            let (payload, from) = test.udp(handle).recv().unwrap();
            let payload = payload.to_vec();
            test.udp(handle).send_slice(&payload, from.endpoint).unwrap();
            answered.insert(from.endpoint.port);
        }
        answered.len() == 2
    });
    for (client, name) in clients {
        let mut buffer = [0; 8];
        test.until("the answer", |_| client.recv(&mut buffer).is_ok());
        assert_eq!(&buffer[..3], name);
    }
}

#[test]
fn unix_socket_is_forwarded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let host = ForwardHost::Unix(HostPath::new(path.to_str().unwrap()).unwrap());
    let mut test = NetworkTest::new(forward(host, 80, TransportProtocol::Tcp));
    let handle = test.listen(80);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(exchange(&mut test, handle, b"response"), b"request");
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "response");
    drop(test);
    assert!(!path.exists());
}

#[test]
fn services_arrive_at_a_program_and_at_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = HostPath::new(dir.path().to_str().unwrap()).unwrap();
    let path = HostPath::new(dir.path().join("s").to_str().unwrap()).unwrap();
    for target in [ServiceTarget::Unix(path), ServiceTarget::Owner] {
        let service = NetworkService { name: "x.capsa.internal".into(), port: 80, target };
        let options = NetworkOptions { services: vec![service], ..NetworkOptions::default() };
        let plan = NetworkPlan {
            mac: guest::MAC,
            mtu: 1500,
            link: NetworkLink::Stream,
            policy: None,
            options,
            carrier: None,
        };
        let mut test = NetworkTest::with_plan(&plan, &run_dir);
        assert!(!test.connects((SERVICE, 80), 39_999), "nothing listens");
        let socket = plan.service_socket(0, &run_dir).unwrap();
        let listener = UnixListener::bind(socket.as_str()).unwrap();
        let handle = test.connect((SERVICE, 80), 40_000);
        test.until("the connection", |test| test.tcp(handle).may_send());
        let mut server = listener.accept().unwrap().0;
        server.write_all(b"from the host").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(exchange(&mut test, handle, b"from the guest"), b"from the host");
        let mut received = String::new();
        server.read_to_string(&mut received).unwrap();
        assert_eq!(received, "from the guest");
    }
}

#[test]
fn idle_network_has_no_deadline_and_no_work() {
    let mut test = NetworkTest::new(forward(any_port(), 22, TransportProtocol::Tcp));
    test.run(Duration::from_millis(50));
    assert_eq!(test.network.poll_timeout(), None);
    assert!(!test.network.has_work());
}

#[test]
fn link_that_is_down_carries_nothing() {
    let (_listener, port) = listener();
    let mut test = NetworkTest::new(host_ports([port]));
    test.network.set_link(false);
    let handle = test.connect((GATEWAY, port), 40_000);
    test.run(Duration::from_millis(300));
    assert_eq!(test.tcp(handle).state(), tcp::State::SynSent);
    test.network.set_link(true);
    test.until("the connection", |test| test.tcp(handle).may_send());
}
