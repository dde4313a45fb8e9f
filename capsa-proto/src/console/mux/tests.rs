//! A console without a stream: output in, input and events out.

use super::*;
use crate::console::{Expect, Matcher, Outcome, RunCommand};
use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec;

fn at(millis: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(millis)
}

fn expect(pattern: &str, timeout: Option<Duration>) -> WaitKind {
    WaitKind::Expect(Box::new(Expect::new(Matcher::new([pattern]), Instant::ZERO, timeout)))
}

fn events(queue: &mut EventQueue) -> Vec<VmEvent> {
    core::iter::from_fn(|| queue.pop()).collect()
}

/// Hands in what fits. Gives what did not.
fn push<'a>(console: &mut ConsoleMux, bytes: &'a [u8], queue: &mut EventQueue) -> &'a [u8] {
    let (now, later) = bytes.split_at(console.window().min(bytes.len()));
    console.handle_bytes(at(0), now, queue);
    later
}

fn connected(capacity: usize, overflow: Overflow) -> ConsoleMux {
    let mut console = ConsoleMux::new(capacity, overflow);
    console.handle_connected();
    console
}

#[test]
fn paused_console_takes_the_rest_at_the_end() {
    let mut queue = EventQueue::default();
    let mut console = connected(8, Overflow::Pause);
    let rest = push(&mut console, b"more than there is room for", &mut queue);
    assert_eq!((console.scrollback().end(), console.window()), (8, 0));
    console.release_back_pressure();
    assert_eq!(push(&mut console, rest, &mut queue), b"");
    console.handle_rest(b", and what the socket held");
    console.close(at(1), &mut queue);
    let reader = console.add_reader();
    let all = b"more than there is room for, and what the socket held";
    assert_eq!(console.take(reader), all, "no byte is lost");
}

#[test]
fn pause_counts_readers_but_no_observers() {
    let mut queue = EventQueue::default();
    let mut console = connected(4, Overflow::Pause);
    let observer = console.add_observer();
    push(&mut console, b"abcd", &mut queue);
    assert_eq!(console.take(observer), b"abcd");
    assert_eq!(console.window(), 0, "no reader has had it yet");
    let reader = console.add_reader();
    assert_eq!(console.take(reader), b"abcd");
    assert_eq!(console.window(), 4);
}

#[test]
fn blocked_writer_is_notified_once_of_room() {
    let mut queue = EventQueue::default();
    let mut console = connected(1, Overflow::DropOldest);
    assert_eq!(console.write(at(0), &vec![b'x'; WRITE_QUEUE + 1]), Ok(WRITE_QUEUE));
    assert_eq!(console.write(at(0), b"y"), Ok(0), "the queue is full");
    console.handle_writable(&mut queue);
    assert_eq!(events(&mut queue), []);
    console.outgoing().clear();
    assert!(console.wants_write(), "a writer waits, so the stream is watched");
    console.handle_writable(&mut queue);
    console.handle_writable(&mut queue);
    assert_eq!(events(&mut queue), [VmEvent::ConsoleWritable]);
    assert!(!console.wants_write());
}

/// A guest that prints an old log is paused in the middle of it; its kernel has not panicked.
#[test]
fn paused_guest_is_not_judged_by_its_silence() {
    let old = b"[    1.500000] Kernel panic - not syncing: old\r\n[    1.600000] CPU: 0\r\n";
    for (more, want) in [(&b"$ "[..], None), (b"[    1.700000] ", Some(ConsoleCrash::Panic))] {
        let mut queue = EventQueue::default();
        let mut console = connected(old.len(), Overflow::Pause);
        let reader = console.add_reader();
        assert_eq!(console.handle_bytes(at(0), old, &mut queue), Some(true), "a panic line");
        assert_eq!(console.poll_timeout(), None);
        assert_eq!(console.handle_timeout(at(5900), &mut queue), None);
        assert_eq!(console.take(reader), old);
        console.handle_bytes(at(6000), more, &mut queue);
        assert!(console.poll_timeout().is_some());
        assert_eq!(console.handle_timeout(at(6000), &mut queue), want);
    }
}

