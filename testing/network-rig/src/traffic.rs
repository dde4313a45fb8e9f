//! What a guest does with the servers of [`server`](crate::server), and the protocol between them.
//!
//! A client sends one [`TrafficRequest`], of a fixed length, and then what the request expects. The program
//! `network-rig traffic NAME ADDRESS N` runs one kind of traffic, and prints a line `NAME VALUE` for each figure.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use capsa_net::wire::dns::{self, DnsName, DnsQuestion, record_type};

use crate::RigError;

/// What a client wants of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficRequest {
    /// Read to the end, at most `rate` bytes a second unless that is 0, then answer with a [`Report`].
    Sink {
        /// Bytes a second.
        rate: u64,
    },
    /// Send this many bytes, then end.
    Bytes(u64),
    /// Send for this many microseconds, then end.
    Time(u64),
    /// Send everything back.
    Echo,
    /// Send this many bytes, end that direction, and read to the end.
    HalfClose(u64),
    /// Answer with the report of the last [`TrafficRequest::HalfClose`].
    HalfClosed,
    /// Answer with the names that the name server was asked for.
    AskedNames,
}

impl TrafficRequest {
    /// The length of a request.
    pub const LEN: usize = 9;

    pub(crate) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; Self::LEN];
        from.read_exact(&mut bytes)?;
        let value = u64::from_le_bytes(bytes[1..].try_into().expect("eight bytes"));
        Ok(match bytes[0] {
            b's' => Self::Sink { rate: value },
            b'b' => Self::Bytes(value),
            b't' => Self::Time(value),
            b'e' => Self::Echo,
            b'h' => Self::HalfClose(value),
            b'r' => Self::HalfClosed,
            b'n' => Self::AskedNames,
            _ => return Err(ErrorKind::InvalidData.into()),
        })
    }

    /// Connects and sends the request.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub fn open(self, server: SocketAddr) -> io::Result<TcpStream> {
        let (name, value) = match self {
            Self::Sink { rate } => (b's', rate),
            Self::Bytes(count) => (b'b', count),
            Self::Time(micros) => (b't', micros),
            Self::Echo => (b'e', 0),
            Self::HalfClose(count) => (b'h', count),
            Self::HalfClosed => (b'r', 0),
            Self::AskedNames => (b'n', 0),
        };
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut bytes = [name; Self::LEN];
        bytes[1..].copy_from_slice(&value.to_le_bytes());
        stream.write_all(&bytes)?;
        Ok(stream)
    }
}

/// How long a side waits for a byte.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a side read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// How many bytes.
    pub bytes: u64,
    /// The bytes are those of the [`TestBytes`].
    pub is_intact: bool,
    /// The longest time between two reads.
    pub gap: Duration,
    /// The time between the first and the last read.
    pub elapsed: Duration,
}

impl Report {
    /// The report before anything is read.
    pub const NONE: Self =
        Self { bytes: 0, is_intact: false, gap: Duration::ZERO, elapsed: Duration::ZERO };

    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let micros = |time: Duration| time.as_micros() as u64;
        let values = [self.bytes, self.is_intact.into(), micros(self.gap), micros(self.elapsed)];
        to.write_all(&values.map(u64::to_le_bytes).concat())
    }

    fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; 32];
        from.read_exact(&mut bytes)?;
        let value =
            |n: usize| u64::from_le_bytes(bytes[8 * n..8 * n + 8].try_into().expect("eight bytes"));
        let micros = |n| Duration::from_micros(value(n));
        Ok(Self { bytes: value(0), is_intact: value(1) == 1, gap: micros(2), elapsed: micros(3) })
    }
}

/// The bytes that both sides know: a block without a period that a packet could have, again and again.
#[derive(Debug)]
pub struct TestBytes {
    block: Vec<u8>,
    at: usize,
}

impl TestBytes {
    /// The pattern from its start.
    pub fn new() -> Self {
        let mut state = 1_u32;
        let block = (0..65521).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        Self { block: block.collect(), at: 0 }
    }

    /// Whether these are the next bytes.
    pub fn matches(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let n = bytes.len().min(self.block.len() - self.at);
            if bytes[..n] != self.block[self.at..self.at + n] {
                return false;
            }
            self.at = (self.at + n) % self.block.len();
            bytes = &bytes[n..];
        }
        true
    }

    /// Sends while `more` is true of the number of bytes, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the stream fails.
    pub fn send(
        &mut self,
        stream: &mut impl Write,
        mut more: impl FnMut(u64) -> bool,
        limit: Option<u64>,
    ) -> io::Result<()> {
        let mut sent = 0;
        while more(sent) {
            let left = limit.map_or(u64::MAX, |limit| limit - sent);
            let part = &self.block[self.at..];
            let n = stream.write(&part[..part.len().min(left.try_into().unwrap_or(usize::MAX))])?;
            self.at = (self.at + n) % self.block.len();
            sent += n as u64;
        }
        Ok(())
    }
}

