//! The REST service, with the behaviour of gin on Go's HTTP server. It starts before the guest runs.
//!
//! It reads the state and the configuration itself. It sends a change of state to the VM's loop, which
//! alone starts and stops guests.

use std::io::{self, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::http::{Head, HttpRequest, accept, send};
use super::framework::VzState;
use super::vm::VfkitEvent;
use super::{VfkitCall, VfkitFault, log};

/// The REST service of a VM.
#[derive(Debug, Clone)]
pub(super) struct RestService {
    /// The state of the VM.
    pub(super) state: Arc<Mutex<VzState>>,
    /// The reply to `GET /vm/inspect`.
    pub(super) config: Arc<Value>,
    /// The events of the VM's loop.
    pub(super) sender: Sender<VfkitEvent>,
    pub(super) faults: Arc<[VfkitFault]>,
}

/// A response: status, content type and body.
#[derive(Debug, PartialEq, Eq)]
struct RestResponse(u16, Option<&'static str>, String);

impl RestResponse {
    fn json(status: u16, body: &Value) -> Self {
        Self(status, Some("application/json; charset=utf-8"), body.to_string())
    }

    fn error(status: u16, why: &str) -> Self {
        Self::json(status, &json!({ "error": why }))
    }

    fn encode(&self) -> Vec<u8> {
        let Self(status, kind, body) = self;
        let reason = match status {
            200 => "OK",
            202 => "Accepted",
            400 => "Bad Request",
            404 => "Not Found",
            _ => "Internal Server Error",
        };
        let kind = kind.map(|kind| format!("Content-Type: {kind}\r\n")).unwrap_or_default();
        let length = body.len();
        format!("HTTP/1.1 {status} {reason}\r\n{kind}Content-Length: {length}\r\n\r\n{body}")
            .into_bytes()
    }
}

impl RestService {
    /// Serves at `path`: immediately, after a delay, or never, as the faults request.
    ///
    /// # Errors
    ///
    /// When the socket cannot be bound. After a delay, that ends the process instead.
    pub(super) fn serve(self, path: &str) -> Result<(), String> {
        let late = self.faults.iter().find_map(|fault| match fault {
            VfkitFault::SocketAfter(time) => Some(*time),
            VfkitFault::NoSocket => Some(Duration::MAX),
            _ => None,
        });
        let path = path.to_owned();
        let Some(late) = late else { return self.bind(&path) };
        std::thread::spawn(move || {
            std::thread::sleep(late);
            if let Err(why) = self.bind(&path) {
                log::write("fatal", &why);
                std::process::exit(1);
            }
        });
        Ok(())
    }

    fn bind(self, path: &str) -> Result<(), String> {
        // As in the real one, a stale socket is not removed: the error is `address already in use`.
        let listener = UnixListener::bind(path).map_err(|error| {
            let why = super::device::go_error(&error.to_string());
            format!("listen unix {path}: bind: {why}")
        })?;
        accept(listener, move |stream| {
            self.serve_connection(stream);
        });
        Ok(())
    }

    /// One connection: any number of requests, one after the other.
    fn serve_connection(&self, stream: UnixStream) -> Option<()> {
        let mut requests = BufReader::new(stream.try_clone().ok()?);
        loop {
            let request = match receive(&mut requests).ok()? {
                Received::Request(request) => request,
                Received::End => return None,
                Received::Invalid => {
                    let kind = "text/plain; charset=utf-8\r\nConnection: close";
                    let response = RestResponse(400, Some(kind), "400 Bad Request".to_owned());
                    return send(&stream, &response.encode(), None);
                }
            };
            let begin = Instant::now();
            let (call, response) = self.respond(&request);
            log::request(response.0, begin.elapsed(), &request.method, &request.path);
            let mut faults = self.faults.iter();
            let broken = faults.find_map(|fault| fault.broken_reply(call?));
            send(&stream, &response.encode(), broken)?;
        }
    }

    /// The response to a request, and the request if it can have a fault.
    fn respond(&self, request: &HttpRequest) -> (Option<VfkitCall>, RestResponse) {
        let path = request.path.split_once('?').map_or(&*request.path, |(path, _)| path);
        match (request.method.as_str(), path) {
            ("GET", "/vm/state") => {
                let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let response = self.faulty_response(VfkitCall::State);
                (
                    Some(VfkitCall::State),
                    response.unwrap_or_else(|| RestResponse::json(200, &state.reply())),
                )
            }
            ("GET", "/vm/inspect") => (None, RestResponse::json(200, &self.config)),
            ("POST", "/vm/state") => {
                let name = match state_of(request.body.as_deref().unwrap_or_default()) {
                    Ok(name) => name,
                    Err(why) => return (None, RestResponse::error(400, &why)),
                };
                let Some(call) = VfkitCall::change(&name) else {
                    return (None, self.failed(&name, &format!("invalid new VMState: {name}")));
                };
                (Some(call), self.faulty_response(call).unwrap_or_else(|| self.change(call)))
            }
            _ => (None, RestResponse(404, Some("text/plain"), "404 page not found".into())),
        }
    }

    /// The response that a fault requests.
    fn faulty_response(&self, call: VfkitCall) -> Option<RestResponse> {
        self.faults.iter().find_map(|fault| match *fault {
            VfkitFault::Exits(at, status) if at == call => {
                eprintln!("{}", VfkitFault::STDERR_LINE);
                std::process::exit(i32::from(status));
            }
            VfkitFault::Rejects(at) if at == call => {
                Some(self.failed(call.name(), VfkitFault::CAUSE))
            }
            VfkitFault::Ignores(at) if at == call => Some(RestResponse(202, None, String::new())),
            _ => None,
        })
    }

    fn change(&self, call: VfkitCall) -> RestResponse {
        let (reply, result) = channel();
        let _ = self.sender.send(VfkitEvent::Change(call, reply));
        match result.recv() {
            Ok(Ok(())) => RestResponse(202, None, String::new()),
            Ok(Err(why)) => self.failed(call.name(), &why),
            // The process exits. As in the real one, it may exit before the client reads the response.
            Err(_) => RestResponse(202, None, String::new()),
        }
    }

    fn failed(&self, action: &str, why: &str) -> RestResponse {
        log::write("error", &format!("failed action {action}: {why:?}"));
        RestResponse::error(500, why)
    }
}

/// The name of the state in a request's body. As in Go, other members of the object are ignored.
fn state_of(body: &[u8]) -> Result<String, String> {
    if body.is_empty() {
        return Err("EOF".to_owned());
    }
    let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let wrong = |what: &Value, to: &str| {
        let what = match what {
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
            _ => "string",
        };
        Err(format!("json: cannot unmarshal {what} into Go {to}"))
    };
    match &body {
        Value::Null => Ok(String::new()),
        Value::Object(members) => {
            let named = members.iter().find(|(name, _)| name.eq_ignore_ascii_case("state"));
            match named.map(|(_, value)| value) {
                None | Some(Value::Null) => Ok(String::new()),
                Some(Value::String(name)) => Ok(name.clone()),
                Some(other) => wrong(other, "struct field VMState.state of type string"),
            }
        }
        other => wrong(other, "value of type define.VMState"),
    }
}

/// The result of reading a request: a request, an invalid one, or the end of the connection.
#[derive(Debug)]
enum Received {
    Request(HttpRequest),
    Invalid,
    End,
}

fn receive(from: &mut BufReader<UnixStream>) -> io::Result<Received> {
    let Some(head) = Head::read(from)? else { return Ok(Received::End) };
    let words: Vec<&str> = head.line.split(' ').collect();
    let [method, path, "HTTP/1.1" | "HTTP/1.0"] = words[..] else { return Ok(Received::Invalid) };
    let mut length = 0;
    for header in head.headers {
        let Ok((name, value)) = header else { return Ok(Received::Invalid) };
        if name.eq_ignore_ascii_case("content-length") {
            let Ok(given) = value.trim().parse() else { return Ok(Received::Invalid) };
            length = given;
        }
    }
    let mut body = Vec::new();
    from.take(length).read_to_end(&mut body)?;
    let body = (!body.is_empty()).then_some(body);
    Ok(Received::Request(HttpRequest { method: method.to_owned(), path: path.to_owned(), body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_is_parsed_as_in_go() {
        for (body, want) in [
            (r#"{"state":"Stop"}"#, Ok("Stop")),
            (r#"{"State":"Stop","more":1}"#, Ok("Stop")),
            ("{}", Ok("")),
            ("null", Ok("")),
            ("", Err("EOF")),
            ("[]", Err("cannot unmarshal array")),
            (r#"{"state":1}"#, Err("cannot unmarshal number")),
            ("{", Err("EOF")),
        ] {
            match (state_of(body.as_bytes()), want) {
                (Ok(name), Ok(want)) => assert_eq!(name, want, "{body}"),
                (Err(why), Err(want)) => assert!(why.contains(want), "{body}: {why}"),
                (got, _) => panic!("{body}: {got:?}"),
            }
        }
    }
}
