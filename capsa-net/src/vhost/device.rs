//! [`VhostDevice`]: one connection of a front end, and its two rings.
//!
//! A message changes the device at once. What the caller has to do with the descriptors of a message is
//! its [`MessageEffect`]. An error of a message ends the connection. An error of a ring stops that ring until
//! the front end sets it up again: the guest's driver is at fault, and a new connection would not help.

use alloc::vec::Vec;

use super::memory::{GuestMemory, MemoryFiles, RegionTable};
use super::message::{self, FrontEndMessage, MessageHeader, ProtocolError, RingAddresses};
use super::virtqueue::{MAX_SIZE, PushResult, RingError, RingPlace, Virtqueue};
use crate::net::{LinkOffload, SegmentOffload};
use crate::wire::tcp;

/// Feature bits of a virtio network card and of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureBits;

impl FeatureBits {
    /// The guest may leave checksums to the card.
    pub const CSUM: u64 = 1 << 0;
    /// The card may leave checksums to the guest.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The card has an MTU: the front end has its value.
    pub const MTU: u64 = 1 << 3;
    /// The card has an address: the front end has its value.
    pub const MAC: u64 = 1 << 5;
    /// The card may send TCP segments over IPv4 that are larger than the MTU.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The same over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The guest may send TCP segments over IPv4 that are larger than the MTU.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The same over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// A frame for the guest may take several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// A descriptor may refer to a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Kicks and interrupts are suppressed by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The front end may negotiate protocol features. Is no feature of the card.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// The card is not a legacy one.
    pub const VERSION_1: u64 = 1 << 32;

    /// What this back end offers.
    pub const OFFERED: u64 = Self::CSUM
        | Self::GUEST_CSUM
        | Self::MTU
        | Self::MAC
        | Self::GUEST_TSO4
        | Self::GUEST_TSO6
        | Self::HOST_TSO4
        | Self::HOST_TSO6
        | Self::MRG_RXBUF
        | Self::INDIRECT_DESC
        | Self::EVENT_IDX
        | Self::PROTOCOL_FEATURES
        | Self::VERSION_1;

    /// Protocol feature: a message may ask for an acknowledgement.
    const REPLY_ACK: u64 = 1 << 3;
}

/// The ring with frames for the guest, and the one with frames of the guest.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The length of the header before each frame (VIRTIO 1.3, 5.1.6).
const FRAME_HEADER_LEN: usize = 12;
/// The longest frame of a guest: an IP packet, its Ethernet header with a VLAN tag.
const FRAME_MAX: usize = 65_535 + 18;

const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_IS_VALID: u8 = 2;
const SEGMENT_IPV4: u8 = 1;
const SEGMENT_IPV6: u8 = 4;

/// What the caller does after a message, before it sends the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageEffect {
    /// Nothing.
    None,
    /// The descriptors are the files of the memory from now on, in the order of the regions.
    Memory,
    /// The descriptor, if there is one, is the kick event of the ring. The ring may have buffers.
    Kick(usize),
    /// The descriptor, if there is one, is the call event of the ring.
    Call(usize),
    /// The descriptor is not used.
    Unused,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum VhostError {
    /// A message of the front end.
    Protocol(ProtocolError),
    /// A ring of the guest, by its number.
    Ring(usize, RingError),
}

impl From<ProtocolError> for VhostError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// Whether a frame reached the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameSent {
    /// It is in the guest's buffers.
    Sent,
    /// The guest has no buffers for it now. It kicks when it has.
    Full,
    /// It was dropped: the guest's driver is not running, or has no buffers of this size.
    Dropped,
}

#[derive(Debug, Default)]
struct RingState {
    size: u16,
    addresses: Option<RingAddresses>,
    base: u16,
    is_started: bool,
    is_enabled: bool,
    /// Present between the first use and a change of the above.
    queue: Option<Virtqueue>,
    /// The driver broke the rules.
    is_broken: bool,
}

impl RingState {
    /// Stops using the ring. A later use continues where it ended.
    fn pause(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.base = queue.base();
        }
    }
}

/// A connection of a front end to a network card.
///
/// # Driving
///
/// 1. Give each message, whose length its [`MessageHeader`] has, to [`handle_message`](Self::handle_message).
///    Carry out the effect, then send the reply.
/// 2. After a message, and after a kick of either ring, take frames with [`receive`](Self::receive) until there is none, and
///    send those that wait with [`send`](Self::send).
/// 3. Then call [`publish`](Self::publish), and interrupt the guest for each ring that it returns.
#[derive(Debug, Default)]
pub struct VhostDevice {
    features: u64,
    protocol_features: u64,
    regions: RegionTable,
    rings: [RingState; 2],
}

