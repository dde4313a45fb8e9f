//! Tests of output that is taken while the command runs.

use super::*;
use crate::console::Overflow;
use crate::console::fuzz::Streamed;

const BEGIN: &[u8] = b"capsa:begin:000000000000beef\r\n";
const END: &[u8] = b"capsa:end:000000000000beef:3;\r\n";

/// A streamed command that has started, with a timeout of ten seconds.
fn begun(log: &mut Scrollback, cursor: &mut Cursor) -> RunCommand {
    let mut script = command("x", None).streamed();
    assert!(matches!(
        script.poll_output(Instant::ZERO, log, cursor, false),
        ScriptAction::Write(_)
    ));
    log.push(BEGIN);
    assert_eq!(script.poll_output(Instant::ZERO, log, cursor, false), ScriptAction::Wait);
    script
}

#[test]
fn streamed_pieces_add_up_to_whole_output() {
    static BIG: [u8; 300_000] = [b'z'; 300_000];
    let behaviours: [Behaviour; 3] = [
        |_| (b"a\nb\r\ncapsa:end:000000000000beef:;\n\r", Some(2)),
        |_| (b"", Some(0)),
        |_| (&BIG, Some(5)),
    ];
    for behaviour in behaviours {
        for (chunk, seed) in [(1, 0), (7, 1), (64, 2), (4096, 3)] {
            let whole = run_script(&mut command("x", None), &mut shell(behaviour), chunk, seed);
            let mut taker = Streamed { script: command("x", None).streamed(), taken: Vec::new() };
            let run = run_script(&mut taker, &mut shell(behaviour), chunk, seed);
            let (whole, reply) = (whole.result.expect("a reply"), run.result.expect("a reply"));
            taker.taken.extend(&reply.output);
            assert!(taker.taken == whole.output, "by {chunk}");
            assert_eq!((reply.status, reply.truncated), (whole.status, false));
        }
    }
}

#[test]
fn streamed_output_is_available_before_end_mark() {
    let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
    let mut script = begun(&mut log, &mut cursor);
    for (printed, given) in
        [(&b"one\r\n"[..], &b"one\n"[..]), (b"two capsa:e", b"two "), (b"tc\r", b"capsa:etc")]
    {
        log.push(printed);
        assert_eq!(script.poll_output(Instant::ZERO, &log, &mut cursor, false), ScriptAction::Wait);
        assert_eq!(script.take_output(), given);
        assert_eq!(script.take_output(), b"");
    }
    log.push(END);
    let ok = script.poll_output(Instant::ZERO, &log, &mut cursor, false);
    assert!(matches!(ok, ScriptAction::Write(_)));
    log.push(b" : 000000000000beef ok\r\n");
    let ScriptAction::Done(Ok(reply)) = script.poll_output(Instant::ZERO, &log, &mut cursor, false)
    else {
        panic!("done")
    };
    assert_eq!((reply.output, reply.status), (b"\r".to_vec(), Some(3)));
}

#[test]
fn streamed_terminal_output_is_unchanged_and_not_late() {
    let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
    let mut script = command("x", None).scope(CommandScope::Terminal).streamed();
    let mut poll = |script: &mut RunCommand, printed: &[u8]| {
        log.push(printed);
        script.poll_output(Instant::ZERO, &log, &mut cursor, false)
    };
    assert!(matches!(poll(&mut script, b""), ScriptAction::Write(_)));
    poll(&mut script, BEGIN);
    for printed in [&b"one\r\n"[..], b"c", b"ap\r", b"\n", b"capsa:end:000000000000beef:0;\r\n"] {
        assert_eq!(poll(&mut script, printed), ScriptAction::Wait);
        assert_eq!(script.take_output(), printed);
    }
    poll(&mut script, b"\x18");
    assert!(matches!(poll(&mut script, END), ScriptAction::Write(_)));
    let done = poll(&mut script, b"abc : 000000000000beef ok\r\n");
    let ScriptAction::Done(Ok(reply)) = done else { panic!("done") };
    assert_eq!((reply.output, reply.status), (b"".to_vec(), Some(3)));
}

#[test]
fn streamed_slow_taker_pauses_guest_loses_nothing() {
    let mut guest: VecDeque<u8> = VecDeque::new();
    (0..1_000_000u32).for_each(|n| guest.push_back(b'a' + (n % 23) as u8));
    let printed: Vec<u8> = guest.iter().copied().collect();
    guest.extend(END);
    guest.extend(b" : 000000000000beef ok\r\n");
    let (mut log, mut cursor) = (Scrollback::with_overflow(50_000, Overflow::Pause), Cursor::at(0));
    let (mut script, mut taken) = (begun(&mut log, &mut cursor), Vec::new());
    let reply = (0..1000).find_map(|round| {
        // Ten turns of the guest to one of ours.
        let room = log.room(cursor.offset()).min(10_000).min(guest.len());
        log.push(&guest.drain(..room).collect::<Vec<_>>());
        let output = script.poll_output(Instant::ZERO, &log, &mut cursor, false);
        if round % 10 == 0 {
            let piece = script.take_output();
            assert!(piece.len() <= STREAM_AHEAD + 50_000, "{} bytes were kept", piece.len());
            taken.extend(piece);
        }
        match output {
            ScriptAction::Done(result) => Some(result.expect("a reply")),
            _ => None,
        }
    });
    let reply = reply.expect("an end");
    taken.extend(reply.output);
    assert!(taken == printed, "{} of {} bytes", taken.len(), printed.len());
    assert_eq!((reply.status, reply.truncated), (Some(3), false));
}

#[test]
fn streamed_failed_command_gives_all_output() {
    for (closed, at) in [(true, Instant::ZERO), (false, Instant::ZERO + Duration::from_secs(11))] {
        let (mut log, mut cursor) =
            (Scrollback::with_overflow(1 << 20, Overflow::Pause), Cursor::at(0));
        let mut script = begun(&mut log, &mut cursor);
        let printed = [&[b'x'; 200_000][..], b"capsa:e\r"].concat();
        for chunk in printed.chunks(60_000) {
            log.push(chunk);
            assert_eq!(
                script.poll_output(Instant::ZERO, &log, &mut cursor, false),
                ScriptAction::Wait
            );
        }
        assert!(cursor.offset() < log.end(), "it reads no further than it must");
        let first = script.poll_output(at, &log, &mut cursor, closed);
        let last = match first {
            ScriptAction::Write(interrupt) => {
                assert_eq!(interrupt, [INTERRUPT]);
                script.poll_output(at, &log, &mut cursor, closed)
            }
            over => over,
        };
        assert!(matches!(last, ScriptAction::Done(Err(_))), "{last:?}");
        assert!(script.take_output() == printed, "closed: {closed}");
        assert_eq!(cursor.offset(), log.end(), "and does not unread what it gives");
    }
}

#[test]
fn streamed_closed_console_finds_end_mark() {
    let (mut log, mut cursor) =
        (Scrollback::with_overflow(1 << 20, Overflow::Pause), Cursor::at(0));
    let mut script = begun(&mut log, &mut cursor);
    log.push(&[b'x'; 100_000]);
    assert_eq!(script.poll_output(Instant::ZERO, &log, &mut cursor, false), ScriptAction::Wait);
    log.push(END);
    assert_eq!(script.poll_output(Instant::ZERO, &log, &mut cursor, false), ScriptAction::Wait);
    let ScriptAction::Done(Ok(reply)) = script.poll_output(Instant::ZERO, &log, &mut cursor, true)
    else {
        panic!("done")
    };
    assert_eq!((reply.output.len(), reply.status), (100_000, Some(3)));
}
