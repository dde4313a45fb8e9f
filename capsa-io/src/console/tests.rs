//! Tests of a console; the guest is the other end of a socket pair.

use super::*;
use crate::sys::ReadyEvents;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

#[test]
fn release_back_pressure_reads_remaining_output() {
    let (poll, mut ready) = (Poll::new().unwrap(), ReadyEvents::new());
    let mut console = Console::new(8, Overflow::Pause);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    console.attach(ByteStream::Socket(ours), &poll, 7).unwrap();
    theirs.write_all(b"more than there is room for").unwrap();
    let mut on_ready = |console: &mut Console| {
        poll.wait(Some(Duration::ZERO), &mut ready).unwrap();
        console.on_ready(Instant::ZERO, &mut 100, &mut Vec::new());
        (ready.has(7), console.scrollback().end())
    };
    assert_eq!(on_ready(&mut console), (true, 8));
    assert_eq!(on_ready(&mut console), (false, 8), "without a reader the output stays unread");
    console.release_back_pressure();
    assert_eq!(on_ready(&mut console), (true, 27));
    assert_eq!(console.scrollback().start(), 0, "and nothing is lost");
    console.detach();
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

#[test]
fn write_blocked_reports_room_after_any_flush() {
    let poll = Poll::new().unwrap();
    let mut console = Console::new(1, Overflow::DropOldest);
    assert_eq!(console.write(&vec![b'x'; WRITE_QUEUE + 1]).unwrap(), WRITE_QUEUE);
    assert_eq!(console.write(b"y").unwrap(), 0, "the queue is full");
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    console.attach(ByteStream::Socket(ours), &poll, 7).unwrap();
    // Reading on the other side lets the queue drain without a report of the poller.
    let mut chunk = vec![0; WRITE_QUEUE];
    while !console.outgoing.is_empty() {
        assert_ne!(theirs.read(&mut chunk).unwrap(), 0);
        console.flush();
    }
    let mut ready = ReadyEvents::new();
    poll.wait(Some(Duration::ZERO), &mut ready).unwrap();
    assert!(ready.has(7), "the writer would wait for ever");
    assert!(console.on_ready(Instant::ZERO, &mut 1, &mut Vec::new()).writable);
    poll.wait(Some(Duration::ZERO), &mut ready).unwrap();
    assert!(!ready.has(7), "no writer is blocked");
}

/// A guest that prints an old log is paused in the middle of it; its kernel has not crashed.
#[test]
fn crash_of_paused_guest_is_not_confirmed() {
    let at = |millis| Instant::ZERO + Duration::from_millis(millis);
    let old = b"[    1.500000] Kernel panic - not syncing: old\r\n[    1.600000] CPU: 0\r\n";
    for (more, want) in [(&b"$ "[..], None), (b"[    1.7] ", Some(ConsoleCrash::Panic))] {
        let (poll, mut ready) = (Poll::new().unwrap(), ReadyEvents::new());
        let mut console = Console::new(old.len(), Overflow::Pause);
        let reader = console.add_reader();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        console.attach(ByteStream::Socket(ours), &poll, 7).unwrap();
        theirs.write_all(&[old, more].concat()).unwrap();
        let mut on_ready = |console: &mut Console, now| {
            poll.wait(Some(Duration::ZERO), &mut ready).unwrap();
            console.on_ready(now, &mut 1000, &mut Vec::new())
        };
        assert!(on_ready(&mut console, at(0)).panic);
        assert_eq!((console.poll_timeout(), console.last_word(at(900))), (None, None), "held back");
        assert_eq!(console.take(reader), old);
        assert!(on_ready(&mut console, at(1000)).data);
        assert!(console.poll_timeout().is_some());
        assert_eq!(console.last_word(at(1000)), want);
    }
}
