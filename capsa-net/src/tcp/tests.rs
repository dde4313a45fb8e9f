//! Single connections, segment by segment.

use super::*;
use alloc::vec;
use alloc::vec::Vec;

impl Connection {
    /// The memory that the connection has allocated, with its own, in bytes.
    pub(crate) fn allocated(&self) -> usize {
        size_of::<Self>() + self.upload.allocated() + self.download.allocated()
    }
}

/// The guest's and our initial sequence numbers: both wrap within the tests.
const GUEST_START: u32 = 0xffff_ff00;
const OUR_START: u32 = 0xffff_fff0;

/// A connection, and what its guest and its socket see.
struct Peer {
    connection: Connection,
    budget: Budget,
    now: Instant,
    /// Bytes that the guest has sent.
    sent: u32,
}

impl Peer {
    fn connecting() -> Self {
        let now = Instant::ZERO;
        let syn = TcpHeader {
            sequence: GUEST_START,
            mss: Some(1000),
            window_scale: Some(0),
            flags: Flags { syn: true, ..Flags::default() },
            ..TcpHeader::default()
        };
        Self {
            connection: Connection::from_guest(&syn, OUR_START, 1460, now),
            budget: Budget::new(1 << 20),
            now,
            sent: 0,
        }
    }

    fn open() -> Self {
        let mut fixture = Self::connecting();
        fixture.connection.handle_connected(fixture.now, &mut fixture.budget);
        let (answer, _) = fixture.poll().expect("an answer to the SYN");
        assert!(answer.flags.syn && answer.flags.ack);
        assert_eq!(answer.acknowledgement, GUEST_START.wrapping_add(1));
        assert_eq!((answer.mss, answer.window_scale), (Some(1460), Some(WINDOW_SCALE)));
        fixture.guest(&[], 0, 10_000);
        assert_eq!(fixture.poll(), None);
        fixture
    }

    fn poll(&mut self) -> Option<(TcpHeader, Vec<u8>)> {
        let (header, range) = self.connection.poll_segment(0, self.now)?;
        let data = self.connection.parts(range).collect::<Vec<_>>().concat();
        Some((header, data))
    }

    fn segment(&self, acknowledged: u32, window: u16) -> TcpHeader {
        TcpHeader {
            sequence: GUEST_START.wrapping_add(1 + self.sent),
            acknowledgement: OUR_START.wrapping_add(1 + acknowledged),
            flags: Flags { ack: true, ..Flags::default() },
            window,
            ..TcpHeader::default()
        }
    }

    /// The guest sends `data`, and acknowledges so many bytes. The socket takes nothing.
    fn guest(&mut self, data: &[u8], acknowledged: u32, window: u16) {
        let header = self.segment(acknowledged, window);
        self.handle(&header, data);
        self.sent += data.len() as u32;
    }

    fn handle(&mut self, header: &TcpHeader, data: &[u8]) {
        let offer = self.connection.handle_segment(header, data, self.now, &mut self.budget);
        if let Some(part) = offer {
            self.connection.taken(&data[part], 0, self.now, &mut self.budget);
        }
    }

    fn with_flags(&mut self, flags: Flags, acknowledged: u32) {
        let header = TcpHeader { flags, ..self.segment(acknowledged, 10_000) };
        self.handle(&header, &[]);
    }

    /// The socket gives `data`.
    fn host(&mut self, data: &[u8]) {
        let mut rest = data;
        while !rest.is_empty() {
            let mut later = rest;
            for space in self.connection.spaces(rest.len(), &mut self.budget) {
                let (now, after) = later.split_at(space.len());
                space.copy_from_slice(now);
                later = after;
            }
            let count = rest.len() - later.len();
            self.connection.filled(count, self.now, &mut self.budget);
            rest = later;
        }
    }

