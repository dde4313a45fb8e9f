//! [`VmEvent`] and the queue in which it waits for the owner.

use alloc::collections::VecDeque;
use alloc::string::String;

use crate::agent::AgentEvent;
use crate::backend::DiskError;
use crate::console::WaitId;
use crate::lifecycle::{PauseRequest, VmStatus};

/// How many reboots wait for the owner: a guest may reset without end.
const MAX_REBOOTS: usize = 64;

/// What happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmEvent {
    /// The status changed.
    Status(VmStatus),
    /// The VMM answers on its control channel. The guest boots next.
    ControlReady,
    /// The guest was reset and boots again. At most 64 of these wait for the owner.
    Rebooted,
    /// The console has new output. Reported once until the owner takes this event.
    ConsoleData,
    /// The console takes input again.
    ConsoleWritable,
    /// The console is closed: no output follows.
    ConsoleClosed,
    /// A wait ended; its result can be taken.
    Ended(WaitId),
    /// The hypervisor did not pause or resume the guest, as its owner had requested.
    PauseRejected {
        /// The request.
        request: PauseRequest,
        /// Why.
        reason: String,
    },
    /// The host failed to read or write a disk's image. The same error of a disk is reported again
    /// after 10 seconds at the earliest.
    DiskError(DiskError),
    /// Something happened to the agent in the guest, or to one of its operations.
    Agent(AgentEvent),
}

impl VmEvent {
    /// Whether a second event adds nothing to the first.
    const fn is_edge(&self) -> bool {
        matches!(self, Self::ConsoleData | Self::ConsoleWritable | Self::DiskError(_))
    }
}

/// The events that the owner has not taken yet, oldest first.
///
/// Its length is bounded by what the owner does: [`VmEvent::ConsoleData`], [`VmEvent::ConsoleWritable`]
/// and each [`VmEvent::DiskError`] are in it at most once, [`VmEvent::Rebooted`] at most 64 times, one
/// [`VmEvent::Ended`] belongs to each wait that was begun, and the statuses of a lifecycle are few, and
/// two or three for each request to pause or resume the guest.
#[derive(Debug, Default)]
pub struct EventQueue(VecDeque<VmEvent>);

impl EventQueue {
    /// Adds `event`, unless it would repeat one that is still in the queue.
    pub fn push(&mut self, event: VmEvent) {
        let repeats = match event {
            VmEvent::Rebooted => {
                self.0.iter().filter(|queued| **queued == event).count() >= MAX_REBOOTS
            }
            _ => event.is_edge() && self.0.contains(&event),
        };
        if !repeats {
            self.0.push_back(event);
        }
    }

    /// Takes the oldest event.
    pub fn pop(&mut self) -> Option<VmEvent> {
        self.0.pop_front()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn queue_of_reboots_is_bounded() {
        let mut queue = EventQueue::default();
        for _ in 0..2 * MAX_REBOOTS {
            queue.push(VmEvent::Rebooted);
        }
        queue.push(VmEvent::ConsoleClosed);
        let events: Vec<VmEvent> = core::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(events.len(), MAX_REBOOTS + 1);
        assert_eq!(events.last(), Some(&VmEvent::ConsoleClosed));
    }

    #[test]
    fn queue_repeats_no_edge_but_keeps_statuses() {
        let mut queue = EventQueue::default();
        let data = VmEvent::ConsoleData;
        let status = VmEvent::Status(VmStatus::Running);
        for event in [&data, &status, &data, &status] {
            queue.push(event.clone());
        }
        assert_eq!(
            [queue.pop(), queue.pop(), queue.pop()],
            [Some(data.clone()), Some(status.clone()), Some(status)]
        );
        assert!(queue.is_empty());
        queue.push(data.clone());
        assert_eq!(queue.pop(), Some(data), "a taken event is reported again");
    }
}
