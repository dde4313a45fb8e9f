//! The common part of the HTTP/1.1 servers on a unix socket: connections, message heads, and faulty
//! replies. Each server interprets the heads and formats the replies itself.

use std::io::{self, BufRead, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The maximal length of a line in a message head.
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
    /// Name and value, split at the colon, with blanks. `Err` is a line without a colon.
    pub(super) headers: Vec<Result<(String, String), String>>,
}

impl Head {
    /// Reads the next head. `None` at the end of the connection.
    ///
    /// # Errors
    ///
    /// When reading fails.
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

/// A broken reply to a request. The request itself is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BrokenReply {
    /// Half of the reply; then the connection closes.
    Half,
    /// No reply; the connection stays open.
    Silence,
    /// No reply; the connection closes.
    End,
    /// Bytes that are not HTTP.
    Garbage,
    /// A reply of 4 MiB.
    Huge,
    /// The reply after two seconds, byte by byte.
    Slow,
}

/// Sends a reply, or a broken one instead. `None` when the connection is closed.
pub(super) fn send(
    mut stream: &UnixStream,
    reply: &[u8],
    broken: Option<BrokenReply>,
) -> Option<()> {
    const HUGE_BYTES: usize = 4 << 20;
    let (bytes, closes) = match broken {
        None => (reply, false),
        Some(BrokenReply::Half) => (&reply[..reply.len() / 2], true),
        Some(BrokenReply::Silence) => (&b""[..], false),
        Some(BrokenReply::End) => (&b""[..], true),
        Some(BrokenReply::Garbage) => (&b"\x7fELF\x02 and so on\r\n\r\n"[..], false),
        Some(BrokenReply::Huge) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {HUGE_BYTES}\r\n\r\n");
            stream.write_all(head.as_bytes()).ok()?;
            (&vec![b' '; HUGE_BYTES][..], false)
        }
        Some(BrokenReply::Slow) => {
            std::thread::sleep(Duration::from_secs(2));
            for byte in reply {
                stream.write_all(&[*byte]).ok()?;
            }
            (&b""[..], false)
        }
    };
    stream.write_all(bytes).ok()?;
    if closes {
        stream.shutdown(Shutdown::Both).ok()?;
        return None;
    }
    Some(())
}

/// Calls `serve_connection` for each connection to `listener`, in a thread of its own.
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
