//! The resolver, with name servers played on loopback in network and mount namespaces of the test's own.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use capsa_net::wire::dns::{DnsName, DnsQuery, DnsRecord, DnsResponse, ResponseCode};
use capsa_net::wire::dns::{parse_answer, record_type, write_query};
use capsa_proto::spec::NetworkOptions;

use super::*;
use crate::network::tests::{NetworkTest, is_alone};
use crate::sys::{Poll, ReadyEvents, run_in_fork};

const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process is that of the test, in namespaces of its own. Otherwise runs it there.
fn is_in_namespaces(test: &str) -> bool {
    const UNSHARE: [&str; 4] = ["unshare", "--map-root-user", "--net", "--mount"];
    let probe = Command::new(UNSHARE[0]).args(&UNSHARE[1..]).args(["ip", "link"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: this host permits no network namespaces");
        return false;
    }
    is_alone(&format!("network::resolver::tests::{test}"), &UNSHARE)
}

/// The configuration files of the host, replaced in the mount namespace of this process.
struct HostFiles(tempfile::TempDir);

impl HostFiles {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        run("ip", &[Path::new("link"), "set".as_ref(), "lo".as_ref(), "up".as_ref()]);
        for (name, text) in [
            ("nsswitch.conf", "hosts: files dns\n"),
            ("hosts", "127.0.0.1 localhost\n"),
            ("resolv.conf", ""),
        ] {
            files.write(name, text);
            files.mount(name, name);
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file, in place if it exists.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Mounts a file over one of the host.
    fn mount(&self, name: &str, target: &str) {
        run("mount", &["--bind".as_ref(), &self.path(name), &Path::new("/etc").join(target)]);
    }
}

fn run(program: &str, args: &[&Path]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A name server at an address of the loopback. Names that begin with `slow` get no answer, with `no`
/// do not exist, with `broken` fail; others have its number as their address and text.
struct PlayedServer {
    /// The names that it was asked for, as they were written, with the type.
    asked: mpsc::Receiver<(String, u16)>,
}

impl PlayedServer {
    fn new(number: u8) -> Self {
        let address = Ipv4Addr::new(127, 0, 0, number);
        let (socket, listener) =
            (UdpSocket::bind((address, 53)).unwrap(), TcpListener::bind((address, 53)).unwrap());
        let (sender, asked) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((len, client)) = socket.recv_from(&mut buffer) {
                let query = DnsQuery::parse(&buffer[..len]).unwrap();
                let _ =
                    sender.send((format!("{:?}", query.question.name), query.question.record_type));
                let Some(answer) = answer(&query, number, usize::from(query.udp_limit())) else {
                    continue;
                };
                // One that another program made up, with another number.
                let mut forged = answer.clone();
                forged[1] ^= 1;
                socket.send_to(&forged, client).unwrap();
                socket.send_to(&answer, client).unwrap();
            }
        });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut len = [0; 2];
                stream.read_exact(&mut len).unwrap();
                let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
                stream.read_exact(&mut query).unwrap();
                let answer = answer(&DnsQuery::parse(&query).unwrap(), number, 65_535).unwrap();
                // In two parts.
                stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
        Self { asked }
    }

    /// The names that it was asked for since the last call.
    fn asked(&self) -> Vec<(String, u16)> {
        self.asked.try_iter().collect()
    }
}

fn answer(query: &DnsQuery, number: u8, limit: usize) -> Option<Vec<u8>> {
    let DnsQuery { question, .. } = query;
    let name = question.name.to_text().unwrap();
    let count = if name.starts_with("long") { 20 } else { 1 };
    let owner = question.name.clone();
    let record = match question.record_type {
        record_type::A => Some(DnsRecord::address(owner, [192, 0, 2, number].into(), 60)),
        record_type::TXT => Some(DnsRecord {
            owner,
            record_type: record_type::TXT,
            ttl: 60,
            data: [&[200][..], &[number; 200]].concat(),
        }),
        _ => None,
    };
    let code = match &name {
        name if name.starts_with("slow") => return None,
        name if name.starts_with("no") => ResponseCode::NameError,
        name if name.starts_with("broken") => ResponseCode::ServerFailure,
        _ => ResponseCode::NoError,
    };
    let has_records = code == ResponseCode::NoError;
    let records: Vec<_> = record.into_iter().cycle().take(count).filter(|_| has_records).collect();
    let response = DnsResponse {
        query,
        code,
        is_authoritative: true,
        records: &records,
        negative_ttl: records.is_empty().then_some(1),
        error: None,
    };
    Some(response.write(limit))
}

/// A resolver with its poller.
struct ResolverTest {
    resolver: Resolver,
    poll: Poll,
    next: u64,
}

impl ResolverTest {
    fn new() -> Self {
        let poll = Poll::new().unwrap();
        Self { resolver: Resolver::new(poll.waker()), poll, next: 0 }
    }

    fn ask(&mut self, name: &str, query_type: QueryType) -> QueryId {
        let query = QueryId(self.next);
        self.next += 1;
        self.resolver.resolve(query, name.into(), query_type);
        query
    }

    /// The next answer, after which the poller has been woken.
    fn answer(&mut self) -> (QueryId, ResolvedName) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.resolver.poll_answer() {
                return answer;
            }
            assert!(Instant::now() < end, "no answer");
            self.poll.wait(Some(Duration::from_secs(5)), &mut ReadyEvents::new()).unwrap();
        }
    }

    fn addresses(&mut self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let query = self.ask(name, QueryType::Addresses);
        match self.answer() {
            (id, ResolvedName::Addresses(addresses)) if id == query => addresses,
            other => panic!("{other:?}"),
        }
    }

    /// The first byte of each text of a name.
    fn texts(&mut self, name: &str) -> Result<Vec<u8>, u8> {
        let query = self.ask(name, QueryType::Records(record_type::TXT));
        let (id, ResolvedName::Records(message)) = self.answer() else { panic!() };
        assert_eq!(id, query);
        let Ok(message) = message else { return Err(u8::MAX) };
        let answer = parse_answer(&message, &question(name, record_type::TXT)).unwrap();
        match answer.code {
            0 => Ok(answer.records.iter().map(|record| record.data[1]).collect()),
            code => Err(code),
        }
    }
}