impl VhostDevice {
    /// A connection without any message yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A message, with the number of descriptors that came with it. Returns what to do, and the reply.
    ///
    /// # Errors
    ///
    /// When the message is not a correct one; the connection must end.
    pub fn handle_message(
        &mut self,
        header: MessageHeader,
        payload: &[u8],
        descriptors: usize,
    ) -> Result<(MessageEffect, Option<Vec<u8>>), ProtocolError> {
        let message = FrontEndMessage::parse(header, payload, descriptors)?;
        let mut effect = MessageEffect::None;
        let mut answer = None;
        match message {
            FrontEndMessage::Features => answer = Some(FeatureBits::OFFERED),
            FrontEndMessage::ProtocolFeatures => answer = Some(FeatureBits::REPLY_ACK),
            FrontEndMessage::QueueCount => answer = Some(2),
            FrontEndMessage::SetFeatures(features) => {
                if features & !FeatureBits::OFFERED != 0 {
                    return Err(ProtocolError::Features(features));
                }
                self.features = features;
                self.rings.iter_mut().for_each(RingState::pause);
            }
            FrontEndMessage::SetProtocolFeatures(features) => {
                if features & !FeatureBits::REPLY_ACK != 0 {
                    return Err(ProtocolError::Features(features));
                }
                self.protocol_features = features;
            }
            FrontEndMessage::SetOwner => {}
            // Deprecated: "treat it as a request to disable all rings".
            FrontEndMessage::ResetOwner => {
                for ring in &mut self.rings {
                    ring.pause();
                    ring.is_enabled = false;
                }
            }
            FrontEndMessage::SetMemory(regions) => {
                self.regions = RegionTable::new(regions)?;
                // The addresses of the rings may be others now.
                self.rings.iter_mut().for_each(RingState::pause);
                effect = MessageEffect::Memory;
            }
            FrontEndMessage::SetRingSize { ring, size } => {
                let (_, ring) = self.ring(ring)?;
                match u16::try_from(size) {
                    Ok(size) if size.is_power_of_two() && size <= MAX_SIZE => ring.size = size,
                    _ => return Err(ProtocolError::RingSize(size)),
                }
                ring.pause();
            }
            FrontEndMessage::SetRingAddresses { ring, addresses } => {
                let (_, ring) = self.ring(ring)?;
                ring.pause();
                ring.addresses = Some(addresses);
            }
            FrontEndMessage::SetRingBase { ring, base } => {
                let (_, ring) = self.ring(ring)?;
                ring.queue = None;
                // The upper half belongs to packed rings.
                ring.base = base as u16;
                ring.is_broken = false;
            }
            FrontEndMessage::RingBase { ring: number } => {
                let (_, ring) = self.ring(number)?;
                ring.pause();
                (ring.is_started, ring.is_broken) = (false, false);
                // The number of the ring and its base, 32 bits each.
                answer = Some(number | u64::from(ring.base) << 32);
            }
            FrontEndMessage::SetKick { ring, .. } => {
                let (n, ring) = self.ring(ring)?;
                ring.is_started = true;
                effect = MessageEffect::Kick(n);
            }
            FrontEndMessage::SetCall { ring, .. } => {
                effect = MessageEffect::Call(self.ring(ring)?.0);
            }
            FrontEndMessage::SetError { ring, has_descriptor } => {
                self.ring(ring)?;
                if has_descriptor {
                    effect = MessageEffect::Unused;
                }
            }
            FrontEndMessage::SetRingEnabled { ring, is_enabled } => {
                self.ring(ring)?.1.is_enabled = is_enabled;
            }
        }
        if header.needs_reply && self.protocol_features & FeatureBits::REPLY_ACK != 0 {
            // Zero is success.
            answer.get_or_insert(0);
        }
        Ok((effect, answer.map(|value| message::reply(header, value))))
    }

    /// What the guest's driver accepts from the network.
    pub fn offload(&self) -> LinkOffload {
        let has = |bit| self.features & bit != 0;
        let completes_checksums = has(FeatureBits::GUEST_CSUM);
        LinkOffload {
            ignores_checksums: has(FeatureBits::CSUM),
            completes_checksums,
            large_ipv4: completes_checksums && has(FeatureBits::GUEST_TSO4),
            large_ipv6: completes_checksums && has(FeatureBits::GUEST_TSO6),
        }
    }

