//! The transport of the API: HTTP/1.1 as in the `micro_http` of the real one, on a unix socket: an
//! inherited one, or one at a path with a lock file beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Sender, channel};

use super::super::http::{Head, HttpRequest, accept, send};
use super::super::inherited;
use super::ChvFault;
use super::command_line::FileOption;
use super::vmm::VmmEvent;

/// The maximal size of a request body, as in the real one.
const MAX_BODY: usize = 4 << 20;

/// The name of a request in the API, e.g. `vm.boot`.
pub(super) fn name(request: &HttpRequest) -> &str {
    request.path.strip_prefix("/api/v1/").unwrap_or_default()
}

/// A response of the API.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ApiResponse {
    pub(super) status: u16,
    /// The value of the `Server` header. The HTTP library replies to a request that it cannot parse, with
    /// another name.
    server: &'static str,
    body: String,
}

impl ApiResponse {
    pub(super) fn new(status: u16, body: String) -> Self {
        Self { status, server: "Cloud Hypervisor API", body }
    }

    fn unparsed(why: &str) -> Self {
        // As in the real one, this is not JSON: the line break is not escaped.
        let dropped = "All previous unanswered requests will be dropped.";
        let body = format!("{{ \"error\": \"{why}\n{dropped}\" }}");
        Self { server: "Firecracker API", ..Self::new(400, body) }
    }

    fn encode(&self) -> Vec<u8> {
        let Self { status, server, body } = self;
        let mut head =
            format!("HTTP/1.1 {status} \r\nServer: {server}\r\nConnection: keep-alive\r\n");
        if *status != 204 {
            let length = body.len();
            head += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        }
        format!("{head}\r\n{body}").into_bytes()
    }
}

/// A served socket. If it was bound to a path, dropping it removes the path.
#[derive(Debug)]
pub(super) struct Served {
    path: Option<String>,
    _lock: Option<File>,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Serves the API on a path or an inherited listener. At a path, a socket whose lock is free is
/// replaced.
///
/// # Errors
///
/// When another process holds the lock, or the socket cannot be bound.
pub(super) fn serve(
    socket: &FileOption,
    to: &Sender<VmmEvent>,
    faults: &[ChvFault],
) -> io::Result<Served> {
    let (listener, served) = match socket {
        FileOption::Path(path) => {
            let mut lock = OpenOptions::new();
            let lock =
                lock.create(true).truncate(false).write(true).open(format!("{path}.lock"))?;
            lock.try_lock().map_err(|_| io::Error::from(io::ErrorKind::AddrInUse))?;
            let _ = fs::remove_file(path);
            (UnixListener::bind(path)?, Served { path: Some(path.clone()), _lock: Some(lock) })
        }
        FileOption::Descriptor(number) => {
            (inherited::take(*number)?.into(), Served { path: None, _lock: None })
        }
    };
    let (to, faults) = (to.clone(), faults.to_vec());
    accept(listener, move |stream| {
        serve_connection(stream, &to, &faults);
    });
    Ok(served)
}

/// One connection: any number of requests, one after the other.
fn serve_connection(stream: UnixStream, to: &Sender<VmmEvent>, faults: &[ChvFault]) -> Option<()> {
    let mut requests = BufReader::new(stream.try_clone().ok()?);
    loop {
        let request = read_request(&mut requests).ok()??;
        let called = request.as_ref().map(|r| name(r).to_owned()).unwrap_or_default();
        let (response, written) = match request {
            Err(why) => (ApiResponse::unparsed(&why), None),
            Ok(request) => {
                let (answer, response) = channel();
                let (done, written) = channel();
                to.send(VmmEvent::Request(request, answer, written)).ok()?;
                (response.recv().ok()?, Some(done))
            }
        };
        let broken = faults.iter().find_map(|fault| fault.broken_reply(&called));
        let sent = send(&stream, &response.encode(), broken);
        // Closing the channel signals that the response is written: `vmm.shutdown` waits for it.
        drop(written);
        sent?;
    }
}

/// Reads the next request. The inner error is the reason why it is invalid. `None` at the end of the
/// connection.
fn read_request(from: &mut impl BufRead) -> io::Result<Option<Result<HttpRequest, String>>> {
    let Some(head) = Head::read(from)? else { return Ok(None) };
    let mut length = 0;
    let mut wrong = None;
    for header in head.headers {
        let (key, value) = match header {
            Ok(header) => header,
            Err(header) => {
                wrong.get_or_insert(format!(
                    "Invalid header. Reason: Header is incorrectly formatted. Key: {header}"
                ));
                continue;
            }
        };
        if key.eq_ignore_ascii_case("content-length") {
            match value.trim().parse::<usize>() {
                Ok(n) if n <= MAX_BODY => length = n,
                Ok(n) => drop(wrong.get_or_insert(format!(
                    "Request payload with size {n} is larger than the limit of {MAX_BODY} allowed \
                     by server."
                ))),
                Err(_) => drop(wrong.get_or_insert(format!(
                    "Invalid header. Reason: Invalid value. Key:{key}; Value:{value}"
                ))),
            }
        }
    }
    let words: Vec<&str> = head.line.split(' ').collect();
    let why = match words[..] {
        [method, ..] if !["GET", "PUT", "PATCH", "DELETE"].contains(&method) && words.len() > 1 => {
            Some("Invalid HTTP Method: Unsupported HTTP method.".to_owned())
        }
        [_, "", _] => Some("Invalid URI: Empty URI not allowed.".to_owned()),
        [_, _, "HTTP/1.1" | "HTTP/1.0"] => wrong,
        [_, _, _] => Some("Invalid HTTP Version: Unsupported HTTP version.".to_owned()),
        _ => Some("Invalid request.".to_owned()),
    };
    if let Some(why) = why {
        return Ok(Some(Err(why)));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some(Ok(HttpRequest {
        method: words[0].to_owned(),
        path: words[1].to_owned(),
        body: (!body.is_empty()).then_some(body),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_parsing_accepts_or_rejects() {
        let read = |text: &str| read_request(&mut text.as_bytes()).unwrap();
        let request = read("PUT /api/v1/vm.create HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}");
        let want = HttpRequest {
            method: "PUT".into(),
            path: "/api/v1/vm.create".into(),
            body: Some(b"{}".to_vec()),
        };
        assert_eq!(request, Some(Ok(want)));
        assert_eq!(read(""), None);
        for (text, want) in [
            ("hello\r\n\r\n", "Invalid request."),
            ("POST / HTTP/1.1\r\n\r\n", "Invalid HTTP Method"),
            ("GET / HTTP/2.0\r\n\r\n", "Invalid HTTP Version"),
            ("GET / HTTP/1.1\r\nfoo\r\n\r\n", "incorrectly formatted. Key: foo"),
            ("GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", "larger than the limit"),
        ] {
            let refused = read(text);
            let Some(Err(why)) = refused else { panic!("{text}: {refused:?}") };
            assert!(why.contains(want), "{text}: {why}");
        }
    }
}
