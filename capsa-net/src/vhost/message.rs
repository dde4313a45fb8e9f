//! The messages of a front end, and their replies.
//!
//! ```text
//! message = request:u32 flags:u32 length:u32 payload[length]
//! flags   = version (1) | reply (4) | needs a reply (8)
//! ```

use alloc::vec::Vec;

use super::memory::MemoryRegion;

/// The length of a header.
pub const HEADER_LEN: usize = 12;
/// The largest number of memory regions, and of descriptors of a message (`VHOST_MEMORY_BASELINE_NREGIONS`).
pub const MAX_DESCRIPTORS: usize = 8;
/// The longest payload: a table of memory regions.
pub const MAX_PAYLOAD: usize = 8 + MAX_DESCRIPTORS * REGION_LEN;

const REGION_LEN: usize = 32;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 4;
const NEEDS_REPLY: u32 = 8;

/// Why a message ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The flags have another version, or are those of a reply.
    Flags(u32),
    /// The request is unknown, or belongs to a feature that was not offered.
    Request(u32),
    /// The payload does not have the length of this request.
    Length {
        /// The request.
        request: u32,
        /// The length of the payload.
        len: usize,
    },
    /// The message has another number of descriptors than its payload states.
    Descriptors {
        /// The request.
        request: u32,
        /// The number of descriptors.
        count: usize,
    },
    /// The front end accepts features that were not offered, or lacks a required one.
    Features(u64),
    /// There is no ring with this number.
    Ring(u64),
    /// The size of a ring is not a power of 2, or is too large.
    RingSize(u32),
    /// The regions of memory are empty, overlap or are too many.
    Memory,
    /// The address of a ring is not in the memory, or is not aligned.
    RingAddress(u64),
}

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageHeader {
    pub(super) request: u32,
    pub(super) needs_reply: bool,
    /// The length of the payload, at most [`MAX_PAYLOAD`].
    pub len: usize,
}

impl MessageHeader {
    /// Parses the header of a message of a front end.
    ///
    /// # Errors
    ///
    /// When it is of another version, a reply, or states a payload of more than [`MAX_PAYLOAD`] bytes.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, ProtocolError> {
        let (request, flags, len) = (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8) as usize);
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(ProtocolError::Flags(flags));
        }
        if len > MAX_PAYLOAD {
            return Err(ProtocolError::Length { request, len });
        }
        Ok(Self { request, needs_reply: flags & NEEDS_REPLY != 0, len })
    }
}

/// The addresses of a ring in the address space of the front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingAddresses {
    pub(super) descriptors: u64,
    pub(super) used: u64,
    pub(super) available: u64,
}

/// A message of a front end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FrontEndMessage {
    Features,
    SetFeatures(u64),
    ProtocolFeatures,
    SetProtocolFeatures(u64),
    QueueCount,
    SetOwner,
    ResetOwner,
    SetMemory(Vec<MemoryRegion>),
    SetRingSize {
        ring: u64,
        size: u32,
    },
    SetRingAddresses {
        ring: u64,
        addresses: RingAddresses,
    },
    SetRingBase {
        ring: u64,
        base: u32,
    },
    RingBase {
        ring: u64,
    },
    /// The event by which the guest announces buffers. Without a descriptor the ring is polled.
    SetKick {
        ring: u64,
        has_descriptor: bool,
    },
    /// The event that interrupts the guest.
    SetCall {
        ring: u64,
        has_descriptor: bool,
    },
    SetError {
        ring: u64,
        has_descriptor: bool,
    },
    SetRingEnabled {
        ring: u64,
        is_enabled: bool,
    },
}

impl FrontEndMessage {
    /// Parses a message that came with `descriptors` descriptors.
    pub(super) fn parse(
        header: MessageHeader,
        payload: &[u8],
        descriptors: usize,
    ) -> Result<Self, ProtocolError> {
        let request = header.request;
        let words = |count: usize| match payload.len() == count * 8 {
            true => Ok(payload),
            false => Err(ProtocolError::Length { request, len: payload.len() }),
        };
        let none = |()| words(0).map(drop);
        let number = || words(1).map(|payload| u64_at(payload, 0));
        // The number of a ring, and a value.
        let state = || words(1).map(|payload| (u64::from(u32_at(payload, 0)), u32_at(payload, 4)));
        let event = || {
            let value = number()?;
            // The lowest 8 bits are the number of the ring; the next one states that no descriptor follows.
            Ok((value & 0xff, value & 0x100 == 0))
        };
        let message = match request {
            1 => none(()).map(|()| Self::Features)?,
            2 => Self::SetFeatures(number()?),
            3 => none(()).map(|()| Self::SetOwner)?,
            4 => none(()).map(|()| Self::ResetOwner)?,
            5 => Self::SetMemory(
                regions(payload).ok_or(ProtocolError::Length { request, len: payload.len() })?,
            ),
            8 => state().map(|(ring, size)| Self::SetRingSize { ring, size })?,
            9 => {
                let payload = words(5)?;
                let addresses = RingAddresses {
                    descriptors: u64_at(payload, 8),
                    used: u64_at(payload, 16),
                    available: u64_at(payload, 24),
                };
                Self::SetRingAddresses { ring: u64::from(u32_at(payload, 0)), addresses }
            }
            10 => state().map(|(ring, base)| Self::SetRingBase { ring, base })?,
            11 => state().map(|(ring, _)| Self::RingBase { ring })?,
            12 => event().map(|(ring, has_descriptor)| Self::SetKick { ring, has_descriptor })?,
            13 => event().map(|(ring, has_descriptor)| Self::SetCall { ring, has_descriptor })?,
            14 => event().map(|(ring, has_descriptor)| Self::SetError { ring, has_descriptor })?,
            15 => none(()).map(|()| Self::ProtocolFeatures)?,
            16 => Self::SetProtocolFeatures(number()?),
            17 => none(()).map(|()| Self::QueueCount)?,
            18 => state()
                .map(|(ring, value)| Self::SetRingEnabled { ring, is_enabled: value == 1 })?,
            _ => return Err(ProtocolError::Request(request)),
        };
        let expected = match &message {
            Self::SetMemory(regions) => regions.len(),
            Self::SetKick { has_descriptor, .. }
            | Self::SetCall { has_descriptor, .. }
            | Self::SetError { has_descriptor, .. } => usize::from(*has_descriptor),
            _ => 0,
        };
        match descriptors == expected {
            true => Ok(message),
            false => Err(ProtocolError::Descriptors { request, count: descriptors }),
        }
    }
}

/// A reply with one number, which every reply of this back end has.
pub(super) fn reply(header: MessageHeader, value: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + 8);
    for word in [header.request, VERSION | REPLY, 8] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&value.to_le_bytes());
    bytes
}

/// The table of a memory message: the number of regions, 4 bytes of padding, the regions.
fn regions(payload: &[u8]) -> Option<Vec<MemoryRegion>> {
    let (head, rest) = payload.split_at_checked(8)?;
    let (regions, tail) = rest.as_chunks::<REGION_LEN>();
    if !tail.is_empty() || u32_at(head, 0) as usize != regions.len() {
        return None;
    }
    let region = |bytes: &[u8; REGION_LEN]| MemoryRegion {
        guest: u64_at(bytes, 0),
        len: u64_at(bytes, 8),
        user: u64_at(bytes, 16),
        offset: u64_at(bytes, 24),
    };
    Some(regions.iter().map(region).collect())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the length is 4"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the length is 8"))
}
