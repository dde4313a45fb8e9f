//! The agent in the guest: its [`AgentClient`] follows the VM, and its transports are channels.

use alloc::collections::VecDeque;

use super::{Channel, Output, VmCore};
use crate::agent::AgentClient;
use crate::agent::protocol::NONCE_LEN;
use crate::lifecycle::VmStatus;
use crate::plan::AgentTransport;
use crate::time::Instant;

impl VmCore {
    /// The client of the guest's agent; `None` if the plan has no agent.
    pub const fn agent(&self) -> Option<&AgentClient> {
        self.agent.as_ref()
    }

    /// Like [`agent`](Self::agent), for the owner's operations. The driver moves bytes afterwards.
    pub const fn agent_mut(&mut self) -> Option<&mut AgentClient> {
        self.agent.as_mut()
    }

    /// The driver has written the agent's archive with this nonce. No agent is accepted without one.
    pub const fn handle_agent_nonce(&mut self, nonce: [u8; NONCE_LEN]) {
        if let Some(agent) = &mut self.agent {
            agent.set_nonce(nonce);
        }
    }

    pub(super) fn handle_agent_bytes(
        &mut self,
        now: Instant,
        transport: AgentTransport,
        bytes: &[u8],
    ) {
        if let Some(agent) = &mut self.agent {
            agent.handle_bytes(now, transport, bytes);
        }
    }

    pub(super) fn handle_agent_connected(&mut self, now: Instant, transport: AgentTransport) {
        if let Some(agent) = &mut self.agent {
            agent.handle_connected(now, transport);
        }
    }

    pub(super) fn handle_agent_closed(&mut self, now: Instant, transport: AgentTransport) {
        if let Some(agent) = &mut self.agent {
            agent.handle_closed(now, transport);
        }
    }

    pub(super) fn agent_outgoing(
        &mut self,
        transport: AgentTransport,
    ) -> Option<&mut VecDeque<u8>> {
        self.agent.as_mut()?.outgoing(transport)
    }

    pub(super) fn is_agent_open(&self, transport: AgentTransport) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.is_open(transport))
    }

    pub(super) fn handle_agent_status(&mut self, now: Instant, status: &VmStatus) {
        let Some(agent) = &mut self.agent else { return };
        match status {
            VmStatus::Running => agent.handle_started(now),
            status if status.is_terminal() => agent.handle_ended(),
            _ => {}
        }
    }

    pub(super) fn poll_agent_output(&mut self) -> Option<Output> {
        let transport = self.agent.as_mut()?.poll_connect()?;
        Some(Output::Connect(Channel::Agent(transport)))
    }
}
