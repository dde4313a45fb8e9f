//! The body of the fuzz target `vhost`.

use alloc::vec;
use alloc::vec::Vec;

use super::model::{BUFFERS, ModelMemory, ModelRing, message, set_up};
use super::{FeatureBits, HEADER_LEN, MessageHeader, VhostDevice, VhostError};

const MEMORY: usize = 0x6_0000;

/// A front end that sends any messages, and a guest that writes anything to its rings: no panic, and each
/// call makes a bounded number of accesses; a reply is well-formed; a ring with an error is not used again.
pub fn vhost(data: &[u8]) {
    let mut input = data;
    let mut byte = || input.split_off_first().copied().unwrap_or(0);
    let flags = byte();
    let features =
        FeatureBits::OFFERED & !(u64::from(flags & 1) << 29) & !(u64::from(flags >> 1 & 1) << 15);
    let memory = ModelMemory::new(MEMORY);
    let mut rings = [0, 1].map(|ring| ModelRing::new(ring, features));
    let mut device = VhostDevice::new();
    let mut is_broken = [false; 2];
    for (bytes, descriptors) in set_up(MEMORY as u64, features, [0; 2])
        .into_iter()
        .chain((0..2u64).map(|ring| (message(12, &ring.to_le_bytes()), 1)))
    {
        handle(&mut device, &bytes, descriptors).expect("a correct message");
    }
    let mut buffer = Vec::new();
    // The operations, and then some turns in any case.
    for _ in 0..data.len().min(400) {
        memory.accesses.set(0);
        match byte() {
            // A message, of which the end is near a correct one.
            op @ 0..32 => {
                let len = usize::from(byte() % 48);
                let bytes: Vec<u8> = (0..len).map(|_| byte()).collect();
                if handle(&mut device, &message(u32::from(op), &bytes), usize::from(byte() % 3))
                    .is_err()
                {
                    return;
                }
                is_broken = [false; 2];
            }
            // Bytes anywhere in a ring.
            32..96 => {
                let at =
                    u64::from(byte() & 1) << 17 | u64::from(byte()) << 6 | u64::from(byte() & 63);
                let bytes = [byte(), byte()];
                let _ = super::MemoryFiles::write(&memory, 0, at, &[&bytes]);
            }
            // A chain.
            op @ 96..192 => {
                let ring = usize::from(op & 1);
                let count = 1 + usize::from(byte() % 4);
                let buffers: Vec<(u64, u32)> = (0..count)
                    .map(|_| (BUFFERS + (u64::from(byte()) << 9), u32::from(byte()) << (op & 7)))
                    .collect();
                let is_indirect = op & 8 != 0;
                rings[ring].add(&memory, &buffers, ring == 0, is_indirect);
            }
            192..224 => {
                let received = device.receive(&memory, &mut buffer);
                check(received.map(|frame| frame.is_some()), 1, &mut is_broken);
            }
            op @ 224..250 => {
                let body = vec![op; usize::from(byte()) * 250];
                let sent = device.send(&memory, &[&[1; 54], &body], None);
                check(sent.map(|sent| sent == super::FrameSent::Sent), 0, &mut is_broken);
            }
            250..254 => {
                let _ = device.publish(&memory).map_err(|error| note(error, &mut is_broken));
            }
            _ => {
                memory.bytes.borrow_mut().truncate(MEMORY.saturating_sub(usize::from(byte()) << 11))
            }
        }
        // A chain takes one access for each descriptor and each buffer; a frame, for each chain of a ring.
        assert!(memory.accesses.get() < 1 << 12, "{} accesses", memory.accesses.get());
        assert!(buffer.len() < 1 << 17);
    }
}

/// A call that used a ring, or did not because it has an error.
fn check(used: Result<bool, VhostError>, ring: usize, is_broken: &mut [bool; 2]) {
    match used {
        Ok(used) => assert!(!used || !is_broken[ring], "a ring with an error is in use"),
        Err(error) => note(error, is_broken),
    }
}

fn note(error: VhostError, is_broken: &mut [bool; 2]) {
    if let VhostError::Ring(ring, _) = error {
        assert!(!is_broken[ring], "a ring with an error is in use");
        is_broken[ring] = true;
    }
}

fn handle(
    device: &mut VhostDevice,
    bytes: &[u8],
    descriptors: usize,
) -> Result<(), super::ProtocolError> {
    let Some((header, payload)) = bytes.split_first_chunk() else { return Ok(()) };
    let parsed = MessageHeader::parse(header)?;
    assert!(parsed.len <= super::MAX_PAYLOAD);
    let (_, reply) = device.handle_message(parsed, payload, descriptors)?;
    if let Some(reply) = reply {
        assert_eq!(reply.len(), HEADER_LEN + 8);
        assert_eq!(reply[..4], header[..4]);
        assert_eq!(reply[4..12], [5, 0, 0, 0, 8, 0, 0, 0]);
    }
    Ok(())
}
