//! [`LossyLink`]: one direction of the link between the guest and the network.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use capsa_proto::time::Instant;

use super::random::ScheduleRandom;

/// What goes wrong on a link, in percent of the frames.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LinkErrors {
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) delayed: u64,
    pub(super) corrupted: u64,
}

/// Frames on their way.
#[derive(Debug, Default)]
pub(super) struct LossyLink {
    frames: BTreeMap<(Instant, u64), Vec<u8>>,
    sent: u64,
    /// The arrival of the last frame that was not delayed: these stay in order.
    last: Instant,
}

impl LossyLink {
    pub(super) fn send(
        &mut self,
        mut frame: Vec<u8>,
        now: Instant,
        errors: LinkErrors,
        random: &mut ScheduleRandom,
    ) {
        if random.chance(errors.lost) {
            return;
        }
        if random.chance(errors.repeated) {
            self.put(frame.clone(), now, errors, random);
        }
        if random.chance(errors.corrupted) {
            if frame.get(12..14) == Some(&[8, 6]) {
                // ARP has no checksum of its own: the card drops the frame.
                return;
            }
            let at = random.between(0, frame.len() as u64 - 1) as usize;
            frame[at] ^= 1 << random.between(0, 7);
        }
        self.put(frame, now, errors, random);
    }

    fn put(
        &mut self,
        frame: Vec<u8>,
        now: Instant,
        errors: LinkErrors,
        random: &mut ScheduleRandom,
    ) {
        let mut at = (now + Duration::from_micros(random.between(0, 60))).max(self.last);
        if random.chance(errors.delayed) {
            at = at + Duration::from_micros(random.skewed(300_000));
        } else {
            self.last = at;
        }
        self.sent += 1;
        self.frames.insert((at, self.sent), frame);
    }

    /// The next frame that has arrived.
    pub(super) fn take(&mut self, now: Instant) -> Option<Vec<u8>> {
        let first = self.frames.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        self.frames.first_key_value().map(|((at, _), _)| *at)
    }
}
