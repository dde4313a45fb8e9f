//! The REST service, as gin on Go's HTTP server has it. It is there before the machine runs.
//!
//! What it shows it looks up itself; a change of state is a wish to the machine's own loop, as all
//! that starts or ends a guest is.

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

/// What the service needs of the machine.
#[derive(Debug, Clone)]
pub(super) struct RestService {
    /// How the machine is doing.
    pub(super) state: Arc<Mutex<VzState>>,
    /// What `GET /vm/inspect` shows.
    pub(super) config: Arc<Value>,
    /// Where wishes go.
    pub(super) to: Sender<VfkitEvent>,
    pub(super) faults: Arc<[VfkitFault]>,
}

/// Status, type and text of an answer.
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
    /// Serves at `path`, soon, late or never.
    ///
    /// # Errors
    ///
    /// When it cannot be bound at once. Where that is late, it ends the process then.
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
        // There is no looking for a socket that was left: it is an address in use.
        let listener = UnixListener::bind(path).map_err(|error| {
            let why = super::device::in_go(&error.to_string());
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
                Received::RunResult => return None,
                Received::Nonsense => {
                    let kind = "text/plain; charset=utf-8\r\nConnection: close";
                    let answer = RestResponse(400, Some(kind), "400 Bad Request".to_owned());
                    return send(&stream, &answer.encode(), None);
                }
            };
            let begin = Instant::now();
            let (call, answer) = self.answer(&request);
            log::request(answer.0, begin.elapsed(), &request.method, &request.path);
            let mut faults = self.faults.iter();
            let broken = faults.find_map(|fault| fault.broken_reply(call?));
            send(&stream, &answer.encode(), broken)?;
        }
    }

    /// What was called, where that can break, and its answer.
    fn answer(&self, request: &HttpRequest) -> (Option<VfkitCall>, RestResponse) {
        let path = request.path.split_once('?').map_or(&*request.path, |(path, _)| path);
        match (request.method.as_str(), path) {
            ("GET", "/vm/state") => {
                let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let answer = self.ordered(VfkitCall::State);
                (
                    Some(VfkitCall::State),
                    answer.unwrap_or_else(|| RestResponse::json(200, &state.shown())),
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
                (Some(call), self.ordered(call).unwrap_or_else(|| self.change(call)))
            }
            _ => (None, RestResponse(404, Some("text/plain"), "404 page not found".into())),
        }
    }

    /// The answer that a fault orders.
    fn ordered(&self, call: VfkitCall) -> Option<RestResponse> {
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
        let (answer, outcome) = channel();
        let _ = self.to.send(VfkitEvent::Change(call, answer));
        match outcome.recv() {
            Ok(Ok(())) => RestResponse(202, None, String::new()),
            Ok(Err(why)) => self.failed(call.name(), &why),
            // The process ends. Whether this is still heard is a race, as with the real one.
            Err(_) => RestResponse(202, None, String::new()),
        }
    }

    fn failed(&self, action: &str, why: &str) -> RestResponse {
        log::write("error", &format!("failed action {action}: {why:?}"));
        RestResponse::error(500, why)
    }
}

/// The name in a body. Like Go's, it takes any object, whatever else is in it.
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

/// What was read: a request, something that is none, or the end.
#[derive(Debug)]
enum Received {
    Request(HttpRequest),
    Nonsense,
    RunResult,
}

fn receive(from: &mut BufReader<UnixStream>) -> io::Result<Received> {
    let Some(head) = Head::read(from)? else { return Ok(Received::RunResult) };
    let words: Vec<&str> = head.line.split(' ').collect();
    let [method, path, "HTTP/1.1" | "HTTP/1.0"] = words[..] else { return Ok(Received::Nonsense) };
    let mut length = 0;
    for header in head.headers {
        let Ok((name, value)) = header else { return Ok(Received::Nonsense) };
        if name.eq_ignore_ascii_case("content-length") {
            let Ok(given) = value.trim().parse() else { return Ok(Received::Nonsense) };
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