impl Default for TestBytes {
    fn default() -> Self {
        Self::new()
    }
}

/// Segments that this namespace sent again: `TcpRetransSegs`.
fn retransmitted() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let value = pairs.find(|(name, _)| *name == "RetransSegs").map(|(_, value)| value);
    value.and_then(|value| value.parse().ok()).ok_or_else(|| io::Error::other("no RetransSegs"))
}

/// Runs one kind of traffic and prints its figures.
pub(crate) fn run(name: &str, server: SocketAddr, n: u64) -> Result<(), RigError> {
    let before = retransmitted()?;
    let begin = Instant::now();
    let seconds = Duration::from_micros(n);
    match name {
        "upload" => print_report(&upload(server, 0, |_| begin.elapsed() < seconds, None)?),
        "upload-bytes" => print_report(&upload(server, 0, |sent| sent < n, Some(n))?),
        // Two seconds' worth, at the rate `n`.
        "upload-slowly" => print_report(&upload(server, n, |sent| sent < 2 * n, Some(2 * n))?),
        "download" => print_report(&receive(&mut TrafficRequest::Time(n).open(server)?, 0)?),
        "download-bytes" => print_report(&receive(&mut TrafficRequest::Bytes(n).open(server)?, 0)?),
        // The guest reads slowly, at the rate `n`.
        "download-slowly" => {
            print_report(&receive(&mut TrafficRequest::Bytes(2 * n).open(server)?, n)?)
        }
        "half-close" => half_close(server, n)?,
        "connects" => connects(server, n)?,
        "round-trips" => round_trips(server, n)?,
        "flows" => flows(server, n)?,
        "connect" => connect(server),
        "udp" => udp(server, n)?,
        "dhcp" => dhcp(server)?,
        "ping" => ping(server.ip(), n)?,
        "asked-names" => {
            io::copy(&mut TrafficRequest::AskedNames.open(server)?, &mut io::stdout()).map(drop)?
        }
        other => match other.split_once('=') {
            Some(("query", name)) => queries(server, name, n)?,
            Some(("http", host)) => http(server, host)?,
            _ => return Err(format!("unknown traffic {other}").into()),
        },
    }
    println!("seconds {}", begin.elapsed().as_secs_f64());
    println!("retransmitted {}", retransmitted()? - before);
    Ok(())
}

fn print_report(report: &Report) {
    println!("bytes {}\nintact {}", report.bytes, u8::from(report.is_intact));
    println!("gap {}\nread_seconds {}", report.gap.as_secs_f64(), report.elapsed.as_secs_f64());
}

fn upload(
    server: SocketAddr,
    rate: u64,
    more: impl FnMut(u64) -> bool,
    limit: Option<u64>,
) -> io::Result<Report> {
    let mut stream = TrafficRequest::Sink { rate }.open(server)?;
    TestBytes::new().send(&mut stream, more, limit)?;
    stream.shutdown(Shutdown::Write)?;
    Report::read(&mut stream)
}

fn receive(stream: &mut impl Read, rate: u64) -> io::Result<Report> {
    crate::server::read_all(stream, rate)
}

/// The server ends its direction first; this side goes on sending.
fn half_close(server: SocketAddr, n: u64) -> io::Result<()> {
    let mut stream = TrafficRequest::HalfClose(n).open(server)?;
    print_report(&receive(&mut stream, 0)?);
    std::thread::sleep(Duration::from_millis(20));
    TestBytes::new().send(&mut stream, |sent| sent < n, Some(n))?;
    drop(stream);
    let report = Report::read(&mut TrafficRequest::HalfClosed.open(server)?)?;
    println!("later_bytes {}\nlater_intact {}", report.bytes, u8::from(report.is_intact));
    Ok(())
}

/// The microseconds of a connection to the port after that of requests: connect, read a byte, end.
fn connects(server: SocketAddr, n: u64) -> io::Result<()> {
    let server = SocketAddr::new(server.ip(), crate::server::GREETING);
    let connect = || {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut [0])?;
        drop(stream);
        Ok(begin.elapsed())
    };
    print_median("micros", (0..n).map(|_| connect()).collect::<io::Result<_>>()?);
    Ok(())
}

fn round_trips(server: SocketAddr, n: u64) -> io::Result<()> {
    let mut stream = TrafficRequest::Echo.open(server)?;
    let mut trip = || {
        let begin = Instant::now();
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        Ok(begin.elapsed())
    };
    print_median("micros", (0..n).map(|_| trip()).collect::<io::Result<_>>()?);
    Ok(())
}

fn print_median(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    println!("{name} {}", times[times.len() / 2].as_secs_f64() * 1e6);
}

