//! A model guest against the device.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

use super::model::{BUFFERS, ModelMemory, ModelRing, RING_SIZE, message, set_up};
use super::*;
use crate::net::SegmentOffload;

const MEMORY: usize = 8 << 20;
const ALL: u64 = FeatureBits::OFFERED;

struct VringGuest {
    device: VhostDevice,
    memory: ModelMemory,
    /// Of frames for the guest, and of frames of the guest.
    rings: [ModelRing; 2],
    features: u64,
    next_buffer: u64,
    posted: BTreeMap<u16, Vec<(u64, u32)>>,
}

impl VringGuest {
    fn new(features: u64) -> Self {
        let mut world = Self {
            device: VhostDevice::new(),
            memory: ModelMemory::new(MEMORY),
            rings: [0, 1].map(|ring| ModelRing::new(ring, features)),
            features,
            next_buffer: BUFFERS,
            posted: BTreeMap::new(),
        };
        world.set_up([0, 0]);
        world
    }

    fn set_up(&mut self, base: [u16; 2]) {
        for (bytes, descriptors) in set_up(MEMORY as u64, self.features, base) {
            self.message(&bytes, descriptors).unwrap();
        }
        for ring in 0..2u64 {
            let effect = self.message(&message(12, &ring.to_le_bytes()), 1).unwrap().0;
            assert_eq!(effect, MessageEffect::Kick(ring as usize));
        }
    }

    fn message(
        &mut self,
        bytes: &[u8],
        descriptors: usize,
    ) -> Result<(MessageEffect, Option<Vec<u8>>), ProtocolError> {
        let (header, payload) = bytes.split_first_chunk().unwrap();
        let header = MessageHeader::parse(header)?;
        assert_eq!(header.len, payload.len());
        self.device.handle_message(header, payload, descriptors)
    }

    /// Memory for a buffer, reused in turn.
    fn buffer(&mut self, len: u32) -> (u64, u32) {
        if self.next_buffer + u64::from(len) > MEMORY as u64 {
            self.next_buffer = BUFFERS;
        }
        let at = self.next_buffer;
        self.next_buffer += u64::from(len);
        (at, len)
    }

    /// The guest sends a frame in buffers of these lengths; the rest is in one more.
    fn transmit(&mut self, frame: &[u8], lens: &[u32], is_indirect: bool) -> bool {
        let bytes = [&[0; 12][..], frame].concat();
        let mut buffers = Vec::new();
        let mut at = 0;
        for len in lens.iter().copied().chain([u32::MAX]) {
            let len = len.min((bytes.len() - at) as u32);
            if len > 0 {
                let buffer = self.buffer(len);
                self.memory.write(0, buffer.0, &[&bytes[at..at + len as usize]]).unwrap();
                buffers.push(buffer);
                at += len as usize;
            }
        }
        self.rings[1].add(&self.memory, &buffers, false, is_indirect).expect("the ring has room").1
    }

    /// The guest posts a buffer of `len` bytes.
    fn post(&mut self, len: u32) -> bool {
        let buffer = self.buffer(len);
        let (head, kick) =
            self.rings[0].add(&self.memory, &[buffer], true, false).expect("the ring has room");
        self.posted.insert(head, vec![buffer]);
        kick
    }

    /// The next frame that arrived at the guest, with its header.
    fn received(&mut self) -> Option<Vec<u8>> {
        let mut frame = Vec::new();
        let mut left = 1;
        while left > 0 {
            let (head, len) = self.rings[0].take_used(&self.memory)?;
            let [(at, room)] = self.posted.remove(&head).unwrap()[..] else { panic!("one buffer") };
            assert!(len <= room);
            let mut bytes = vec![0; len as usize];
            self.memory.read(0, at, &mut bytes).unwrap();
            if frame.is_empty() {
                left = u16::from_le_bytes([bytes[10], bytes[11]]);
            }
            frame.extend(bytes);
            left -= 1;
        }
        Some(frame)
    }