    fn wait_for_timer(&mut self) -> &'static str {
        let deadline = self.connection.poll_timeout().expect("a deadline");
        self.now = deadline.at;
        self.connection.handle_timeout(self.now, &mut self.budget);
        deadline.why
    }

    fn drain(&mut self) -> usize {
        let count = self.connection.waiting().map(<[u8]>::len).sum();
        self.connection.drained(count, self.now, &mut self.budget);
        count
    }
}

const RST: Flags = Flags { rst: true, syn: false, ack: false, fin: false, psh: false };
const FIN: Flags = Flags { rst: false, syn: false, ack: true, fin: true, psh: false };

#[test]
fn syn_is_answered_after_the_socket_connects() {
    let mut fixture = Peer::connecting();
    assert_eq!(fixture.poll(), None);
    fixture.connection.handle_error(&mut fixture.budget);
    let (reset, _) = fixture.poll().unwrap();
    assert!(reset.flags.rst && reset.acknowledgement == GUEST_START.wrapping_add(1));
    assert!(fixture.connection.is_gone());
}

#[test]
fn syn_answer_is_repeated_until_the_guest_is_absent() {
    let mut fixture = Peer::connecting();
    fixture.connection.handle_connected(fixture.now, &mut fixture.budget);
    for _ in 0..SYN_ATTEMPTS {
        assert!(fixture.poll().unwrap().0.flags.syn);
        fixture.wait_for_timer();
    }
    assert!(fixture.poll().unwrap().0.flags.rst);
    assert_eq!(fixture.connection.poll_action(), Some(SocketAction::Reset));
}

#[test]
fn blocked_socket_closes_window_then_opens_it() {
    let mut fixture = Peer::open();
    let mut window = 0;
    while let Some(len) = Some(fixture.connection.upload.window()).filter(|len| *len > 0) {
        fixture.guest(&vec![1; len.min(1000) as usize], 0, 10_000);
        window = fixture.poll().expect("an acknowledgement").0.window;
    }
    assert_eq!(window, 0);
    // Data beyond the window is dropped, and acknowledged.
    fixture.handle(&fixture.segment(0, 10_000), b"beyond");
    assert_eq!(fixture.poll().unwrap().0.window, 0);
    let count = fixture.drain();
    let (update, _) = fixture.poll().expect("a window update");
    // A 64th is for rounding.
    let window = usize::from(update.window) << WINDOW_SCALE;
    assert!(window >= count - count / 64, "{window} of {count}");
    assert_eq!(fixture.poll(), None);
}

#[test]
fn three_repeated_acknowledgements_send_again_at_once() {
    let mut fixture = Peer::open();
    fixture.host(&[7; 3000]);
    let first: Vec<_> = core::iter::from_fn(|| fixture.poll()).collect();
    assert_eq!(first.len(), 3);
    for n in 0..3 {
        assert_eq!(fixture.poll(), None, "after {n}");
        fixture.guest(&[], 0, 10_000);
    }
    let again: Vec<_> = core::iter::from_fn(|| fixture.poll()).collect();
    assert_eq!(
        again.iter().map(|s| s.0.sequence).collect::<Vec<_>>(),
        first.iter().map(|s| s.0.sequence).collect::<Vec<_>>()
    );
    // Further ones belong to the same loss.
    for _ in 0..6 {
        fixture.guest(&[], 0, 10_000);
    }
    assert_eq!(fixture.poll(), None);
}

#[test]
fn reset_after_both_ends_loses_no_byte() {
    let mut fixture = Peer::open();
    fixture.guest(b"upload", 0, 10_000);
    fixture.with_flags(FIN, 0);
    fixture.sent += 1;
    fixture.host(b"download");
    fixture.connection.handle_eof();
    while fixture.poll().is_some() {}
    // The guest has acknowledged our FIN, which is lost, and has forgotten the connection.
    fixture.with_flags(RST, 0);
    assert_eq!(fixture.connection.poll_action(), None);
    assert_eq!(fixture.drain(), 6);
    assert_eq!(fixture.connection.poll_action(), Some(SocketAction::Close));
}

