//! Pausing and resuming the guest.
//!
//! A request is a message to the hypervisor. The phase changes at its reply, or at the event that precedes
//! it. Requests are answered in order, so the last one decides what the guest does in the end.

use alloc::format;
use alloc::string::String;

use super::Lifecycle;
use crate::backend::ReplyOutcome;
use crate::lifecycle::{Action, LifecycleTimer, PauseRequest, Phase};
use crate::plan::Message;
use crate::time::Instant;

impl Lifecycle {
    /// Whether a request to pause or resume has no reply yet.
    pub fn is_pausing(&self) -> bool {
        !self.pause_requests.is_empty()
    }

    /// Sends a request, unless the guest is in that state or will be.
    pub(super) fn request_pause(&mut self, now: Instant, request: PauseRequest) {
        if self.last_pause_request() != request {
            self.pause_requests.push_back(request);
            self.actions.push_back(Action::Send(self.pause_message(request).clone()));
            let at = now + self.timing.pause;
            self.timers.set(LifecycleTimer::PauseRequest, at, "the hypervisor pauses or resumes");
        }
    }

    pub(super) fn pause_reply(&mut self, now: Instant, message: &Message, outcome: ReplyOutcome) {
        let requests = [PauseRequest::Pause, PauseRequest::Resume];
        let Some(request) = requests.into_iter().find(|it| self.pause_message(*it) == message)
        else {
            return;
        };
        // A reply that comes after its limit is still true.
        self.pause_requests.pop_front_if(|oldest| *oldest == request);
        if self.pause_requests.is_empty() {
            self.timers.stop(LifecycleTimer::PauseRequest);
        }
        match (outcome, request) {
            (ReplyOutcome::Done, PauseRequest::Pause) => self.enter(now, Phase::Paused),
            (ReplyOutcome::Done, PauseRequest::Resume) => self.enter(now, Phase::Running),
            (ReplyOutcome::Rejected(why) | ReplyOutcome::Lost(why), request) => {
                self.reject_pause(request, why);
            }
            (ReplyOutcome::Retry, request) => self.reject_pause(request, "not ready".into()),
        }
    }

    pub(super) fn pause_timed_out(&mut self) {
        let why = format!("no reply within {:?}", self.timing.pause);
        while let Some(request) = self.pause_requests.pop_front() {
            self.reject_pause(request, why.clone());
        }
    }

    /// A paused guest cannot react to the power button.
    pub(super) fn resume_for_stop(&mut self) {
        let has_button = self.plan.power_button.is_some();
        if has_button && self.last_pause_request() == PauseRequest::Pause {
            let message = self.pause_message(PauseRequest::Resume).clone();
            self.actions.push_back(Action::Send(message));
        }
        self.pause_requests.clear();
    }

    fn reject_pause(&mut self, request: PauseRequest, why: String) {
        self.actions.push_back(Action::AnnounceRejection(request, why));
    }

    /// The last request, or the one that led to the current phase.
    fn last_pause_request(&self) -> PauseRequest {
        self.pause_requests.back().copied().unwrap_or(match self.phase {
            Phase::Paused => PauseRequest::Pause,
            _ => PauseRequest::Resume,
        })
    }

    fn pause_message(&self, request: PauseRequest) -> &Message {
        match request {
            PauseRequest::Pause => &self.plan.pause,
            PauseRequest::Resume => &self.plan.resume,
        }
    }
}