    fn send(&mut self, frame: &[u8]) -> Result<FrameSent, VhostError> {
        let (a, b) = frame.split_at(frame.len() / 3);
        self.device.send(&self.memory, &[a, b], None)
    }

    fn receive(&mut self) -> Result<Option<Vec<u8>>, VhostError> {
        let mut buffer = Vec::new();
        Ok(self.device.receive(&self.memory, &mut buffer)?.map(<[u8]>::to_vec))
    }

    fn error(&mut self) -> VhostError {
        let error = self.receive().unwrap_err();
        // The ring is not used again.
        assert_eq!(self.receive(), Ok(None));
        error
    }

    /// Writes a descriptor of the transmit ring and makes it available.
    fn raw_descriptor(&mut self, n: u16, at: u64, len: u32, flags: u16, next: u16) {
        let (at, len) = (at.to_le_bytes(), len.to_le_bytes());
        let parts = [&at[..], &len, &flags.to_le_bytes(), &next.to_le_bytes()];
        self.memory.write(0, 0x2_0000 + 16 * u64::from(n), &parts).unwrap();
    }

    fn raw_available(&mut self, index: u16, head: u16) {
        let at = 0x2_0000 + 16 * u64::from(RING_SIZE);
        let slot = u64::from(index.wrapping_sub(1) % RING_SIZE);
        self.memory.write(0, at + 4 + 2 * slot, &[&head.to_le_bytes()]).unwrap();
        self.memory.write(0, at + 2, &[&index.to_le_bytes()]).unwrap();
    }
}

fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + seed) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn frames_arrive_whole_in_any_buffers(
        frames in proptest::collection::vec(
            (14usize..65_000, proptest::collection::vec(1u32..20_000, 0..4), any::<bool>()), 1..40),
        posted in proptest::collection::vec(300u32..4000, 1..60),
        event_idx in any::<bool>(),
    ) {
        let features = if event_idx { ALL } else { ALL & !FeatureBits::EVENT_IDX };
        let mut world = VringGuest::new(features);
        let mut posted = posted.iter().cycle();
        let mut kicked = true;
        for (n, (len, lens, is_indirect)) in frames.iter().enumerate() {
            let expected = frame(*len, n);
            // Up.
            kicked |= world.transmit(&expected, lens, *is_indirect);
            prop_assert!(kicked, "the device waits for a kick");
            prop_assert_eq!(world.receive().unwrap(), Some(expected.clone()));
            if n % 3 == 0 {
                prop_assert_eq!(world.receive(), Ok(None));
                kicked = false;
            }
            world.device.publish(&world.memory).unwrap();
            while world.rings[1].take_used(&world.memory).is_some() {}
            // Down.
            let mut is_kicked = true;
            loop {
                prop_assert!(is_kicked, "the device waits for a kick");
                match world.send(&expected).unwrap() {
                    FrameSent::Sent => break,
                    FrameSent::Full => {
                        is_kicked = false;
                        for _ in 0..40.min(world.rings[0].room()) {
                            is_kicked |= world.post(*posted.next().unwrap());
                        }
                    }
                    FrameSent::Dropped => panic!("dropped"),
                }
            }
            let [interrupts, _] = world.device.publish(&world.memory).unwrap();
            prop_assert!(interrupts, "the guest waits for an interrupt");
            let received = world.received().unwrap();
            prop_assert_eq!(&received[12..], &expected[..]);
            prop_assert_eq!(world.received(), None);
        }
    }

    #[test]
    fn vhost_any_operations_keep_laws(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz::vhost(&data);
    }
}

#[test]
fn frames_are_read_with_few_accesses() {
    let mut world = VringGuest::new(ALL);
    for n in 0..64 {
        world.transmit(&frame(1514, n), &[], true);
        world.post(2000);
        world.post(2000);
    }
    let accesses = |world: &VringGuest| world.memory.accesses.replace(0);
    accesses(&world);
    let mut buffer = Vec::new();
    for _ in 0..64 {
        assert!(world.device.receive(&world.memory, &mut buffer).unwrap().is_some());
    }
    world.device.publish(&world.memory).unwrap();
    // A table and the bytes of each frame; the rest is shared.
    assert!(accesses(&world) <= 2 * 64 + 16);
    for n in 0..64 {
        assert_eq!(world.send(&frame(1514, n)), Ok(FrameSent::Sent));
    }
    world.device.publish(&world.memory).unwrap();
    assert!(accesses(&world) <= 64 + 20);
}

