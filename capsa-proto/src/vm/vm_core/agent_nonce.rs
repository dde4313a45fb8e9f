//! The nonce by which the core recognises the guest agent.

use super::VmCore;
use crate::agent::protocol::NONCE_LEN;

impl VmCore {
    /// The driver has written the agent's archive with this nonce.
    pub fn handle_agent_nonce(&mut self, nonce: [u8; NONCE_LEN]) {
        self.agent_nonce = Some(nonce);
    }

    /// The nonce of the agent; `None` before it is made, and for a VM without an agent.
    pub const fn agent_nonce(&self) -> Option<&[u8; NONCE_LEN]> {
        self.agent_nonce.as_ref()
    }
}
