//! What the REST server's replies mean.
//!
//! A reply may break for an honest reason: the process exits as soon as the guest has stopped, often
//! before it has answered. So a broken reply refuses nothing; the process's exit decides.

use alloc::format;
use alloc::string::String;

use serde_json::Value;

use capsa_proto::backend::{ControlReply, ReplyOutcome};
use capsa_proto::plan::{Body, Message};

/// The one path that is used.
pub(crate) const STATE: &str = "/vm/state";

/// How many characters of a reply that makes no sense are shown.
const SHOWN: usize = 200;

pub(crate) fn outcome(message: &Message, reply: &ControlReply) -> ReplyOutcome {
    let asks_for_state = matches!(message.body, Body::Http { method: "GET", .. });
    match reply {
        ControlReply::Http { status: 200, body } if asks_for_state => state(body),
        ControlReply::Http { status: 300.., body } => match text(body, "error") {
            Some(error) => ReplyOutcome::Rejected(error),
            None => reply.outcome(),
        },
        ControlReply::Broken(_) if asks_for_state => ReplyOutcome::Retry,
        ControlReply::Broken(_) => ReplyOutcome::Done,
        _ => reply.outcome(),
    }
}

/// `GET /vm/state`: the server is up before the machine is, which begins as `Stopped`.
fn state(body: &str) -> ReplyOutcome {
    let Some(state) = text(body, "state") else {
        let shown: String = body.chars().take(SHOWN).collect();
        return ReplyOutcome::Rejected(format!("it answered without a state: {shown:?}"));
    };
    match state.strip_prefix("VirtualMachineState") {
        Some("Running") => ReplyOutcome::Done,
        Some("Error") => ReplyOutcome::Rejected("the virtual machine is in the state Error".into()),
        _ => ReplyOutcome::Retry,
    }
}

fn text(body: &str, key: &str) -> Option<String> {
    let object: Value = serde_json::from_str(body).ok()?;
    object.get(key)?.as_str().map(Into::into)
}
