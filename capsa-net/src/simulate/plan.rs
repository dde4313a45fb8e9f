//! [`NetPlan`]: what a schedule consists of, chosen from its seed.

use alloc::vec::Vec;
use core::time::Duration;

use capsa_proto::time::Instant;

use super::link::LinkErrors;
use super::policy_plan::PolicyPlan;
use super::random::ScheduleRandom;
use crate::net::ConnectError;

/// The link loses nothing from this time on.
const CALM: Duration = Duration::from_secs(8);

/// How a program reads, or takes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Fast,
    Slow,
    /// It stops for ever after some bytes.
    Stops(u64),
}

/// How one side of a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SideEnd {
    /// It closes after its last byte, and reads what the other side sends.
    Closes,
    /// It aborts at this time.
    Aborts(Instant),
    /// It does nothing more from this time on. The guest: its kernel is gone.
    Vanishes(Instant),
}

/// What the host's connect call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectPlan {
    Connects(Duration),
    Fails(Duration, ConnectError),
}

/// A TCP connection.
#[derive(Debug, Clone)]
pub(super) struct ConnectionPlan {
    pub(super) is_from_guest: bool,
    /// The ports: connections with the same slot have the same ones, one after the other.
    pub(super) slot: usize,
    pub(super) begins: Instant,
    pub(super) upload: u64,
    pub(super) download: u64,
    pub(super) connect: ConnectPlan,
    pub(super) guest_pace: Pace,
    pub(super) host_pace: Pace,
    pub(super) guest_end: SideEnd,
    pub(super) host_end: SideEnd,
}

impl ConnectionPlan {
    /// Whether every byte must arrive.
    pub(super) fn is_clean(&self) -> bool {
        matches!(self.connect, ConnectPlan::Connects(_))
            && !matches!(self.guest_pace, Pace::Stops(_))
            && !matches!(self.host_pace, Pace::Stops(_))
            && (self.guest_end, self.host_end) == (SideEnd::Closes, SideEnd::Closes)
    }
}

/// A schedule.
#[derive(Debug, Clone)]
pub(super) struct NetPlan {
    pub(super) mtu: u16,
    pub(super) flows: usize,
    pub(super) memory: usize,
    pub(super) errors: LinkErrors,
    pub(super) calm: Instant,
    pub(super) connections: Vec<ConnectionPlan>,
    /// The times of datagrams, and the socket of each.
    pub(super) datagrams: Vec<(Instant, usize)>,
    pub(super) policy: Option<PolicyPlan>,
}

impl NetPlan {
    pub(super) fn choose(random: &mut ScheduleRandom) -> Self {
        let errors = match random.between(0, 3) {
            0 => LinkErrors::default(),
            _ => LinkErrors {
                lost: random.one_of(&[0, 1, 5, 20]),
                repeated: random.one_of(&[0, 2, 10]),
                delayed: random.one_of(&[0, 2, 20, 60]),
                corrupted: random.one_of(&[0, 0, 1, 5]),
            },
        };
        let count = random.between(1, 4) as usize;
        let connections = (0..count).map(|slot| connection(slot, random)).collect();
        let sockets = random.one_of(&[0, 0, 1, 4]);
        let datagrams = (0..sockets * random.between(1, 4))
            .map(|_| (at(random, 200_000_000), random.next() as usize % sockets as usize))
            .collect();
        Self {
            mtu: random.one_of(&[576, 1500, 1500, 9000, 65_520]),
            flows: random.one_of(&[2, 8, 64]),
            memory: random.one_of(&[0, 0, 24_000, 100_000, 4_000_000]),
            errors,
            calm: Instant::ZERO + CALM,
            connections,
            datagrams,
            policy: None,
        }
    }
}

fn at(random: &mut ScheduleRandom, limit: u64) -> Instant {
    Instant::from_micros(random.skewed(limit))
}

fn connection(slot: usize, random: &mut ScheduleRandom) -> ConnectionPlan {
    let is_disturbed = random.chance(40);
    let delay = Duration::from_micros(random.skewed(100_000));
    let mut plan = ConnectionPlan {
        is_from_guest: random.chance(75),
        // Sometimes the ports of the connection before.
        slot: if random.chance(25) { slot.saturating_sub(1) } else { slot },
        begins: at(random, 100_000),
        upload: random.skewed(150_000),
        download: random.skewed(150_000),
        connect: ConnectPlan::Connects(delay),
        guest_pace: random.one_of(&[Pace::Fast, Pace::Slow]),
        host_pace: random.one_of(&[Pace::Fast, Pace::Slow]),
        guest_end: SideEnd::Closes,
        host_end: SideEnd::Closes,
    };
    if is_disturbed {
        let time = at(random, 3_000_000);
        match random.between(0, 6) {
            0 => plan.guest_pace = Pace::Stops(random.skewed(100_000)),
            1 => plan.host_pace = Pace::Stops(random.skewed(100_000)),
            2 => plan.guest_end = SideEnd::Aborts(time),
            3 => plan.host_end = SideEnd::Aborts(time),
            4 => plan.guest_end = SideEnd::Vanishes(time),
            5 => plan.host_end = SideEnd::Vanishes(time),
            _ => {
                let error = random.one_of(&[
                    ConnectError::Refused,
                    ConnectError::NetworkUnreachable,
                    ConnectError::HostUnreachable,
                    ConnectError::Prohibited,
                ]);
                let delay = random.one_of(&[Duration::ZERO, delay, Duration::from_secs(130)]);
                plan.connect = ConnectPlan::Fails(delay, error);
            }
        }
    }
    plan
}