/// While the output of a command is read, it is the command that may be silent.
#[test]
fn panic_text_in_command_counts_after_a_minute() {
    let mut queue = EventQueue::default();
    let mut console = connected(4096, Overflow::DropOldest);
    let reader = console.add_reader();
    let run = RunCommand::new("cat log", None, 7, at(0), None).unwrap();
    let run = console.begin(at(0), reader, WaitKind::Script(Box::new(run)), &mut queue);
    let text = b"[    1.500000] Kernel panic - not syncing: x\r\n";
    console.handle_bytes(at(0), text, &mut queue);
    assert_eq!(console.handle_timeout(at(20_000), &mut queue), None);
    console.cancel(at(20_000), run);
    assert_eq!(console.handle_timeout(at(20_000), &mut queue), None, "it is being ended");
    console.handle_bytes(at(20_000), b"^C\r\n", &mut queue);
    assert_eq!(console.handle_timeout(at(60_000), &mut queue), None, "the guest lives");
    let run = RunCommand::new("true", None, 8, at(60_000), None).unwrap();
    console.begin(at(60_000), reader, WaitKind::Script(Box::new(run)), &mut queue);
    console.handle_bytes(at(60_000), text, &mut queue);
    assert_eq!(console.handle_timeout(at(119_999), &mut queue), None);
    assert_eq!(console.handle_timeout(at(120_000), &mut queue), Some(ConsoleCrash::Panic));
}

#[test]
fn cancelled_wait_consumes_nothing() {
    let mut queue = EventQueue::default();
    let mut console = connected(64, Overflow::DropOldest);
    let reader = console.add_reader();
    let wait = console.begin(at(0), reader, expect("login: ", None), &mut queue);
    console.handle_bytes(at(0), b"Booting\r\n", &mut queue);
    console.cancel(at(0), wait);
    assert_eq!(console.take(reader), b"Booting\r\n");
    assert_eq!(console.take_ended(wait), None);
    assert_eq!(events(&mut queue), [VmEvent::ConsoleData]);
}

#[test]
fn match_is_the_same_for_any_chunking() {
    let output = b"Booting\r\nguest login: root\r\n";
    for cut in 0..=output.len() {
        let mut queue = EventQueue::default();
        let mut console = connected(64, Overflow::DropOldest);
        let reader = console.add_reader();
        let wait = console.begin(at(0), reader, expect("login: ", None), &mut queue);
        console.handle_bytes(at(0), &output[..cut], &mut queue);
        console.handle_bytes(at(0), &output[cut..], &mut queue);
        assert!(events(&mut queue).contains(&VmEvent::Ended(wait)));
        let Some(Ended::Expect(Outcome::Matched { output, .. })) = console.take_ended(wait) else {
            panic!("no match, cut at {cut}");
        };
        assert_eq!(output, b"Booting\r\nguest login: ");
        assert_eq!(console.take(reader), b"root\r\n");
    }
}

#[test]
fn eof_ends_waits_after_a_delay_and_close_at_once() {
    let mut queue = EventQueue::default();
    for closes in [false, true] {
        let mut console = connected(64, Overflow::DropOldest);
        let reader = console.add_reader();
        let wait = console.begin(at(0), reader, expect("login: ", None), &mut queue);
        console.handle_eof(at(10), &mut queue);
        assert_eq!(events(&mut queue), [VmEvent::ConsoleClosed]);
        assert!(console.write(at(10), b"x").is_err());
        assert_eq!(console.poll_timeout().map(|deadline| deadline.at), Some(at(510)));
        if closes {
            console.close(at(20), &mut queue);
        } else {
            console.handle_timeout(at(510), &mut queue);
        }
        assert_eq!(events(&mut queue), [VmEvent::Ended(wait)]);
        assert!(matches!(console.take_ended(wait), Some(Ended::Expect(Outcome::Closed { .. }))));
        assert_eq!(console.poll_timeout(), None);
    }
}

#[test]
fn script_after_eof_writes_nothing() {
    let mut queue = EventQueue::default();
    let mut console = connected(64, Overflow::DropOldest);
    let reader = console.add_reader();
    console.handle_eof(at(10), &mut queue);
    let run = RunCommand::new("true", None, 7, at(20), None).unwrap();
    let wait = console.begin(at(20), reader, WaitKind::Script(Box::new(run)), &mut queue);
    assert!(console.outgoing().is_empty() && !console.wants_write(), "nothing takes input");
    console.handle_timeout(at(510), &mut queue);
    assert!(matches!(console.take_ended(wait), Some(Ended::Script(Err(_)))));
}

#[test]
fn wait_of_an_unknown_reader_ends_at_once() {
    let mut queue = EventQueue::default();
    let mut console = connected(64, Overflow::DropOldest);
    let reader = console.add_reader();
    console.remove_reader(at(0), reader);
    let wait = console.begin(at(0), reader, expect("x", None), &mut queue);
    assert_eq!(events(&mut queue), [VmEvent::Ended(wait)]);
}

