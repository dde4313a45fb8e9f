//! Interprets the REST server's replies.
//!
//! The process exits as soon as the guest has stopped, often before it has replied. So a broken reply
//! is not an error: the exit of the process shows whether the request succeeded.

use alloc::format;
use alloc::string::String;

use serde_json::Value;

use capsa_proto::backend::{ControlReply, ReplyOutcome};
use capsa_proto::plan::{Body, Message};

/// The only path that Capsa uses.
pub(crate) const STATE: &str = "/vm/state";

/// How many characters of an invalid reply an error shows.
const MAX_SHOWN: usize = 200;

pub(crate) fn outcome(message: &Message, reply: &ControlReply) -> ReplyOutcome {
    let is_state_query = matches!(message.body, Body::Http { method: "GET", .. });
    match reply {
        ControlReply::Http { status: 200, body } if is_state_query => state(body),
        ControlReply::Http { status: 300.., body } => match text(body, "error") {
            Some(error) => ReplyOutcome::Rejected(error),
            None => reply.outcome(),
        },
        ControlReply::Broken(_) if is_state_query => ReplyOutcome::Retry,
        ControlReply::Broken(_) if is_stop(message) => ReplyOutcome::Done,
        _ => reply.outcome(),
    }
}

fn is_stop(message: &Message) -> bool {
    let Body::Http { body: Some(body), .. } = &message.body else { return false };
    body["state"] == "Stop" || body["state"] == "HardStop"
}

/// The reply to `GET /vm/state`. The server starts before the VM, whose first state is `Stopped`.
fn state(body: &str) -> ReplyOutcome {
    let Some(state) = text(body, "state") else {
        let shown: String = body.chars().take(MAX_SHOWN).collect();
        return ReplyOutcome::Rejected(format!("the reply has no state: {shown:?}"));
    };
    match state.strip_prefix("VirtualMachineState") {
        Some("Running") => ReplyOutcome::Done,
        Some("Error") => ReplyOutcome::Rejected("the VM is in the state Error".into()),
        _ => ReplyOutcome::Retry,
    }
}

fn text(body: &str, key: &str) -> Option<String> {
    let object: Value = serde_json::from_str(body).ok()?;
    object.get(key)?.as_str().map(Into::into)
}