fn question(name: &str, record_type: u16) -> capsa_net::wire::dns::DnsQuestion {
    capsa_net::wire::dns::DnsQuestion { name: DnsName::from_text(name).unwrap(), record_type }
}

fn v4(address: [u8; 4]) -> Result<Vec<IpAddr>, ResolveError> {
    Ok(vec![address.into()])
}

#[test]
fn hosts_file_lines_are_those_of_the_name() {
    let text =
        "# comment\n10.0.0.1 one Two # three\n\n10.0.0.2\ttwo\n::1 two\nfe80::1%eth0 two\nx two";
    let all: [IpAddr; 3] = ["10.0.0.1", "10.0.0.2", "::1"].map(|address| address.parse().unwrap());
    assert_eq!(in_hosts_file(text, "two"), all);
    assert_eq!(in_hosts_file(text, "three"), Vec::<IpAddr>::new());
    assert_eq!(in_hosts_file(text, "comment"), Vec::<IpAddr>::new());
}

#[test]
fn attack_52_names_follow_the_host_live() {
    if !is_in_namespaces("attack_52_names_follow_the_host_live") {
        return;
    }
    let files = HostFiles::new();
    let (first, second) = (PlayedServer::new(11), PlayedServer::new(12));
    files.write("resolv.conf", "nameserver 127.0.0.11\nsearch corp.example\n");
    let mut test = ResolverTest::new();
    assert_eq!(test.addresses("a.example"), v4([192, 0, 2, 11]));
    assert_eq!(test.texts("a.example"), Ok(vec![11]));
    assert_eq!(test.addresses("no.example"), Err(ResolveError::NoName));
    assert_eq!(test.addresses("broken.example"), Err(ResolveError::Failed));
    // Search domains do not apply, with or without a dot in the name.
    assert_eq!(test.addresses("no"), Err(ResolveError::NoName));
    let asked = first.asked();
    assert!(asked.iter().all(|(name, _)| !name.contains("corp")), "{asked:?}");
    // The hosts file comes first, and changes in place.
    files.write("hosts", "10.1.1.1 a.example single\n");
    assert_eq!(test.addresses("a.example"), v4([10, 1, 1, 1]));
    assert_eq!(test.addresses("single"), v4([10, 1, 1, 1]));
    assert_eq!(first.asked(), []);
    files.write("hosts", "");
    assert_eq!(test.addresses("a.example"), v4([192, 0, 2, 11]));
    // Another file takes the place of the configuration, as with a VPN.
    files.write("vpn.conf", "nameserver 127.0.0.12\n");
    files.mount("vpn.conf", "resolv.conf");
    assert_eq!(test.addresses("a.example"), v4([192, 0, 2, 12]));
    assert_eq!(test.texts("a.example"), Ok(vec![12]));
    assert!(!second.asked().is_empty());
    // The same with a guest.
    guest_follows(&files);
}

