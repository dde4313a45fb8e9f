//! The requests, replies and files of the control socket, for both of its ends.
//!
//! The module header of [`crate::running`] describes the protocol.

use std::collections::BTreeMap;
use std::time::Duration;

use capsa::network::NetworkPolicy;
use serde::{Deserialize, Serialize};

/// The control socket's name in the run directory.
pub(super) const CONTROL_SOCKET: &str = "control";
/// The name of the file with the [`RunInfo`] in the run directory.
pub(super) const RUN_INFO_FILE: &str = "run.json";

/// A request with more bytes than this is rejected. A policy with a thousand rules has fewer.
pub(super) const MAX_REQUEST_LEN: usize = 256 << 10;

/// A run's description of itself, for `capsa ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunInfo {
    pub(crate) name: Option<String>,
    pub(crate) backend: String,
    /// Seconds since 1970.
    pub(crate) started: u64,
    /// The hypervisor's process id, once it runs.
    pub(crate) hypervisor: Option<u32>,
    /// Whether there is a console to attach to.
    pub(crate) has_console: bool,
    /// The status of the VM.
    #[serde(default)]
    pub(crate) status: String,
    /// The last error of each disk and operation, as text.
    #[serde(default)]
    pub(crate) disk_errors: Vec<String>,
    /// The forwards, as after `--forward`, with the ports that were chosen.
    #[serde(default)]
    pub(crate) forwards: Vec<String>,
    /// The services, as after `--service`.
    #[serde(default)]
    pub(crate) services: Vec<String>,
    /// The link of the network; `None` without a network.
    #[serde(default)]
    pub(crate) link: Option<LinkState>,
    /// `none`, `nat`, `policy` or `record`.
    #[serde(default)]
    pub(crate) network_mode: String,
}

/// Whether frames pass between the guest and its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LinkState {
    Up,
    Down,
}

impl RunInfo {
    /// The status, followed by a link that is down and by the disk errors.
    pub(super) fn status_and_errors(&self) -> String {
        let link = if self.link == Some(LinkState::Down) { "; network down" } else { "" };
        let errors = self.disk_errors.iter().map(|error| format!("; {error}"));
        format!("{}{link}{}", self.status, errors.collect::<String>())
    }
}

/// A client's request, the first line on its connection.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum SocketRequest {
    /// Ask the guest to power off, and end the VM after the grace period, in seconds.
    Stop { grace: Option<f64> },
    /// End the VM at once.
    Kill {},
    /// Pause the guest. The reply comes when it is paused.
    Pause {},
    /// Resume the guest. The reply comes when it runs.
    Resume {},
    /// Take the link of the network up or down.
    Link { up: bool },
    /// Replace the policy of the network.
    Policy { policy: NetworkPolicy },
    /// Reply with the counters of the network.
    Counters {},
    /// Attach to the console, and become the input owner if `input` is set and there is none.
    Console { input: bool },
}

/// The run's reply, the first line that it writes.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SocketReply {
    pub(super) ok: bool,
    /// Why the request was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// Of a console: whether the client became the input owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<bool>,
    /// Of a stop: the grace period, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) grace: Option<f64>,
    /// What the network counted, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) counters: Option<BTreeMap<String, u64>>,
}

impl SocketReply {
    /// A stop that is under way; the VM ends after this grace period at the latest.
    pub(super) fn stopping(grace: Duration) -> Self {
        Self { grace: Some(grace.as_secs_f64()), ..Self::accepted() }
    }

    /// A kill that is under way; a pause or resume that is done.
    pub(super) fn accepted() -> Self {
        Self { ok: true, ..Self::default() }
    }

    /// A client that is attached to the console.
    pub(super) fn attached(input: bool) -> Self {
        Self { ok: true, input: Some(input), ..Self::default() }
    }

    /// The counters of the network.
    pub(super) fn counters(counters: BTreeMap<String, u64>) -> Self {
        Self { ok: true, counters: Some(counters), ..Self::default() }
    }

    /// A request that is not carried out.
    pub(super) fn rejected(reason: String) -> Self {
        Self { ok: false, reason: Some(reason), ..Self::default() }
    }
}

/// A message with its line feed.
pub(super) fn to_line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages have only text keys");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_round_trip_as_documented() {
        for (text, want) in [
            (r#"{"do":"stop","grace":30.0}"#, SocketRequest::Stop { grace: Some(30.0) }),
            (r#"{"do":"stop","grace":null}"#, SocketRequest::Stop { grace: None }),
            (r#"{"do":"kill"}"#, SocketRequest::Kill {}),
            (r#"{"do":"pause"}"#, SocketRequest::Pause {}),
            (r#"{"do":"resume"}"#, SocketRequest::Resume {}),
            (r#"{"do":"link","up":false}"#, SocketRequest::Link { up: false }),
            (r#"{"do":"counters"}"#, SocketRequest::Counters {}),
            (r#"{"do":"console","input":true}"#, SocketRequest::Console { input: true }),
        ] {
            assert_eq!(serde_json::from_str::<SocketRequest>(text).unwrap(), want);
            assert_eq!(to_line(&want), format!("{text}\n").as_bytes());
        }
        let no_grace = serde_json::from_str::<SocketRequest>(r#"{"do":"stop"}"#);
        assert_eq!(no_grace.unwrap(), SocketRequest::Stop { grace: None });
        let policy = SocketRequest::Policy { policy: NetworkPolicy::new().allow("a.org:443") };
        let line = String::from_utf8(to_line(&policy)).unwrap();
        assert_eq!(serde_json::from_str::<SocketRequest>(&line).unwrap(), policy);
        // A limit of a newer client is not ignored.
        let newer = line.replacen("\"flows\"", "\"new\":1,\"flows\"", 1);
        assert!(newer != line && serde_json::from_str::<SocketRequest>(&newer).is_err());
        for text in ["{}", "[]", r#"{"do": "reboot"}"#, r#"{"do": "kill", "x": 1}"#] {
            assert!(serde_json::from_str::<SocketRequest>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn replies_round_trip_as_documented() {
        for (text, want) in [
            (r#"{"ok":true}"#, SocketReply::accepted()),
            (r#"{"ok":true,"input":true}"#, SocketReply::attached(true)),
            (r#"{"ok":false,"reason":"no"}"#, SocketReply::rejected("no".into())),
        ] {
            assert_eq!(serde_json::from_str::<SocketReply>(text).unwrap(), want);
            assert_eq!(to_line(&want), format!("{text}\n").as_bytes());
        }
        let newer = serde_json::from_str::<SocketReply>(r#"{"ok":true,"since":1}"#);
        assert_eq!(newer.unwrap(), SocketReply::accepted());
    }
}
