//! The servers of the measurements and tests: one program, on fixed ports.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::RigError;
use crate::name_server;
use crate::traffic::{Report, TestBytes, TrafficRequest};

/// The port of [`TrafficRequest`]s.
pub const REQUESTS: u16 = 5001;
/// The port where a connection gets one byte, and its end.
pub const GREETING: u16 = 5002;
/// The UDP port that sends each datagram back.
pub const UDP_ECHO: u16 = 5003;
/// The port that answers each HTTP request with [`HTTP_ANSWER`].
pub const HTTP: u16 = 80;

/// The first line of an HTTP answer.
pub const HTTP_ANSWER: &str = "HTTP/1.1 204 No Content";

/// The report of the last [`TrafficRequest::HalfClose`].
static HALF_CLOSED: Mutex<Report> = Mutex::new(Report::NONE);

/// Serves until the process ends. Prints a line when all ports are open.
pub(crate) fn serve() -> Result<(), RigError> {
    let open = |port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
    let (requests, greeting) = (open(REQUESTS)?, open(GREETING)?);
    let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, UDP_ECHO))?;
    let (http, names) = (open(HTTP)?, name_server::open()?);
    println!("ready");
    std::thread::spawn(move || echo_datagrams(&udp));
    std::thread::spawn(move || name_server::serve(&names));
    std::thread::spawn(move || {
        for connection in http.incoming().flatten() {
            // A connection that ends early has no answer.
            let _ = answer_request(&connection);
        }
    });
    std::thread::spawn(move || {
        for connection in greeting.incoming().flatten() {
            let _ = (&connection).write_all(b"x");
        }
    });
    for connection in requests.incoming() {
        let connection = connection?;
        std::thread::spawn(move || {
            // A connection that a test aborts ends with an error.
            let _ = handle(&connection);
        });
    }
    Ok(())
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = vec![0; 65536];
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&buffer[..len], from);
    }
}

fn answer_request(connection: &TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(connection).lines();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    write!(&mut &*connection, "{HTTP_ANSWER}\r\nConnection: close\r\n\r\n")
}

fn handle(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut requests = BufReader::with_capacity(TrafficRequest::LEN, connection);
    let request = TrafficRequest::read(&mut requests)?;
    let stream = &mut &*connection;
    match request {
        TrafficRequest::Sink { rate } => read_all(stream, rate)?.write(stream),
        TrafficRequest::Bytes(count) => {
            TestBytes::new().send(stream, |sent| sent < count, Some(count))
        }
        TrafficRequest::Time(micros) => {
            let end = Instant::now() + Duration::from_micros(micros);
            TestBytes::new().send(stream, |_| Instant::now() < end, None)
        }
        TrafficRequest::AskedNames => stream.write_all(name_server::asked().as_bytes()),
        TrafficRequest::Echo => {
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => stream.write_all(&buffer[..n])?,
                }
            }
        }
        TrafficRequest::HalfClose(count) => {
            *HALF_CLOSED.lock().expect("no thread panics with it") = Report::NONE;
            TestBytes::new().send(stream, |sent| sent < count, Some(count))?;
            connection.shutdown(Shutdown::Write)?;
            let report = read_all(stream, 0)?;
            *HALF_CLOSED.lock().expect("no thread panics with it") = report;
            Ok(())
        }
        TrafficRequest::HalfClosed => {
            let end = Instant::now() + Duration::from_secs(5);
            loop {
                let report = *HALF_CLOSED.lock().expect("no thread panics with it");
                if report != Report::NONE || Instant::now() > end {
                    return report.write(stream);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Reads to the end, at most `rate` bytes a second unless that is 0.
pub(crate) fn read_all(stream: &mut impl Read, rate: u64) -> io::Result<Report> {
    let mut buffer = vec![0; if rate == 0 { 256 << 10 } else { 64 << 10 }];
    let (mut pattern, mut report) = (TestBytes::new(), Report { is_intact: true, ..Report::NONE });
    let mut begin = None;
    let mut last = Instant::now();
    loop {
        let n = stream.read(&mut buffer)?;
        let now = Instant::now();
        let begin = *begin.get_or_insert(now);
        if report.bytes > 0 {
            report.gap = report.gap.max(now - last);
        }
        last = now;
        report.elapsed = now - begin;
        if n == 0 {
            return Ok(report);
        }
        report.is_intact &= pattern.matches(&buffer[..n]);
        report.bytes += n as u64;
        if rate > 0 {
            let due = begin + Duration::from_secs_f64(report.bytes as f64 / rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}