#[test]
fn offload_of_segment_is_in_header() {
    let mut world = VringGuest::new(ALL);
    let all = crate::LinkOffload {
        ignores_checksums: true,
        completes_checksums: true,
        large_ipv4: true,
        large_ipv6: true,
    };
    assert_eq!(world.device.offload(), all);
    for _ in 0..20 {
        world.post(4096);
    }
    let offload = SegmentOffload { tcp_start: 34, is_ipv6: false, mss: Some(1460) };
    let bytes = frame(40_000, 1);
    world.device.send(&world.memory, &[&bytes], Some(offload)).unwrap();
    world.device.send(&world.memory, &[&bytes[..60]], None).unwrap();
    world.device.publish(&world.memory).unwrap();
    let received = world.received().unwrap();
    assert_eq!(received[..12], [1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 10, 0]);
    assert_eq!(received.len(), 12 + 40_000);
    assert_eq!(world.received().unwrap()[..12], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    let mut without = VringGuest::new(ALL & !FeatureBits::GUEST_CSUM);
    without.post(4096);
    assert!(!without.device.offload().large_ipv4);
}

#[test]
fn send_without_enough_room_waits_or_drops() {
    let mut world = VringGuest::new(ALL);
    world.post(100);
    assert_eq!(world.send(&frame(500, 0)), Ok(FrameSent::Full));
    assert!(world.post(1000));
    assert_eq!(world.send(&frame(500, 0)), Ok(FrameSent::Sent));
    // The whole ring is smaller than the frame.
    for _ in 0..RING_SIZE - 2 {
        world.post(20);
    }
    world.device.publish(&world.memory).unwrap();
    while world.received().is_some() {}
    for _ in 0..2 {
        world.post(20);
    }
    assert_eq!(world.send(&frame(9000, 0)), Ok(FrameSent::Dropped));
    assert_eq!(world.send(&frame(900, 0)), Ok(FrameSent::Sent));
    // Without merging a frame takes one chain.
    let mut world = VringGuest::new(ALL & !FeatureBits::MRG_RXBUF);
    world.post(100);
    assert_eq!(world.send(&frame(500, 0)), Ok(FrameSent::Dropped));
    assert_eq!(world.send(&frame(80, 0)), Ok(FrameSent::Sent));
}

#[test]
fn ring_hostile_chain_is_error() {
    use RingError::*;
    let table = BUFFERS + 0x1000;
    // Address, length, flags and successor of descriptors 0 and 1, those of the table, and the error.
    type RawDescriptor = (u64, u32, u16, u16);
    let cases: [(&str, [RawDescriptor; 2], [RawDescriptor; 2], RingError); 12] = [
        ("loop", [(BUFFERS, 9, 1, 1), (BUFFERS, 9, 1, 0)], [(0, 0, 0, 0); 2], Loop),
        ("itself", [(BUFFERS, 9, 1, 0), (0, 0, 0, 0)], [(0, 0, 0, 0); 2], Loop),
        ("outside memory", [(1 << 40, 99, 0, 0), (0, 0, 0, 0)], [(0, 0, 0, 0); 2], Memory),
        ("end of memory", [(MEMORY as u64 - 9, 99, 0, 0), (0, 0, 0, 0)], [(0, 0, 0, 0); 2], Memory),
        ("wrapping", [(u64::MAX - 5, 99, 0, 0), (0, 0, 0, 0)], [(0, 0, 0, 0); 2], Memory),
        ("writable", [(BUFFERS, 99, 2, 0), (0, 0, 0, 0)], [(0, 0, 0, 0); 2], Direction),
        ("empty", [(BUFFERS, 0, 0, 0), (0, 0, 0, 0)], [(0, 0, 0, 0); 2], Empty),
        ("successor", [(BUFFERS, 9, 1, 999), (0, 0, 0, 0)], [(0, 0, 0, 0); 2], Descriptor),
        ("nested table", [(table, 32, 4, 0), (0, 0, 0, 0)], [(table, 32, 4, 0); 2], Indirect),
        ("table and more", [(table, 32, 5, 1), (0, 0, 0, 0)], [(BUFFERS, 9, 0, 0); 2], Indirect),
        ("table of 7 bytes", [(table, 7, 4, 0), (0, 0, 0, 0)], [(BUFFERS, 9, 0, 0); 2], Indirect),
        ("loop in table", [(table, 32, 4, 0), (0, 0, 0, 0)], [(BUFFERS, 9, 1, 0); 2], Loop),
    ];
    for (what, descriptors, entries, error) in cases {
        let mut world = VringGuest::new(ALL);
        for (n, (at, len, flags, next)) in descriptors.into_iter().enumerate() {
            world.raw_descriptor(n as u16, at, len, flags, next);
        }
        for (n, (at, len, flags, next)) in entries.into_iter().enumerate() {
            let (at, len) = (at.to_le_bytes(), len.to_le_bytes());
            let parts = [&at[..], &len, &flags.to_le_bytes(), &next.to_le_bytes()];
            world.memory.write(0, table + 16 * n as u64, &parts).unwrap();
        }
        world.raw_available(1, 0);
        world.memory.accesses.set(0);
        assert_eq!(world.error(), VhostError::Ring(1, error), "{what}");
        assert!(world.memory.accesses.get() < 20, "{what}");
    }
}

#[test]
fn ring_index_jump_is_error() {
    let mut world = VringGuest::new(ALL);
    world.raw_available(RING_SIZE + 1, 0);
    assert_eq!(world.error(), VhostError::Ring(1, RingError::Index));
    let mut world = VringGuest::new(ALL);
    world.raw_available(1, RING_SIZE);
    assert_eq!(world.error(), VhostError::Ring(1, RingError::Descriptor));
    // A huge chain is not a frame.
    let mut world = VringGuest::new(ALL);
    world.raw_descriptor(0, BUFFERS, 1 << 20, 0, 0);
    world.raw_available(1, 0);
    assert_eq!(world.receive(), Ok(Some(Vec::new())));
}

#[test]
fn memory_shrunk_is_error_of_ring() {
    let mut world = VringGuest::new(ALL);
    world.transmit(&frame(100, 0), &[], false);
    world.post(1000);
    world.memory.bytes.borrow_mut().truncate(BUFFERS as usize);
    assert_eq!(world.send(&frame(100, 0)), Err(VhostError::Ring(0, RingError::Memory)));
    assert_eq!(world.error(), VhostError::Ring(1, RingError::Memory));
    world.memory.bytes.borrow_mut().clear();
    assert_eq!(world.send(&frame(100, 0)), Ok(FrameSent::Dropped));
    assert_eq!(world.device.publish(&world.memory), Ok([false; 2]));
}

#[test]
fn rings_continue_after_restart() {
    let mut world = VringGuest::new(ALL);
    for n in 0..5 {
        world.transmit(&frame(100, n), &[], false);
    }
    for n in 0..3 {
        assert_eq!(world.receive().unwrap(), Some(frame(100, n)));
    }
    world.device.publish(&world.memory).unwrap();
    let reply = world.message(&message(11, &1u64.to_le_bytes()), 0).unwrap().1.unwrap();
    assert_eq!(
        reply,
        [[11, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0], [1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]].concat()
            [..20]
    );
    assert_eq!(world.receive(), Ok(None));
    world.set_up([0, 3]);
    assert_eq!(world.receive().unwrap(), Some(frame(100, 3)));
    // New memory keeps the place.
    let words: Vec<u8> = [1, 0, MEMORY as u64, super::model::USER, 0]
        .iter()
        .flat_map(|w: &u64| w.to_le_bytes())
        .collect();
    world.message(&message(5, &words), 1).unwrap();
    assert_eq!(world.receive().unwrap(), Some(frame(100, 4)));
    assert_eq!(world.receive(), Ok(None));
    // A disabled ring is not used.
    world.transmit(&frame(100, 5), &[], false);
    world.message(&message(18, &1u64.to_le_bytes()), 0).unwrap();
    assert_eq!(world.receive(), Ok(None));
    world.message(&message(18, &(1u64 | 1 << 32).to_le_bytes()), 0).unwrap();
    assert_eq!(world.receive().unwrap(), Some(frame(100, 5)));
}

#[test]
fn message_hostile_is_error() {
    use ProtocolError::*;
    let word = |word: u64| word.to_le_bytes();
    let region = |guest: u64, len: u64, user: u64, offset: u64| {
        [guest, len, user, offset].map(u64::to_le_bytes).concat()
    };
    let table =
        |regions: &[Vec<u8>]| [word(regions.len() as u64).to_vec(), regions.concat()].concat();
    let page = region(0, 4096, 0, 0);
    let cases: Vec<(Vec<u8>, usize, ProtocolError)> = vec![
        (message(99, &[]), 0, Request(99)),
        (message(6, &word(0)), 0, Request(6)),
        (message(2, &[0; 4]), 0, Length { request: 2, len: 4 }),
        (message(1, &word(0)), 0, Length { request: 1, len: 8 }),
        (message(1, &[]), 1, Descriptors { request: 1, count: 1 }),
        (message(12, &word(0)), 0, Descriptors { request: 12, count: 0 }),
        (message(12, &word(0x100)), 1, Descriptors { request: 12, count: 1 }),
        (message(13, &word(1)), 2, Descriptors { request: 13, count: 2 }),
        (message(12, &word(2)), 1, Ring(2)),
        (message(18, &word(1 << 31)), 0, Ring(1 << 31)),
        (message(2, &word(1 << 63)), 0, Features(1 << 63)),
        (message(16, &word(1)), 0, Features(1)),
        (message(8, &word(3 << 32)), 0, RingSize(3)),
        (message(8, &word(65_536 << 32)), 0, RingSize(65_536)),
        (message(5, &table(&[page.clone(), page.clone()])), 2, Memory),
        (message(5, &table(std::slice::from_ref(&page))), 2, Descriptors { request: 5, count: 2 }),
        (message(5, &table(&[region(0, 0, 0, 0)])), 1, Memory),
        (message(5, &table(&[region(u64::MAX, 2, 0, 0)])), 1, Memory),
        (message(5, &table(&[region(0, 2, 0, u64::MAX)])), 1, Memory),
        (message(5, &word(1)), 1, Length { request: 5, len: 8 }),
    ];
    for (bytes, descriptors, error) in cases {
        let mut world = VringGuest::new(ALL);
        assert_eq!(world.message(&bytes, descriptors), Err(error), "{bytes:?}");
    }
    for (flags, len, error) in [
        (2, 0, Flags(2)),
        (5, 0, Flags(5)),
        (1, 4096, Length { request: 1, len: 4096 }),
        (1, u32::MAX, Length { request: 1, len: u32::MAX as usize }),
    ] {
        let header: Vec<u8> =
            [1, flags, len].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        assert_eq!(MessageHeader::parse(&header.try_into().unwrap()), Err(error));
    }
}

#[test]
fn message_needs_reply_is_acknowledged() {
    let mut world = VringGuest::new(ALL);
    let mut bytes = message(3, &[]);
    bytes[4] |= 8;
    // Not negotiated.
    assert_eq!(world.message(&bytes, 0).unwrap().1, None);
    world.message(&message(16, &8u64.to_le_bytes()), 0).unwrap();
    let reply = world.message(&bytes, 0).unwrap().1.unwrap();
    assert_eq!(reply, [3, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}