#[test]
fn closed_window_is_probed_with_one_byte() {
    let mut fixture = Peer::open();
    fixture.guest(&[], 0, 0);
    fixture.host(b"data");
    assert_eq!(fixture.poll(), None);
    assert_eq!(fixture.wait_for_timer(), "guest has not acknowledged a segment");
    assert_eq!(fixture.poll().unwrap().1, b"d");
    // The guest refuses the byte, then opens its window.
    fixture.guest(&[], 0, 0);
    assert_eq!(fixture.poll(), None);
    fixture.wait_for_timer();
    assert_eq!(fixture.poll().unwrap().1, b"d");
    fixture.guest(&[], 1, 100);
    assert_eq!(fixture.poll().unwrap().1, b"ata");
}

#[test]
fn unacknowledged_data_resets_after_ten_timeouts() {
    let mut fixture = Peer::open();
    fixture.host(b"data");
    let mut timeouts = 0;
    while !fixture.poll().unwrap().0.flags.rst {
        fixture.wait_for_timer();
        timeouts += 1;
    }
    assert_eq!((timeouts, fixture.connection.poll_action()), (11, Some(SocketAction::Reset)));
    assert!(fixture.now.since(Instant::ZERO) > Duration::from_secs(300), "{:?}", fixture.now);
}

#[test]
fn progress_restarts_the_count_of_timeouts() {
    let mut fixture = Peer::open();
    for n in 1..40 {
        fixture.host(b"x");
        assert_eq!(fixture.poll().unwrap().1, b"x");
        fixture.wait_for_timer();
        assert_eq!(fixture.poll().unwrap().1, b"x");
        fixture.guest(&[], n, 10_000);
    }
    assert_eq!(fixture.connection.state, State::Open);
}

#[test]
fn half_close_of_each_side_is_passed_on() {
    let mut fixture = Peer::open();
    fixture.guest(b"request", 0, 10_000);
    fixture.with_flags(FIN, 0);
    assert_eq!(fixture.connection.poll_action(), None, "the socket has not taken the request");
    assert_eq!(fixture.drain(), 7);
    assert_eq!(fixture.connection.poll_action(), Some(SocketAction::ShutDown));
    let (acknowledgement, _) = fixture.poll().unwrap();
    assert_eq!(acknowledgement.acknowledgement, GUEST_START.wrapping_add(1 + 7 + 1));
    fixture.host(b"answer");
    assert_eq!(fixture.poll().unwrap().1, b"answer");
    fixture.connection.handle_eof();
    assert!(fixture.poll().unwrap().0.flags.fin);
    fixture.sent += 1;
    fixture.guest(&[], 7, 10_000);
    assert_eq!(fixture.connection.poll_action(), Some(SocketAction::Close));
    // A repeated FIN is acknowledged again, until the connection is forgotten.
    fixture.sent -= 1;
    fixture.with_flags(FIN, 7);
    assert!(fixture.poll().unwrap().0.flags.ack);
    fixture.wait_for_timer();
    assert!(fixture.connection.is_gone());
    assert_eq!(fixture.budget.reserved(), 0);
}

#[test]
fn reset_counts_only_in_order() {
    let mut fixture = Peer::open();
    for (offset, is_challenged) in [(1, true), (60_000, true), (2_000_000, false), (-1, false)] {
        let mut header = TcpHeader { flags: RST, ..fixture.segment(0, 0) };
        header.sequence = header.sequence.wrapping_add_signed(offset);
        fixture.handle(&header, &[]);
        assert_eq!(fixture.poll().is_some(), is_challenged, "{offset}");
        assert_eq!(fixture.connection.state, State::Open);
    }
    fixture.with_flags(RST, 0);
    assert_eq!(fixture.connection.poll_action(), Some(SocketAction::Reset));
    assert!(fixture.connection.is_gone());
}

