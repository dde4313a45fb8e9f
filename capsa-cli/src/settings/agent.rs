//! The rows of the table about the guest agent and the guest's command.

use capsa::agent::AgentMode;

use super::setting::{Setting, ValueKind};
use super::table::ROW;

/// How a command of the guest is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandRoute {
    /// By the guest agent.
    Agent,
    /// By the shell on the guest's console.
    Console,
}

pub(super) const ROWS: &[Setting] = &[
    Setting {
        flag: "--agent",
        key: "guest.agent",
        kind: ValueKind::Choice(&[
            ("off", |s| s.agent = Some(AgentMode::Off)),
            ("auto", |s| s.agent = Some(AgentMode::Auto)),
            ("required", |s| s.agent = Some(AgentMode::Required)),
        ]),
        example: "\"required\"",
        help: "Guest agent, a program that capsa adds to a copy of the initrd and that runs commands in the \
               guest; auto: on QEMU, where the VM can have it; required: on each backend, or reject the VM",
        default: "off; with -- COMMAND auto",
        ..ROW
    },
    Setting {
        flag: "--no-agent",
        kind: ValueKind::Switch(|s, _| s.agent = Some(AgentMode::Off)),
        help: "The same as --agent off",
        ..ROW
    },
    Setting {
        flag: "--via",
        kind: ValueKind::Choice(&[
            ("agent", |s| s.options.via = Some(CommandRoute::Agent)),
            ("console", |s| s.options.via = Some(CommandRoute::Console)),
        ]),
        help: "How -- COMMAND runs; agent: with standard input, and standard error apart; console: by the \
               shell on the console, for guests that cannot have the agent",
        default: "agent on QEMU, where the VM can have it, else console",
        ..ROW
    },
];

impl super::Settings {
    /// Whether the guest gets the agent; with a command for the guest, if nothing excludes it.
    pub(crate) fn agent_mode(&self, has_command: bool) -> AgentMode {
        match (self.agent, self.options.via) {
            (Some(AgentMode::Auto) | None, Some(CommandRoute::Agent)) => AgentMode::Required,
            (None, None) if has_command => AgentMode::Auto,
            (mode, _) => mode.unwrap_or(AgentMode::Off),
        }
    }
}
