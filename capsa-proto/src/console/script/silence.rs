//! [`Silence`]: waits until a guest has printed nothing for a given time.

use super::{CommandOutput, Script, ScriptAction, ScriptContext, ScriptError, ScriptPoll};
use crate::console::{Cursor, GuestFault};
use crate::time::{Deadline, Instant};
use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// A wait for silence. The result's output is all unread output, which is then read.
/// [`CommandOutput::truncated`] tells whether the scrollback dropped some of it.
///
/// The silence starts when the wait is created, or with the last output after that. Nothing is
/// consumed before the end. It is an error if the guest ends or its kernel panics.
///
/// ```
/// use capsa_proto::console::{Cursor, ScriptAction, Scrollback, Script, Silence};
/// use capsa_proto::time::Instant;
/// use core::time::Duration;
///
/// let second = Duration::from_secs(1);
/// let (mut log, mut cursor, mut now) = (Scrollback::default(), Cursor::at(0), Instant::ZERO);
/// let mut script = Silence::new(second, now, None);
/// log.push(b"booted\n");
/// assert_eq!(script.poll_output(now, &log, &mut cursor, false), ScriptAction::Wait);
/// now = now + second;
/// let ScriptAction::Done(Ok(reply)) = script.poll_output(now, &log, &mut cursor, false) else { panic!() };
/// assert_eq!(reply.output, b"booted\n");
/// ```
#[derive(Debug, Clone)]
pub struct Silence {
    context: ScriptContext,
    quiet: Duration,
    /// The end of the output, and the time of its last change.
    since: (Option<u64>, Instant),
}

impl Silence {
    /// A wait for a silence of `quiet`, from `now` on.
    pub fn new(quiet: Duration, now: Instant, timeout: Option<Duration>) -> Self {
        Self { context: ScriptContext::new(now, timeout), quiet, since: (None, now) }
    }

    fn expected(&self) -> String {
        format!("{:?} of silence", self.quiet)
    }
}

impl Script for Silence {
    fn begin(&mut self, cursor: &Cursor) -> Option<ScriptError> {
        self.context.begin(cursor)
    }

    fn advance(&mut self, poll: ScriptPoll<'_>) -> ScriptAction {
        let ScriptPoll { now, log, cursor, closed, .. } = poll;
        self.context.observe(now, log);
        // Output from before the wait does not interrupt the silence.
        let end = *self.since.0.get_or_insert(log.end());
        if end != log.end() {
            self.since = (Some(log.end()), now);
        }
        let is_silent = now >= self.since.1 + self.quiet;
        let fault = self.context.fault(now, log, closed);
        if let Some(report) = fault
            && report.fault == GuestFault::KernelPanic
        {
            let error = self.context.panicked(log, self.expected(), report);
            self.context.fail(error, cursor)
        } else if is_silent && !closed {
            let lost = cursor.lost();
            let output = cursor.take(log);
            let truncated = cursor.lost() > lost;
            self.context.succeed(CommandOutput { output, status: None, truncated })
        } else if self.context.is_over(now, closed) {
            let error = self.context.not_met(now, log, closed, self.expected(), None);
            self.context.fail(error, cursor)
        } else {
            ScriptAction::Wait
        }
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        if self.context.ended.is_some() {
            return None;
        }
        let silent = Deadline { at: self.since.1 + self.quiet, why: "the guest is silent" };
        Deadline::earliest(self.context.deadline("wait for silence timed out"), Some(silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Scrollback;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    fn script() -> Silence {
        Silence::new(Duration::from_millis(300), at(0), Some(Duration::from_secs(1)))
    }

    #[test]
    fn silence_output_restarts_it_but_not_timeout() {
        let (mut log, mut cursor, mut script) = (Scrollback::default(), Cursor::at(0), script());
        for n in 0..5 {
            log.push(b"x");
            let output = script.poll_output(at(n * 200), &log, &mut cursor, false);
            assert_eq!(output, ScriptAction::Wait);
        }
        assert_eq!(script.poll_timeout().unwrap().at, at(1000));
        let output = script.poll_output(at(1000), &log, &mut cursor, false);
        let ScriptAction::Done(Err(error)) = output else { panic!("{output:?}") };
        assert_eq!(alloc::format!("{error}"), "timed out after 1s waiting for 300ms of silence");
        assert_eq!(cursor, Cursor::at(0), "a timeout consumes nothing");
        assert_eq!(script.poll_timeout(), None);
    }

    #[test]
    fn silence_earlier_output_does_not_interrupt() {
        let (mut log, mut cursor, mut script) = (Scrollback::default(), Cursor::at(0), script());
        log.push(b"old");
        assert_eq!(script.poll_output(at(200), &log, &mut cursor, false), ScriptAction::Wait);
        let output = script.poll_output(at(300), &log, &mut cursor, false);
        let ScriptAction::Done(Ok(reply)) = output else { panic!("{output:?}") };
        assert_eq!((&reply.output[..], reply.truncated), (&b"old"[..], false));
        assert_eq!(cursor.peek(&log), b"");
    }

    #[test]
    fn silence_closed_or_panicked_is_error() {
        let mut log = Scrollback::default();
        log.push(b"bye");
        let output = script().poll_output(at(900), &log, &mut Cursor::at(0), true);
        assert!(
            matches!(output, ScriptAction::Done(Err(ScriptError::Closed { .. }))),
            "{output:?}"
        );

        log.push(b"\nKernel panic - not syncing: x\n");
        let (mut script, mut cursor) =
            (Silence::new(Duration::from_secs(2), at(0), None), Cursor::at(0));
        assert_eq!(script.poll_output(at(0), &log, &mut cursor, false), ScriptAction::Wait);
        let output = script.poll_output(at(2000), &log, &mut cursor, false);
        assert!(
            matches!(output, ScriptAction::Done(Err(ScriptError::KernelPanic { .. }))),
            "{output:?}"
        );
    }
}
