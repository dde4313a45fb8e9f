//! The detector against a slow reference implementation, and its work.

use super::*;
use crate::console::Scrollback;
use alloc::vec;
use fastrand::Rng;

/// What the reference implementation finds.
#[derive(Debug, PartialEq)]
struct Found {
    fault: Option<DetectedFault>,
    panic: Option<DetectedFault>,
    crash: Option<CrashMessage>,
    panic_text: Option<PanicText>,
}

/// A slow reference implementation: at each offset of the whole stream, does a text start here?
fn naive(stream: &[u8], from: u64) -> Found {
    let (mut panics, mut other): (Vec<DetectedFault>, Option<DetectedFault>) = (vec![], None);
    let (mut crash, mut panic_text) = (None, None);
    let complete = |panics: &mut Vec<DetectedFault>, at: u64| {
        let near = panics.iter_mut().filter(|panic| at < panic.at + TRACE_MAX);
        near.for_each(|panic| panic.is_complete = true);
    };
    for at in 0..stream.len() {
        let text = &stream[at..];
        let line = stream[..at].rsplit(|&byte| byte == b'\n').next().unwrap();
        let (is_line_start, is_kernel_line) = (without_escapes(line), without_stamps(line));
        let is_end = stream[..at].ends_with(PANIC_END);
        let at = at as u64;
        let fault = |fault, at, text| DetectedFault { fault, at, text, is_complete: false };
        if text.starts_with(PANIC.as_bytes()) {
            panic_text = Some(PanicText { is_panic: true, at });
            if is_end {
                complete(&mut panics, at - 9);
                if without_stamps(&line[..line.len().saturating_sub(9)]) {
                    crash = Some(CrashMessage { crash: ConsoleCrash::Panic, at: at - 9 });
                }
            } else {
                panics.push(fault(GuestFault::KernelPanic, at, PANIC));
                if is_kernel_line {
                    crash = Some(CrashMessage { crash: ConsoleCrash::Panic, at });
                }
            }
        }
        if text.starts_with(b"Linux version ") {
            other = None;
        }
        let restarts = text.starts_with(b"reboot: Restarting system") && is_kernel_line;
        let powers_off = text.starts_with(b"reboot: Power down") && is_kernel_line;
        if text.starts_with(b"Linux version ") || restarts || powers_off {
            panics.clear();
            let is_panic = panic_text.is_some_and(|text: PanicText| text.is_panic);
            if is_panic || restarts {
                panic_text = Some(PanicText { is_panic: false, at });
            }
        }
        if restarts {
            crash = Some(CrashMessage { crash: ConsoleCrash::Restart, at });
        }
        if text.starts_with(b"Rebooting in ") && is_kernel_line {
            complete(&mut panics, at);
        }
        for (words, kind) in PROGRAM_TEXTS {
            if text.starts_with(words.as_bytes()) && is_line_start {
                other = Some(fault(*kind, at, words));
            }
        }
    }
    let panic = panics.iter().find(|panic| panic.at >= from).copied();
    let fault = panic.or(other.filter(|other| other.at >= from));
    Found { fault, panic, crash, panic_text }
}

/// Whether a part of a line is escape sequences only.
fn without_escapes(line: &[u8]) -> bool {
    let Some(rest) = line.strip_prefix(b"\x1b") else { return line.is_empty() };
    let after = |bytes: &[u8], is: fn(&u8) -> bool| bytes.iter().take_while(|b| is(b)).count();
    let rest = &rest[after(rest, |b| matches!(b, b' '..=b'/'))..];
    match rest.split_first() {
        Some((b'[', rest)) => match &rest[after(rest, |b| matches!(b, b' '..=b'?'))..] {
            [b'@'..=b'~', rest @ ..] => without_escapes(rest),
            // An escape always starts a new sequence.
            rest => rest.starts_with(b"\x1b") && without_escapes(rest),
        },
        Some((b']' | b'P' | b'X' | b'^' | b'_', _)) => false,
        Some((b'0'..=b'~', rest)) => without_escapes(rest),
        Some((b'\x1b', _)) => without_escapes(rest),
        _ => false,
    }
}

/// Whether a part of a line is escape sequences, then at most one time stamp.
fn without_stamps(line: &[u8]) -> bool {
    let stamps: [&[u8]; 3] = [b"[    1.234567] ", b"[    1.234567]", b"[    1.234567][    T1] "];
    without_escapes(line)
        || stamps.iter().any(|stamp| line.strip_suffix(*stamp).is_some_and(without_escapes))
}

fn found(log: &Scrollback, from: u64) -> Found {
    let faults = log.faults();
    Found {
        fault: faults.fault_since(from),
        panic: faults.panic_since(from),
        crash: faults.crash_message(),
        panic_text: faults.panic_text(),
    }
}

/// A stream of texts, parts of texts, and what may stand before them.
fn random_stream(random: &mut Rng) -> Vec<u8> {
    let before: [&[u8]; 12] = [
        b"\n",
        b"\n",
        b"\n",
        b"\r\n",
        b"\x1b[0m",
        b"\x1b[1;31m",
        b"[    1.234567] ",
        b"[    1.234567]",
        b"[    1.234567][    T1] ",
        PANIC_END,
        b"x",
        b" ",
    ];
    let kernel = KERNEL_TEXTS.map(|(_, text)| text.as_bytes());
    let mut stream = vec![];
    for _ in 0..random.usize(0..24) {
        let word = match random.u8(0..10) {
            0..=5 => before[random.usize(0..before.len())],
            6..=8 => kernel[random.usize(0..kernel.len())],
            _ => PROGRAM_TEXTS[random.usize(0..PROGRAM_TEXTS.len())].0.as_bytes(),
        };
        let len = if random.u8(0..8) == 0 { random.usize(0..=word.len()) } else { word.len() };
        stream.extend_from_slice(&word[..len]);
    }
    stream
}

