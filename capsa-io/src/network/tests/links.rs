//! Links with hostile or refusing ends.

use std::cell::Cell;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use capsa_proto::plan::NetworkLink;
use capsa_proto::spec::NetworkOptions;
use rustix::io::{Errno, writev};

use super::guest::{GATEWAY, GUEST, MAC, NetworkTest};
use super::{bytes, exchange, host_ports, listener, serve};
use crate::network::Key;
use crate::network::link::{DatagramLink, FrameLink};
use crate::sys;

/// An ARP request for the gateway.
fn arp_request() -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &MAC.0, &[8, 6]].concat();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &MAC.0, &GUEST.octets(), &[0; 6], &GATEWAY.octets()];
    [ethernet, arp.concat()].concat()
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// Drives the network until the guest has received a frame.
#[track_caller]
fn is_answered(test: &mut NetworkTest) -> bool {
    for _ in 0..200 {
        test.drive();
        test.card.receive();
        if test.card.received.pop_front().is_some() {
            return true;
        }
    }
    false
}

#[test]
fn frame_cut_at_every_byte_is_received() {
    let mut test = NetworkTest::new(NetworkOptions::default());
    let frame = with_length(&arp_request());
    for cut in 1..frame.len() {
        let (start, end) = frame.split_at(cut);
        test.card.write(start);
        test.drive();
        test.drive();
        test.card.write(end);
        assert!(is_answered(&mut test), "cut at {cut}");
    }
    // Many frames at once, the last one cut.
    test.card.write(&[frame.repeat(200), frame[..7].to_vec()].concat());
    for _ in 0..200 {
        assert!(is_answered(&mut test));
    }
    test.card.write(&frame[7..]);
    assert!(is_answered(&mut test));
}

#[test]
fn frames_of_hostile_lengths_are_dropped() {
    let mut test = NetworkTest::new(NetworkOptions::default());
    let before = test.network.counters().malformed;
    let lengths = [0, 1, 3, 13, 65_551, 69_632];
    for len in lengths {
        for chunk in with_length(&vec![0xff; len]).chunks(1 << 14) {
            test.card.write(chunk);
            test.drive();
        }
    }
    test.card.write(&with_length(&arp_request()));
    assert!(is_answered(&mut test));
    let counters = test.network.counters();
    let dropped = counters.malformed + counters.ignored - before;
    assert_eq!(dropped, lengths.len() as u64, "{counters:?}");
}

#[test]
fn impossible_length_ends_the_link_only() {
    for length in [69_633_u32, u32::MAX] {
        let mut test = NetworkTest::new(NetworkOptions::default());
        test.card.write(&length.to_be_bytes());
        test.card.write(&[0; 100]);
        for _ in 0..10 {
            test.drive();
        }
        assert!(test.card.is_closed());
        assert!(!test.network.has_work());
    }
}

#[test]
fn closed_link_leaves_no_work() {
    let mut test = NetworkTest::new(NetworkOptions::default());
    test.drive();
    let NetworkTest { mut network, clock, card, .. } = test;
    drop(card);
    for _ in 0..3 {
        network.on_ready(clock.now()).unwrap();
    }
    assert!(!network.has_work());
    let mut fds = [nix::poll::PollFd::new(network.as_fd(), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap(), 0);
}

#[test]
fn datagrams_of_hostile_lengths_are_dropped() {
    let options = NetworkOptions::default();
    let mut test = NetworkTest::with_link(options, NetworkLink::Datagram);
    test.card.send_datagram(&[]);
    test.card.send_datagram(&[0xff; 13]);
    test.card.send_datagram(&[0xff; 70_000]);
    test.card.send_datagram(&arp_request());
    assert!(is_answered(&mut test));
}

thread_local! {
    static WRITES: Cell<u32> = const { Cell::new(0) };
    static REFUSALS: Cell<u32> = const { Cell::new(0) };
}

/// Refuses each third frame twice, as macOS does while the receiver's buffer is full.
fn refusing(descriptor: BorrowedFd<'_>, frame: &[IoSlice<'_>]) -> Result<usize, Errno> {
    WRITES.set(WRITES.get() + 1);
    if WRITES.get() % 5 < 2 {
        REFUSALS.set(REFUSALS.get() + 1);
        return Err(Errno::NOBUFS);
    }
    writev(descriptor, frame)
}

#[test]
fn refused_datagrams_are_sent_later_in_order() {
    let (listener, port) = listener();
    let answer = bytes(1 << 20);
    let server = serve(listener, Duration::ZERO, answer.clone());
    let mut test = NetworkTest::with_link(host_ports([port]), NetworkLink::Datagram);
    let (ours, theirs) = sys::datagram_pair().unwrap();
    for socket in [&ours, &theirs] {
        sys::set_nonblocking(socket.as_fd()).unwrap();
    }
    test.card.replace(theirs);
    let link = FrameLink::Datagram(DatagramLink::with_write(ours.into(), refusing));
    test.network.link = Some(test.network.poll.add(link, Key::Link(0).encode()).unwrap());
    let handle = test.connect((GATEWAY, port), 40_000);
    assert!(exchange(&mut test, handle, b"request") == answer);
    assert_eq!(server.join().unwrap(), b"request");
    assert!(REFUSALS.get() > 100, "{}", REFUSALS.get());
}