#[test]
fn keep_alive_probe_is_acknowledged() {
    let mut fixture = Peer::open();
    let mut probe = fixture.segment(0, 10_000);
    probe.sequence = probe.sequence.wrapping_sub(1);
    fixture.handle(&probe, &[]);
    assert!(fixture.poll().is_some());
    fixture.handle(&probe, b"x");
    assert!(fixture.poll().is_some());
    assert_eq!(fixture.drain(), 0);
}

#[test]
fn acknowledgement_of_unsent_bytes_is_ignored() {
    let mut fixture = Peer::open();
    fixture.host(b"data");
    fixture.poll();
    fixture.guest(b"spoofed", 5, 10_000);
    assert_eq!(fixture.drain(), 0);
    assert!(fixture.poll().is_some());
}

#[test]
fn connection_to_guest_opens_or_is_refused() {
    for refuses in [false, true] {
        let mut fixture = Peer::connecting();
        fixture.connection = Connection::to_guest(OUR_START, 1460, fixture.now);
        let (syn, _) = fixture.poll().unwrap();
        assert!(syn.flags.syn && !syn.flags.ack && syn.sequence == OUR_START);
        let answer = TcpHeader {
            sequence: GUEST_START,
            acknowledgement: OUR_START.wrapping_add(1),
            flags: Flags { syn: !refuses, rst: refuses, ack: true, ..Flags::default() },
            window: 100,
            ..TcpHeader::default()
        };
        fixture.handle(&answer, &[]);
        if refuses {
            assert_eq!(fixture.connection.poll_action(), Some(SocketAction::Reset));
        } else {
            assert!(!fixture.poll().unwrap().0.flags.syn);
            fixture.host(&[1; 200]);
            assert_eq!(fixture.poll().unwrap().1.len(), 100);
        }
    }
}

#[test]
fn silent_connection_ends_after_two_hours() {
    let mut fixture = Peer::open();
    assert_eq!(fixture.wait_for_timer(), "connection is idle");
    assert_eq!(fixture.now.since(Instant::ZERO), IDLE);
    assert!(fixture.poll().unwrap().0.flags.rst);
}

/// A guest takes data beyond the end of a window for data that it must not send. smoltcp never repeats
/// such data if it was lost.
#[test]
fn window_end_does_not_move_back_when_rounded() {
    // Without shared memory the window is 16 KiB.
    let mut fixture = Peer { budget: Budget::new(0), ..Peer::connecting() };
    fixture.connection.handle_connected(fixture.now, &mut fixture.budget);
    fixture.poll().expect("an answer to the SYN");
    fixture.guest(&[], 0, 10_000);
    let mut end = 0;
    // The socket takes nothing, and the lengths of the segments are no multiples of the unit.
    for len in [1000; 15].into_iter().chain([301, 7, 131, 60]) {
        fixture.guest(&vec![1; len], 0, 10_000);
        let (header, _) = fixture.poll().expect("an acknowledgement");
        let acknowledged = header.acknowledgement.wrapping_sub(GUEST_START + 1);
        let next = acknowledged + (u32::from(header.window) << WINDOW_SCALE);
        assert!(next >= end, "the end moves from {end} to {next} after {acknowledged} bytes");
        end = next;
    }
    let held = fixture.sent + u32::try_from(fixture.connection.upload.window()).unwrap();
    assert!(end <= held, "{end} bytes are promised, there is space for {held}");
}

/// A guest that repeats what was lost has numbers that go back.
#[test]
fn window_of_segment_that_acknowledges_more_counts() {
    let mut fixture = Peer::open();
    let sequence = GUEST_START.wrapping_add(1 + 5000);
    let ahead = TcpHeader { sequence, ..fixture.segment(0, 100) };
    fixture.handle(&ahead, &[]);
    while fixture.poll().is_some() {}
    fixture.host(&[1; 500]);
    assert_eq!(fixture.poll().map(|(_, data)| data.len()), Some(100));
    fixture.guest(&[], 100, 10_000);
    assert_eq!(fixture.poll().map(|(_, data)| data.len()), Some(400));
}