#[test]
fn detector_random_streams_equal_reference() {
    let mut random = Rng::with_seed(3);
    let mut faults = 0;
    for _ in 0..4_000 {
        let stream = random_stream(&mut random);
        let from = random.u64(0..=stream.len() as u64);
        let expected = naive(&stream, from);
        faults += u32::from(expected.fault.is_some());
        // In the small scrollback much is dropped, but no text before it is complete.
        for (capacity, most) in [(1 << 16, 1), (1 << 16, 7), (1 << 16, 4096), (512, 50)] {
            let (mut log, mut rest) = (Scrollback::new(capacity), &stream[..]);
            while !rest.is_empty() {
                let (now, later) = rest.split_at(random.usize(1..=most).min(rest.len()));
                log.push(now);
                rest = later;
            }
            let stream = stream.escape_ascii();
            assert_eq!(found(&log, from), expected, "in pieces of {most} from {from}: {stream}");
        }
    }
    assert!((600..3_000).contains(&faults), "{faults} streams have a fault");
}

#[test]
fn detector_full_list_keeps_first_and_newest() {
    let mut log = Scrollback::default();
    let line = "Kernel panic - not syncing: x\n".as_bytes();
    let len = line.len() as u64;
    let since = |log: &Scrollback, n: u64| log.faults().panic_since(n * len).map(|p| p.at / len);
    for n in 0..100 {
        log.push(line);
        assert_eq!(since(&log, n), Some(n), "the newest is always found");
    }
    assert_eq!(log.faults().panics.len(), PANICS_MAX);
    assert_eq!(since(&log, 0), Some(0));
    assert_eq!(since(&log, 14), Some(14));
    assert_eq!(since(&log, 15), Some(99), "those between are replaced by the newest");
    log.push(b"Linux version 6.1\n");
    assert_eq!(since(&log, 0), None);
}

#[test]
fn detector_texts_have_the_expected_shape() {
    let programs = PROGRAM_TEXTS.iter().map(|(text, _)| *text);
    assert_eq!(programs.clone().map(str::len).max(), Some(PROGRAM_TEXT_MAX));
    for text in programs.chain(["\x1b[0m"]) {
        let line = alloc::format!("{}\n{text}", "x".repeat(100));
        assert_eq!(find_line_start(line.as_bytes()), Some(101), "{text:?} may start a line");
    }
}

#[test]
fn detector_searches_each_byte_once() {
    let line = "[    1.234567] systemd[1]: Started getty on the serial console.\r\n";
    let stream = line.repeat(1000).into_bytes();
    let end = stream.len() as u64;
    for chunk in [25, 50, 4096] {
        let mut log = Scrollback::new(1 << 18);
        stream.chunks(chunk).for_each(|bytes| log.push(bytes));
        let DetectorWork { lines, texts, starts } = log.faults().work;
        let pushes = end.div_ceil(chunk as u64);
        // A text may have started in the bytes before a push. Two texts matter: the first two.
        let matter: u64 = KERNEL_TEXTS[..2].iter().map(|(_, text)| text.len() as u64 - 1).sum();
        let overlap = (pushes - 1) * matter;
        assert_eq!((lines, texts), (end, 2 * end + overlap), "{chunk}");
        // Only a line whose first byte is not known yet is parsed.
        let most = pushes * (ESCAPES_MAX + PROGRAM_TEXT_MAX) as u64;
        assert!(starts <= most, "{starts} in {pushes} pushes");
    }
}

#[test]
fn detector_work_is_bounded_for_any_output() {
    const LEN: u64 = 20_000;
    for text in [
        "\n",
        "\nKernel panic - not syncin",
        "\nKernel panic - not syncing",
        "\nLogin incorrect\nLinux version ",
        "\x1b[0m",
        "\x1b[",
        "\n[    1.234567]",
        "\n[    1.234567][    T1] Rebooting in",
        "\nCannot open access to console, the root account is locke",
    ] {
        let stream: Vec<u8> = text.bytes().cycle().take(LEN as usize).collect();
        for chunk in [1, 8192] {
            let mut log = Scrollback::default();
            stream.chunks(chunk).for_each(|bytes| log.push(bytes));
            let DetectorWork { lines, texts, starts } = log.faults().work;
            let pushes = LEN.div_ceil(chunk as u64);
            assert_eq!(lines, LEN, "{text:?} by {chunk}");
            assert!(
                texts <= 5 * (LEN + pushes * PANIC.len() as u64),
                "{text:?} by {chunk}: {texts}"
            );
            let line_starts = text.matches('\n').count() as u64 * (LEN / text.len() as u64 + 1);
            let most = (ESCAPES_MAX + PROGRAM_TEXT_MAX) as u64 * (pushes + line_starts);
            assert!(starts <= most, "{text:?} by {chunk}: {starts}, not {most}");
        }
    }
}
