//! Sessions of an [`AgentClient`]: the search for the agent, its answer, and its messages.

use super::link::{AgentConnection, AgentLink};
use super::operation::{OperationEntry, OperationReport};
use super::{
    ANSWER_LIMIT, AgentClient, AgentError, AgentState, AgentViolation, HANDSHAKE_LIMIT, MARK_EVERY,
    MARK_IDLE, MARKS_PER_NUMBER, OperationHandle,
};
use crate::agent::protocol::{
    FrameEvent, GuestMessage, GuestState, NONCE_LEN, OperationEnd, VERSION,
};
use crate::plan::AgentTransport;
use crate::time::Instant;

impl AgentClient {
    pub(super) fn link(&mut self, transport: AgentTransport) -> Option<&mut AgentLink> {
        self.links.iter_mut().find(|link| link.transport == transport)
    }

    pub(super) fn set_state(&mut self, state: AgentState) {
        self.state_changed |= self.state != state;
        self.state = state;
    }

    /// Looks for the agent on every transport, from `at` on.
    pub(super) fn search(&mut self, now: Instant, at: Instant) {
        self.searching_since = now;
        self.active = None;
        self.lost_until = None;
        self.next_mark = at;
        self.set_state(AgentState::Connecting);
    }

    pub(super) fn end_session(&mut self, now: Instant, next_mark: Instant, why: &AgentError) {
        self.renumber();
        self.links.iter_mut().for_each(AgentLink::reset);
        self.search(now, next_mark);
        for handle in self.table.handles() {
            if self.table.entry(handle).is_some_and(OperationEntry::is_live) {
                self.finish(handle, Err(why.clone()));
            }
        }
    }

    /// A new number: an agent answers each once, and its answer may have been lost.
    pub(super) fn renumber(&mut self) {
        self.session += 1;
        self.marks = 0;
    }

    /// Sends sync marks on what is connected, and connects the rest.
    pub(super) fn mark(&mut self, now: Instant) {
        if self.marks == MARKS_PER_NUMBER {
            self.renumber();
        }
        self.marks += 1;
        for link in &mut self.links {
            match &link.state {
                AgentConnection::Closed if link.transport == AgentTransport::Vsock => {
                    link.state = AgentConnection::Connecting;
                    self.connects.push_back(link.transport);
                }
                AgentConnection::Handshake(_, since) if now.since(*since) >= HANDSHAKE_LIMIT => {
                    link.close();
                }
                AgentConnection::Closed
                | AgentConnection::Connecting
                | AgentConnection::Handshake(..) => {}
                AgentConnection::Open => link.mark(self.session),
            }
        }
        let is_idle = self.waiting_count == 0 && now.since(self.searching_since) >= ANSWER_LIMIT;
        self.next_mark = now + if is_idle { MARK_IDLE } else { MARK_EVERY };
    }

    /// Before a session, everything but the mark and the right answer is discarded.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        transport: AgentTransport,
        found: FrameEvent<'_>,
    ) -> Result<(), AgentViolation> {
        let (session, expected) = (self.session, self.nonce);
        let Some(link) = self.link(transport) else { return Ok(()) };
        let frame = match found {
            FrameEvent::Sync(number) => {
                link.is_marked = number == session;
                return Ok(());
            }
            FrameEvent::Frame(_) if !link.is_marked => return Ok(()),
            FrameEvent::Frame(frame) => frame,
        };
        link.is_marked = false;
        let message = GuestMessage::read(frame).map_err(AgentViolation::Message)?;
        let GuestMessage::Hello { version, nonce } = message else {
            return Err(AgentViolation::Unexpected("a message before the first one"));
        };
        // The time does not depend on where the first difference is.
        let differences = |expected: [u8; NONCE_LEN]| {
            expected.iter().zip(nonce).fold(0, |sum, (a, b)| sum | (a ^ b))
        };
        if expected.map(differences) != Some(0) {
            return Err(AgentViolation::WrongNonce);
        }
        if version != VERSION {
            return Err(AgentViolation::Version(version));
        }
        self.active = Some(transport);
        self.refused = None;
        self.searching_since = now;
        for other in self.links.iter_mut().filter(|link| link.transport != transport) {
            other.reset();
        }
        self.set_state(AgentState::Booting);
        Ok(())
    }

    pub(super) fn handle_violation(
        &mut self,
        now: Instant,
        transport: AgentTransport,
        violation: AgentViolation,
    ) {
        if self.active == Some(transport) {
            self.refused = Some(violation);
            self.end_session(now, now + MARK_EVERY, &AgentError::Protocol(violation));
        } else if matches!(violation, AgentViolation::WrongNonce | AgentViolation::Version(_)) {
            self.refused = Some(violation);
        }
    }

    pub(super) fn handle_frame(&mut self, found: FrameEvent<'_>) -> Result<(), AgentViolation> {
        let frame = match found {
            FrameEvent::Sync(number) if number == self.session => return Ok(()),
            FrameEvent::Sync(_) => return Err(AgentViolation::Unexpected("another sync mark")),
            FrameEvent::Frame(frame) => frame,
        };
        let message = GuestMessage::read(frame).map_err(AgentViolation::Message)?;
        let id = match &message {
            GuestMessage::Hello { .. } => {
                return Err(AgentViolation::Unexpected("a second first message"));
            }
            GuestMessage::State(GuestState::Ready) => {
                self.set_state(AgentState::Ready);
                return Ok(());
            }
            GuestMessage::State(GuestState::Booting) => return Ok(()),
            GuestMessage::Started(id, _)
            | GuestMessage::Output(id, _, _)
            | GuestMessage::Window(id, _)
            | GuestMessage::Finished(id, _) => *id,
        };
        let handle = OperationHandle(id);
        let entry = self.table.entry_mut(handle).filter(|entry| entry.is_live());
        let entry = entry.ok_or(AgentViolation::UnknownOperation(id))?;
        match message {
            GuestMessage::Started(_, pid) => {
                if !entry.is_command || entry.pid.replace(pid).is_some() {
                    return Err(AgentViolation::Unexpected("the start of a process"));
                }
                entry.report(OperationReport::Started);
            }
            GuestMessage::Output(_, stream, bytes) => entry.handle_output(stream, bytes)?,
            GuestMessage::Window(_, bytes) => entry.handle_window(bytes)?,
            GuestMessage::Finished(_, end) => {
                if !entry.can_end(end) {
                    return Err(AgentViolation::ImpossibleEnd);
                }
                let end = match end {
                    OperationEnd::Cancelled if entry.is_late => {
                        let limit = entry.time_limit.unwrap_or(entry.begun);
                        Err(AgentError::TimedOut { waited: limit.since(entry.begun) })
                    }
                    end => Ok(end),
                };
                self.finish(handle, end);
                return Ok(());
            }
            GuestMessage::Hello { .. } | GuestMessage::State(_) => {}
        }
        if entry.has_message() {
            self.sending.push(handle);
        }
        if entry.has_reports() {
            self.reporting.push(handle);
        }
        Ok(())
    }
}
