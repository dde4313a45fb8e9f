//! A client of the name servers in the host's configuration, for record types other than addresses.
//!
//! It reads the configuration for each query, so a change of the host's network takes effect at once. The
//! servers are asked in turn: the next one only when one does not answer. An answer must come from the
//! address that was asked, with the random number and the question of the query.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use capsa_net::ResolveError;
use capsa_net::wire::dns::{self, DnsName, DnsQuestion};

use crate::random;

/// The time for a server to answer.
pub(super) const TIME: Duration = Duration::from_secs(2);
/// Servers that are asked, at most: as many as glibc asks.
const SERVERS: usize = 3;
/// Bytes of a configuration file that are read.
const FILE_MAX: u64 = 4 << 20;

const CONFIGURATION: &str = "/etc/resolv.conf";

/// The message of a server with records of this type, or without such records.
pub(super) fn records(name: &str, record_type: u16) -> Result<Vec<u8>, ResolveError> {
    let name = DnsName::from_text(name).ok_or(ResolveError::NoName)?;
    let question = DnsQuestion { name, record_type };
    let servers = name_servers(&read(CONFIGURATION).unwrap_or_default());
    let answers = servers.into_iter().map(|server| {
        let answer = ask(server, &question);
        answer.inspect_err(|error| tracing::debug!("name server {server}: {error}"))
    });
    answers.filter_map(Result::ok).next().ok_or(ResolveError::Failed)
}

/// The text of a configuration file.
pub(super) fn read(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The servers of a `resolv.conf`; without one, that of the host (resolv.conf(5)).
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        // Only an address, which may have a zone: no name is resolved here.
        let (host, _) = address.split_once('%').unwrap_or((address, ""));
        host.parse::<IpAddr>().ok()?;
        (address, dns::PORT).to_socket_addrs().ok()?.next()
    };
    let mut servers: Vec<SocketAddr> = text.lines().filter_map(server).take(SERVERS).collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, dns::PORT).into());
    }
    servers
}

/// Asks one server, over TCP if its answer does not fit into a datagram.
fn ask(server: SocketAddr, question: &DnsQuestion) -> io::Result<Vec<u8>> {
    let id = random::number() as u16;
    let query = dns::write_query(id, question);
    let ends_at = Instant::now() + TIME;
    // The kernel chooses a random port.
    let local: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((local, 0))?;
    socket.connect(server)?;
    socket.send(&query)?;
    let mut buffer = [0; dns::UDP_MAX as usize];
    loop {
        socket.set_read_timeout(Some(remaining(ends_at)?))?;
        let len = socket.recv(&mut buffer)?;
        match dns::answers_query(&buffer[..len], id, question) {
            Some(false) => return Ok(buffer[..len].to_vec()),
            Some(true) => return ask_over_tcp(server, id, &query, question),
            None => {}
        }
    }
}

fn ask_over_tcp(
    server: SocketAddr,
    id: u16,
    query: &[u8],
    question: &DnsQuestion,
) -> io::Result<Vec<u8>> {
    let ends_at = Instant::now() + TIME;
    let mut stream = TcpStream::connect_timeout(&server, TIME)?;
    stream.set_write_timeout(Some(TIME))?;
    stream.write_all(&[&(query.len() as u16).to_be_bytes(), query].concat())?;
    let mut len = [0; 2];
    read_exact(&mut stream, &mut len, ends_at)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
    read_exact(&mut stream, &mut answer, ends_at)?;
    match dns::answers_query(&answer, id, question) {
        Some(false) => Ok(answer),
        _ => Err(io::Error::other("the answer is to another question")),
    }
}

fn read_exact(stream: &mut TcpStream, mut into: &mut [u8], ends_at: Instant) -> io::Result<()> {
    while !into.is_empty() {
        stream.set_read_timeout(Some(remaining(ends_at)?))?;
        match stream.read(into)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => into = &mut into[count..],
        }
    }
    Ok(())
}

/// The time that is left.
fn remaining(ends_at: Instant) -> io::Result<Duration> {
    let left = ends_at.saturating_duration_since(Instant::now());
    // Zero would mean "no limit".
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