    /// Reads the next frame of the guest into `buffer`, which grows if necessary. It is empty if the guest
    /// sent something else. `None`: there is none, and the guest kicks when there is one.
    ///
    /// # Errors
    ///
    /// When the guest's driver breaks the rules of its ring. Later calls return `None`.
    pub fn receive<'b, F: MemoryFiles>(
        &mut self,
        files: &F,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Option<&'b [u8]>, VhostError> {
        let max = FRAME_HEADER_LEN + FRAME_MAX;
        let len =
            self.with_queue(TRANSMIT, files, |queue, memory, _| queue.pop(memory, max, buffer))?;
        Ok(len.flatten().map(|len| &buffer[FRAME_HEADER_LEN.min(len)..len]))
    }

    /// Sends a frame, in parts, to the guest.
    ///
    /// # Errors
    ///
    /// When the guest's driver breaks the rules of its ring. Later calls drop the frame.
    pub fn send<F: MemoryFiles>(
        &mut self,
        files: &F,
        parts: &[&[u8]],
        offload: Option<SegmentOffload>,
    ) -> Result<FrameSent, VhostError> {
        let sent = self.with_queue(RECEIVE, files, |queue, memory, features| {
            let has = |bit| features & bit != 0;
            let header = frame_header(offload, has(FeatureBits::GUEST_CSUM));
            queue.push(memory, header, parts, has(FeatureBits::MRG_RXBUF))
        })?;
        Ok(match sent {
            Some(PushResult::Sent) => FrameSent::Sent,
            Some(PushResult::Full) => FrameSent::Full,
            Some(PushResult::TooLong) | None => FrameSent::Dropped,
        })
    }

    /// Lets the guest see the buffers that were used since the last call. Returns, for each ring, whether to
    /// interrupt the guest.
    ///
    /// # Errors
    ///
    /// When the guest's driver breaks the rules of its ring.
    pub fn publish<F: MemoryFiles>(&mut self, files: &F) -> Result<[bool; 2], VhostError> {
        let mut publish = |ring| {
            let waits = self.with_queue(ring, files, |queue, memory, _| queue.publish(memory))?;
            Ok::<_, VhostError>(waits.unwrap_or(false))
        };
        Ok([publish(RECEIVE)?, publish(TRANSMIT)?])
    }

    fn ring(&mut self, number: u64) -> Result<(usize, &mut RingState), ProtocolError> {
        let n = usize::try_from(number).unwrap_or(usize::MAX);
        let ring = self.rings.get_mut(n).ok_or(ProtocolError::Ring(number))?;
        Ok((n, ring))
    }

    /// Calls `work` with a ring that is in use. `None` if it is not.
    fn with_queue<F: MemoryFiles, R>(
        &mut self,
        number: usize,
        files: &F,
        work: impl FnOnce(&mut Virtqueue, &GuestMemory<'_, F>, u64) -> Result<R, RingError>,
    ) -> Result<Option<R>, VhostError> {
        let memory = GuestMemory { regions: &self.regions, files };
        let ring = &mut self.rings[number];
        // Without protocol features a ring is enabled from the start.
        let is_enabled = ring.is_enabled || self.features & FeatureBits::PROTOCOL_FEATURES == 0;
        if ring.is_broken || !ring.is_started || !is_enabled {
            return Ok(None);
        }
        let run = || {
            if ring.queue.is_none() {
                let place = ring_place(ring, &self.regions, self.features)?;
                ring.queue = Some(Virtqueue::new(place, &memory)?);
            }
            let Some(queue) = &mut ring.queue else { return Ok(None) };
            work(queue, &memory, self.features).map(Some)
        };
        run().map_err(|error| {
            ring.is_broken = true;
            VhostError::Ring(number, error)
        })
    }
}

/// Where a ring is in the guest's memory.
fn ring_place(
    ring: &RingState,
    regions: &RegionTable,
    features: u64,
) -> Result<RingPlace, RingError> {
    let addresses = ring.addresses.ok_or(RingError::Memory)?;
    let size = u64::from(ring.size);
    // The alignment is that of VIRTIO 1.3, 2.7.
    let locate = |user: u64, len: u64, align: u64| {
        regions
            .guest_address(user, len)
            .filter(|guest| guest.is_multiple_of(align))
            .ok_or(RingError::Memory)
    };
    if size == 0 || features & FeatureBits::VERSION_1 == 0 {
        return Err(RingError::Memory);
    }
    Ok(RingPlace {
        size: ring.size,
        descriptors: locate(addresses.descriptors, 16 * size, 16)?,
        available: locate(addresses.available, 6 + 2 * size, 2)?,
        used: locate(addresses.used, 6 + 8 * size, 4)?,
        base: ring.base,
        has_event_idx: features & FeatureBits::EVENT_IDX != 0,
    })
}

/// The header of a frame for the guest; [`Virtqueue::push`] fills in the number of buffers.
fn frame_header(offload: Option<SegmentOffload>, has_checksums: bool) -> [u8; FRAME_HEADER_LEN] {
    let mut header = [0; FRAME_HEADER_LEN];
    let Some(SegmentOffload { tcp_start, is_ipv6, mss }) = offload else {
        if has_checksums {
            header[0] = CHECKSUM_IS_VALID;
        }
        return header;
    };
    header[0] = NEEDS_CHECKSUM;
    if let Some(mss) = mss {
        header[1] = if is_ipv6 { SEGMENT_IPV6 } else { SEGMENT_IPV4 };
        header[2..4].copy_from_slice(&(tcp_start + tcp::HEADER_LEN as u16).to_le_bytes());
        header[4..6].copy_from_slice(&mss.to_le_bytes());
    }
    header[6..8].copy_from_slice(&tcp_start.to_le_bytes());
    header[8..10].copy_from_slice(&(tcp::CHECKSUM_AT as u16).to_le_bytes());
    header
}
