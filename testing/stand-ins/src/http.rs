//! The common part of the HTTP/1.1 servers on a unix socket: connections, message heads, and faulty
//! replies. Each server interprets the heads and formats the replies itself.

use std::io::{self, BufRead, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest line of a head that is read.
const MAX_LINE: u64 = 1024;

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HttpRequest {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: Option<Vec<u8>>,
}

/// The first line of a message, and its headers.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) line: String,
    /// Name and value, cut at the colon and blanks not trimmed; one without a colon as it is.
    pub(super) headers: Vec<Result<(String, String), String>>,
}

impl Head {
    /// The next one. `None` at the end.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub(super) fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let Some(line) = read_line(from)? else { return Ok(None) };
        let mut headers = Vec::new();
        while let Some(header) = read_line(from)?.filter(|header| !header.is_empty()) {
            headers.push(match header.split_once(':') {
                Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
                None => Err(header),
            });
        }
        Ok(Some(Self { line, headers }))
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if from.take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let line = String::from_utf8_lossy(&line);
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// How the answer to a call breaks. What was called for is done all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BrokenReply {
    /// Half of it, and the end of the connection.
    Half,
    /// Nothing, and the connection stays.
    Silence,
    /// Nothing, and the end of the connection.
    End,
    /// Something that is no HTTP.
    Garbage,
    /// Megabytes of it.
    Huge,
    /// It comes two seconds later, a byte at a time.
    Slow,
}

/// Sends an answer, or what is made of it. `None` when the connection is over.
pub(super) fn send(
    mut stream: &UnixStream,
    answer: &[u8],
    broken: Option<BrokenReply>,
) -> Option<()> {
    const MEGABYTES: usize = 4 << 20;
    let (bytes, ends) = match broken {
        None => (answer, false),
        Some(BrokenReply::Half) => (&answer[..answer.len() / 2], true),
        Some(BrokenReply::Silence) => (&b""[..], false),
        Some(BrokenReply::End) => (&b""[..], true),
        Some(BrokenReply::Garbage) => (&b"\x7fELF\x02 and so on\r\n\r\n"[..], false),
        Some(BrokenReply::Huge) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {MEGABYTES}\r\n\r\n");
            stream.write_all(head.as_bytes()).ok()?;
            (&vec![b' '; MEGABYTES][..], false)
        }
        Some(BrokenReply::Slow) => {
            std::thread::sleep(Duration::from_secs(2));
            for byte in answer {
                stream.write_all(&[*byte]).ok()?;
            }
            (&b""[..], false)
        }
    };
    stream.write_all(bytes).ok()?;
    if ends {
        stream.shutdown(Shutdown::Both).ok()?;
        return None;
    }
    Some(())
}

/// Has each connection to `listener` be talked with in a thread of its own.
pub(super) fn accept<F>(listener: UnixListener, serve_connection: F)
where
    F: Fn(UnixStream) + Clone + Send + 'static,
{
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve_connection = serve_connection.clone();
            std::thread::spawn(move || serve_connection(stream));
        }
    });
}