/// `n` connections at once, half of them in each direction, 256 KiB each.
fn flows(server: SocketAddr, n: u64) -> Result<(), RigError> {
    const EACH: u64 = 256 << 10;
    let flow = |index: u64| match index % 2 {
        0 => upload(server, 0, |sent| sent < EACH, Some(EACH)),
        _ => receive(&mut TrafficRequest::Bytes(EACH).open(server)?, 0),
    };
    let reports: Vec<_> = std::thread::scope(|scope| {
        let flows: Vec<_> = (0..n).map(|index| scope.spawn(move || flow(index))).collect();
        flows.into_iter().map(|flow| flow.join().expect("a flow does not panic")).collect()
    });
    let mut intact = 0;
    for report in reports {
        let report = report?;
        intact += u64::from(report.is_intact && report.bytes == EACH);
    }
    println!("intact {intact}");
    Ok(())
}

/// Connects once, and prints the name of the result.
fn connect(server: SocketAddr) {
    let result = TcpStream::connect_timeout(&server, PATIENCE);
    let name = result.map_or_else(|error| format!("{:?}", error.kind()), |_| "Connected".into());
    println!("result {name}");
}

/// `n` datagrams of growing size, each sent back.
fn udp(server: SocketAddr, n: u64) -> io::Result<()> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut buffer = vec![0; 65536];
    let mut intact = 0;
    for index in 0..n {
        let datagram = vec![index as u8; (index as usize * 97) % 1400 + 1];
        socket.send(&datagram)?;
        let len = socket.recv(&mut buffer)?;
        intact += u64::from(buffer[..len] == datagram);
    }
    println!("intact {intact}");
    Ok(())
}

/// `n` queries for the IPv4 address of a name, after the first one. Prints the code of the answer, its first
/// address, and the median of the times.
fn queries(server: SocketAddr, name: &str, n: u64) -> Result<(), RigError> {
    let question = DnsQuestion {
        name: DnsName::from_text(name).ok_or("the name is too long")?,
        record_type: record_type::A,
    };
    let socket = UdpSocket::bind((IpAddr::from([0; 4]), 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 1500];
    let mut ask = |id: u16| -> io::Result<(Duration, Vec<u8>)> {
        let query = dns::write_query(id, &question);
        let begin = Instant::now();
        socket.send(&query)?;
        loop {
            let len = socket.recv(&mut buffer)?;
            if buffer[..len].starts_with(&id.to_be_bytes()) {
                return Ok((begin.elapsed(), buffer[..len].to_vec()));
            }
        }
    };
    let (_, first) = ask(0)?;
    let times = (0..n).map(|id| Ok(ask(id as u16 + 1)?.0)).collect::<io::Result<Vec<_>>>()?;
    // The loopback of the host sends the query back.
    if let Ok(answer) = dns::parse_answer(&first, &question) {
        println!("code {}", answer.code);
        if let Some([a, b, c, d]) = answer.records.first().map(|record| &record.data[..]) {
            println!("result {a}.{b}.{c}.{d}");
        }
    }
    if n > 0 {
        print_median("micros", times);
    }
    Ok(())
}

/// A request with this `Host`. Prints the first line of the answer, or the kind of the error.
fn http(server: SocketAddr, host: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Ok(_) => println!("result {}", answer.lines().next().unwrap_or_default()),
        Err(error) => println!("result {:?}", error.kind()),
    }
    Ok(())
}

/// `n` echo requests, through a ping socket.
fn ping(remote: IpAddr, n: u64) -> Result<(), RigError> {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    let (family, protocol, request, reply) = match remote {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    let socket = UdpSocket::from(socket(family, SocketType::DGRAM, Some(protocol))?);
    socket.connect((remote, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut intact = 0;
    for sequence in 0..n as u8 {
        let message = [request, 0, 0, 0, 0, 0, 0, sequence, b'c', b'a', b'p', b's', b'a'];
        socket.send(&message)?;
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer)?;
        intact +=
            u64::from(len == message.len() && buffer[0] == reply && buffer[7..len] == message[7..]);
    }
    println!("intact {intact}");
    Ok(())
}

/// Asks for a lease, and takes it.
fn dhcp(server: SocketAddr) -> Result<(), RigError> {
    let socket = UdpSocket::bind(SocketAddr::from(([0; 4], 68)))?;
    socket.set_broadcast(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    let message = |kind: u8, options: &[u8]| {
        // A request of a card of Ethernet, answered by broadcast, with a number.
        let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0];
        message.resize(28, 0);
        message.extend(capsa_proto::plan::MacAddress::GUEST.0);
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, kind]);
        message.extend(options);
        message.push(255);
        message
    };
    let mut answer = [0; 1500];
    let begin = Instant::now();
    socket.send_to(&message(1, &[]), server)?;
    socket.recv(&mut answer)?;
    let [a, b, c, d] = answer[16..20] else { unreachable!("four bytes") };
    // The address, and the identity of the server.
    socket.send_to(&message(3, &[50, 4, a, b, c, d, 54, 4, 10, 0, 2, 2]), server)?;
    let len = socket.recv(&mut answer)?;
    let time = begin.elapsed();
    if !answer[..len].windows(3).any(|option| option == [53, 1, 5]) {
        return Err("the lease was refused".into());
    }
    println!("micros {}", time.as_secs_f64() * 1e6);
    Ok(())
}