#[test]
fn text_keeps_a_partial_character_until_the_end() {
    let mut queue = EventQueue::default();
    let mut console = connected(64, Overflow::DropOldest);
    let reader = console.add_reader();
    console.handle_bytes(at(0), "naïve".as_bytes().split_at(3).0, &mut queue);
    assert_eq!(console.take_text(reader), b"na");
    console.close(at(0), &mut queue);
    assert_eq!(console.take_text(reader), [0xc3], "the rest never arrived");
}

fn with_serial_port() -> (ConsoleMux, ReaderId, EventQueue) {
    let mut console = connected(64, Overflow::DropOldest).with_serial_port();
    let reader = console.add_reader();
    console.handle_started(at(0));
    (console, reader, EventQueue::default())
}

fn outcome(console: &mut ConsoleMux, wait: WaitId) -> Option<Outcome> {
    console.take_ended(wait).map(|ended| match ended {
        Ended::Expect(outcome) => outcome,
        Ended::Script(result) => panic!("{result:?}"),
    })
}

#[test]
fn virtio_console_never_opened_ends_waits() {
    let (mut console, reader, mut queue) = with_serial_port();
    assert_eq!(console.poll_timeout(), None, "nothing waits");
    console.handle_serial_bytes(at(1), b"[    1.000000] \x1b[1mVFS: no root\r\n\r\n");
    let wait = console.begin(at(2), reader, expect("login: ", None), &mut queue);
    let limit = at(120_000);
    assert_eq!(console.poll_timeout().map(|deadline| deadline.at), Some(limit));
    console.handle_timeout(limit, &mut queue);
    let Some(Outcome::Closed { near_match, .. }) = outcome(&mut console, wait) else {
        panic!("the wait goes on")
    };
    let text = near_match.unwrap().to_string();
    assert!(text.contains("VFS: no root\": "), "{text}");
    assert!(text.contains("has not opened its virtio console: it needs the driver"), "{text}");
    assert_eq!(console.poll_timeout(), None, "the limit wakes nothing again");
    let late = console.begin(at(130_000), reader, expect("login: ", None), &mut queue);
    assert!(outcome(&mut console, late).is_some());
    console.handle_opened();
    let wait = console.begin(at(130_001), reader, expect("login: ", None), &mut queue);
    assert_eq!((outcome(&mut console, wait), console.poll_timeout()), (None, None));
}

#[test]
fn virtio_console_not_opened_explains_timeout() {
    for is_opened in [false, true] {
        let (mut console, reader, mut queue) = with_serial_port();
        if is_opened {
            console.handle_bytes(at(0), b"?", &mut queue);
        }
        let limit = Some(Duration::from_secs(1));
        let wait = console.begin(at(0), reader, expect("login: ", limit), &mut queue);
        console.handle_timeout(at(1000), &mut queue);
        let Some(Outcome::TimedOut { near_match, .. }) = outcome(&mut console, wait) else {
            panic!("the wait goes on")
        };
        let is_explained = near_match.is_some_and(|found| found.to_string().contains("not opened"));
        assert_eq!(is_explained, !is_opened);
    }
}

#[test]
fn serial_port_panic_ends_waits() {
    const PANIC: &[u8] =
        b"[    1.000000] Kernel panic - not syncing: x\r\n[    1.000001] CPU: 0\r\n\
        [    1.100000] ---[ end Kernel panic - not syncing: x ]---\r\n";
    for goes_on in [false, true] {
        let (mut console, reader, mut queue) = with_serial_port();
        console.handle_opened();
        let wait = console.begin(at(0), reader, expect("login: ", None), &mut queue);
        assert_eq!(
            console.handle_serial_bytes(at(0), PANIC),
            Some(true),
            "the VM is notified of the text"
        );
        if goes_on {
            console.handle_bytes(at(100), b"printed by a program", &mut queue);
        }
        assert_eq!(console.handle_timeout(at(500), &mut queue), None);
        let crash = console.handle_timeout(at(5000), &mut queue);
        assert_eq!(crash, Some(ConsoleCrash::Panic));
        let fault = match outcome(&mut console, wait) {
            Some(Outcome::Closed { fault, .. }) => fault.map(|fault| fault.line),
            other => {
                assert_eq!(other, None);
                None
            }
        };
        let line = (!goes_on).then(|| "Kernel panic - not syncing: x".into());
        assert_eq!((fault, console.poll_timeout()), (line, None));
    }
}