/// A guest gets the names of the hosts file as it changes. Its own cache would keep a name for 30 seconds.
fn guest_follows(files: &HostFiles) {
    let mut test = NetworkTest::new(NetworkOptions::default());
    let handle = test.bind_udp(5000);
    for n in 1..4 {
        let name = format!("guest{n}.example");
        files.write("hosts", &format!("10.1.1.{n} {name}\n"));
        let asked = question(&name, record_type::A);
        let query = write_query(n, &asked);
        test.udp(handle).send_slice(&query, (Ipv4Addr::new(10, 0, 2, 3), 53)).unwrap();
        test.until("an answer", |test| test.udp(handle).can_recv());
        let (message, _) = test.udp(handle).recv().unwrap();
        let answer = parse_answer(message, &asked).unwrap();
        assert_eq!(answer.records[0].data, [10, 1, 1, n as u8]);
    }
}

#[test]
fn records_come_from_the_next_server_or_over_tcp() {
    if !is_in_namespaces("records_come_from_the_next_server_or_over_tcp") {
        return;
    }
    let files = HostFiles::new();
    let (first, second) = (PlayedServer::new(11), PlayedServer::new(12));
    let mut test = ResolverTest::new();
    // A long answer is complete; its servers forge others.
    files.write("resolv.conf", "# comment\nnameserver 127.0.0.11\nnameserver 127.0.0.12\n");
    assert_eq!(test.texts("long.example"), Ok(vec![11; 20]));
    // A failure is an answer: only silence is not.
    assert_eq!(test.texts("broken.example"), Err(2));
    assert_eq!(test.texts("no.example"), Err(3));
    assert_eq!(second.asked(), []);
    let start = Instant::now();
    assert_eq!(test.texts("slow.example"), Err(u8::MAX));
    assert!(start.elapsed() >= 2 * upstream::TIME);
    assert_eq!(second.asked(), [("slow.example.".into(), record_type::TXT)]);
    first.asked();
    // A server that does not run: the next one is asked at once.
    files.write("resolv.conf", "nameserver name\nnameserver 127.0.0.99\nnameserver 127.0.0.12\n");
    let start = Instant::now();
    assert_eq!(test.texts("a.example"), Ok(vec![12]));
    assert!(start.elapsed() < upstream::TIME);
}

#[test]
fn silent_names_of_one_vm_do_not_stop_another() {
    if !is_in_namespaces("silent_names_of_one_vm_do_not_stop_another") {
        return;
    }
    let files = HostFiles::new();
    let server = PlayedServer::new(11);
    files.write("resolv.conf", "nameserver 127.0.0.11\noptions timeout:3 attempts:1\n");
    let (mut hostile, mut other) = (ResolverTest::new(), ResolverTest::new());
    // 64 wait at most: those beyond fail at once.
    let queries: Vec<_> =
        (0..80).map(|n| hostile.ask(&format!("slow{n}.example"), QueryType::Addresses)).collect();
    let failed = hostile.answer();
    assert_eq!(failed.1, ResolvedName::Addresses(Err(ResolveError::Failed)));
    assert!(queries.iter().position(|query| *query == failed.0) >= Some(64));
    let start = Instant::now();
    for n in 0..20 {
        assert_eq!(other.addresses(&format!("a{n}.example")), v4([192, 0, 2, 11]));
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(pool::threads() <= 8);
    // Nothing is left of a VM that ends.
    drop(hostile);
    let end = Instant::now() + PATIENCE;
    while pool::threads() > 0 {
        assert!(Instant::now() < end, "{} threads are left", pool::threads());
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(server);
    assert_eq!(other.addresses("again.example"), v4([192, 0, 2, 11]));
}

#[test]
fn forked_child_resolves_nothing_and_does_not_hang() {
    if !is_alone("network::resolver::tests::forked_child_resolves_nothing_and_does_not_hang", &[]) {
        return;
    }
    let mut test = ResolverTest::new();
    test.addresses("localhost").unwrap();
    let went_well = run_in_fork(|| {
        test.ask("localhost", QueryType::Addresses);
        assert_eq!(test.resolver.poll_answer(), None);
        let mut fresh = ResolverTest::new();
        assert_eq!(fresh.addresses("localhost"), Err(ResolveError::Failed));
        drop(fresh);
    });
    assert!(went_well);
    test.addresses("localhost").unwrap();
}
