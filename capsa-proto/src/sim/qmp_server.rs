//! [`QmpServer`]: the hypervisor's end of a QMP channel, for simulated hypervisors.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::{Value, json};

use crate::codec::json_stream::JsonStream;

/// A command that the client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QmpCommand {
    /// The name of the command.
    pub execute: String,
    /// The id, which the reply repeats.
    pub id: Value,
}

/// The hypervisor's end of a QMP channel: takes bytes, returns commands, and encodes replies.
#[derive(Debug)]
pub struct QmpServer {
    decoder: JsonStream,
    outgoing: Vec<u8>,
}

impl QmpServer {
    /// A server whose first bytes are the greeting.
    pub fn new() -> Self {
        let mut server = Self { decoder: JsonStream::new(), outgoing: Vec::new() };
        let version = json!({"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": "simulated"});
        server.send(&json!({"QMP": {"version": version, "capabilities": []}}));
        server
    }

    /// Takes bytes of the client.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        // The client is part of Capsa: an error here would be a bug of its encoder, and no command.
        let _ = self.decoder.handle_bytes(bytes);
    }

    /// The next command; `None` if no complete one has arrived.
    pub fn poll_command(&mut self) -> Option<QmpCommand> {
        let value = self.decoder.poll_value().ok()??;
        let execute = value.get("execute")?.as_str()?.into();
        Some(QmpCommand { execute, id: value.get("id").cloned().unwrap_or_default() })
    }

    /// Answers a command with success.
    pub fn accept(&mut self, command: &QmpCommand) {
        self.send(&json!({"return": {}, "id": command.id}));
    }

    /// Answers a command with an error.
    pub fn reject(&mut self, command: &QmpCommand, desc: &str) {
        let error = json!({"class": "GenericError", "desc": desc});
        self.send(&json!({"error": error, "id": command.id}));
    }

    /// Sends an event.
    pub fn send_event(&mut self, name: &str) {
        let timestamp = json!({"seconds": 0, "microseconds": 0});
        self.send(&json!({"event": name, "timestamp": timestamp}));
    }

    /// Takes the bytes for the client.
    pub fn take_outgoing(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.outgoing)
    }

    fn send(&mut self, value: &Value) {
        self.outgoing.extend(format!("{value}\r\n").into_bytes());
    }
}

impl Default for QmpServer {
    fn default() -> Self {
        Self::new()
    }
}
