//! [`ModelSocket`]: a socket of the model host, with the program at its other end.

use core::time::Duration;

use capsa_proto::time::Instant;

use super::plan::{ConnectPlan, ConnectionPlan, Pace, SideEnd};
use super::random::ScheduleRandom;
use super::trace::NetTrace;
use crate::net::{ConnectError, Net};
use crate::tcp::Interest;
use crate::{FlowId, SocketAction};

use super::guest_tcp::{byte_at, download_of, upload_of};

/// How a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostEnd {
    /// The network closed or reset it.
    Action(SocketAction),
    /// Connecting failed, or its peer reset it.
    Failed,
}

/// A TCP socket of the host.
#[derive(Debug)]
pub(super) struct ModelSocket {
    pub(super) connection: usize,
    plan: ConnectionPlan,
    connects: Option<(Instant, Option<ConnectError>)>,
    pub(super) interest: Interest,
    /// Bytes that the socket takes before it blocks.
    room: u64,
    pub(super) taken: u64,
    pub(super) sent: u64,
    has_given_eof: bool,
    pub(super) is_shut_down: bool,
    acts_at: Instant,
    pub(super) end: Option<HostEnd>,
}

impl ModelSocket {
    pub(super) fn new(
        connection: usize,
        plan: &ConnectionPlan,
        is_connected: bool,
        now: Instant,
    ) -> Self {
        let connects = match plan.connect {
            _ if is_connected => None,
            ConnectPlan::Connects(delay) => Some((now + delay, None)),
            ConnectPlan::Fails(delay, error) => Some((now + delay, Some(error))),
        };
        Self {
            connection,
            plan: plan.clone(),
            connects,
            interest: Interest::default(),
            room: 0,
            taken: 0,
            sent: 0,
            has_given_eof: false,
            is_shut_down: false,
            acts_at: now,
            end: None,
        }
    }

    /// The network offers `data`: returns how much the socket takes.
    pub(super) fn take<'a>(
        &mut self,
        data: impl Iterator<Item = &'a [u8]>,
        trace: &NetTrace,
    ) -> usize {
        let stream = upload_of(self.connection);
        let mut taken = 0;
        for part in data {
            let count = part.len().min(self.room as usize);
            for byte in &part[..count] {
                if *byte != byte_at(stream, self.taken) {
                    trace.fail(format_args!("byte {} for the host is wrong: {self:?}", self.taken));
                }
                self.taken += 1;
            }
            self.room -= count as u64;
            taken += count;
            if count < part.len() {
                break;
            }
        }
        taken
    }

    /// Whether the program at the other end is still there.
    fn is_awake(&self, now: Instant) -> bool {
        !matches!(self.plan.host_end, SideEnd::Vanishes(at) if at <= now)
    }

    /// Whether the whole stream for the guest was given.
    pub(super) fn has_given_all(&self) -> bool {
        self.has_given_eof
    }

    fn can_take(&self) -> bool {
        self.room == 0 && !matches!(self.plan.host_pace, Pace::Stops(at) if self.taken >= at)
    }

    fn can_act(&self, now: Instant) -> bool {
        let is_readable = self.interest.readable && !self.has_given_eof;
        let is_writable = self.interest.writable && self.room > 0;
        self.is_awake(now) && (self.can_take() || is_readable || is_writable)
    }

    pub(super) fn next_at(&self, now: Instant) -> Option<Instant> {
        if self.end.is_some() {
            return None;
        }
        if let Some((at, _)) = self.connects {
            return Some(at);
        }
        let acts = self.can_act(now).then_some(self.acts_at);
        let aborts = match self.plan.host_end {
            SideEnd::Aborts(at) => Some(at),
            _ => None,
        };
        [acts, aborts].into_iter().flatten().min()
    }

    /// Does what is due. Returns whether there was something.
    pub(super) fn act(
        &mut self,
        flow: FlowId,
        net: &mut Net,
        now: Instant,
        random: &mut ScheduleRandom,
        trace: &mut NetTrace,
    ) -> bool {
        if self.end.is_some() {
            return false;
        }
        if let Some((at, error)) = self.connects {
            if at > now {
                return false;
            }
            self.connects = None;
            trace.add(now, "socket connects or fails", [self.connection as u64, 0, 0]);
            match error {
                None => net.handle_connected(flow, now),
                Some(error) => {
                    self.end = Some(HostEnd::Failed);
                    net.handle_connect_error(flow, error);
                }
            }
            return true;
        }
        if matches!(self.plan.host_end, SideEnd::Aborts(at) if at <= now) {
            trace.add(now, "socket fails", [self.connection as u64, self.taken, self.sent]);
            self.end = Some(HostEnd::Failed);
            net.handle_socket_error(flow);
            return true;
        }
        if !self.can_act(now) || self.acts_at > now {
            return false;
        }
        let pause = match self.plan.host_pace {
            Pace::Slow => random.skewed(200_000),
            _ => random.skewed(1000),
        };
        self.acts_at = now + Duration::from_micros(pause + 1);
        if self.can_take() {
            self.room = random.skewed(30_000).max(1);
        }
        if self.interest.writable {
            let taken = self.take(net.waiting(flow), trace);
            trace.add(now, "socket takes", [self.connection as u64, taken as u64, 0]);
            net.drained(flow, taken, now);
        }
        if self.interest.readable && !self.has_given_eof {
            self.give(flow, net, now, random, trace);
        }
        true
    }

    fn give(
        &mut self,
        flow: FlowId,
        net: &mut Net,
        now: Instant,
        random: &mut ScheduleRandom,
        trace: &mut NetTrace,
    ) {
        let left = self.plan.download - self.sent;
        if left == 0 {
            self.has_given_eof = true;
            trace.add(now, "socket ends", [self.connection as u64, self.sent, 0]);
            return net.handle_eof(flow);
        }
        let stream = download_of(self.connection);
        let mut count = 0;
        for space in net.spaces(flow, left.min(random.skewed(40_000).max(1)) as usize) {
            for (byte, at) in space.iter_mut().zip(self.sent + count..) {
                *byte = byte_at(stream, at);
            }
            count += space.len() as u64;
        }
        // None fits if another connection has reserved the memory since: the interest then ends.
        self.sent += count;
        trace.add(now, "socket gives", [self.connection as u64, count, 0]);
        net.filled(flow, count as usize, now);
    }
}
