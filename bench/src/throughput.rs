//! Measures the throughput of a search, and its memory.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant as Clock};

use capsa_proto::console::{
    ConsoleMux, DEFAULT_CAPACITY, Ended, Expect, Matcher, Outcome, Overflow, Pattern, WaitKind,
};
use capsa_proto::time::Instant;
use capsa_proto::vm::EventQueue;
use expectrl::process::NonBlocking;
use expectrl::{Any, Expect as _, Needle, Session};
use rexpect::reader::{NBReader, Options, ReadUntil, Regex};

use crate::Result;

pub(crate) const PATTERNS: [&str; 3] = ["literal", "five", "regex"];

const LITERALS: [&str; 5] =
    ["capsa login: ", "Password: ", "(initramfs) ", "root@capsa:~# ", "Login timed out"];
const REGEX: &str = r"[a-z]+ login: ";
const ALL: usize = 64 << 20;
/// A library that needs longer than this gets no further input.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Prints the throughput in MiB/s, the memory in MiB, and the size of the input in MiB.
pub(crate) fn measure(library: &str, pattern: &str, chunk: &str) -> Result<()> {
    let chunk = chunk.parse()?;
    let text = boot_text();
    let before = resident()?;
    let mut bytes = 256 << 10;
    loop {
        let begin = Clock::now();
        let source = Source {
            text: text.clone(),
            given: 0,
            left: bytes,
            chunk,
            end: b"capsa login: ",
            pause: false,
        };
        let (found, keeps) = match library {
            "capsa" => capsa(pattern, source),
            "expectrl" => expectrl(pattern, source),
            _ => rexpect(pattern, source),
        }?;
        let took = begin.elapsed();
        if found < bytes {
            return Err(
                format!("{library} found the pattern after {found} of {bytes} bytes").into()
            );
        }
        let kept = resident()?.saturating_sub(before);
        drop(keeps);
        // Stop early: the time of some libraries grows with the square of the size.
        if bytes == ALL || took * 5 > TIME_LIMIT {
            let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
            println!("{} {} {}", mib(bytes) / took.as_secs_f64(), mib(kept), mib(bytes));
            return Ok(());
        }
        bytes *= 2;
    }
}

/// The offset of a match, and the memory in use at that point.
type Found = (usize, Box<dyn std::any::Any>);

/// Like `capsa_io::console`: at most 8 KiB from a stream into the console, which polls the wait.
fn capsa(pattern: &str, mut source: Source) -> Result<Found> {
    let matcher = match pattern {
        "literal" => Matcher::new(&LITERALS[..1]),
        "five" => Matcher::new(LITERALS),
        _ => Matcher::of([Pattern::regex(REGEX)?]),
    };
    let mut console = ConsoleMux::new(DEFAULT_CAPACITY, Overflow::DropOldest);
    let (mut events, now) = (EventQueue::default(), Instant::ZERO);
    let reader = console.add_reader();
    let wait = WaitKind::Expect(Box::new(Expect::new(matcher, now, None)));
    let wait = console.begin(now, reader, wait, &mut events);
    let mut buffer = [0; 8192];
    loop {
        match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            read => console.handle_bytes(now, &buffer[..read?], &mut events),
        };
        while events.pop().is_some() {}
        match console.take_ended(wait) {
            None => {}
            Some(Ended::Expect(Outcome::Matched { .. })) => {
                return Ok((console.offset(reader) as usize, Box::new(console)));
            }
            Some(other) => return Err(format!("{other:?}").into()),
        }
    }
}

fn expectrl(pattern: &str, source: Source) -> Result<Found> {
    let mut session = Session::new((), source)?;
    session.set_expect_timeout(None);
    let found = match pattern {
        "literal" => session.expect(LITERALS[0])?,
        "five" => {
            let needles = LITERALS.map(|literal| Box::new(literal) as Box<dyn Needle>);
            session.expect(Any::boxed(needles.into()))?
        }
        _ => session.expect(expectrl::Regex(REGEX))?,
    };
    let end = found.as_bytes().len();
    Ok((end, Box::new(())))
}

fn rexpect(pattern: &str, source: Source) -> Result<Found> {
    let literal = |literal: &str| ReadUntil::String(literal.into());
    let until = match pattern {
        "literal" => literal(LITERALS[0]),
        "five" => ReadUntil::Any(LITERALS.map(literal).into()),
        _ => ReadUntil::Regex(Regex::new(REGEX)?),
    };
    // rexpect's reader needs a blocking source.
    let source = Blocking(source);
    let mut reader = NBReader::new(source, Options::new());
    let (before, found) = reader.read_until(&until)?;
    Ok((before.len() + found.len(), Box::new((before, found, reader))))
}

/// Boot messages, repeated, in chunks, followed by the prompt.
struct Source {
    text: Vec<u8>,
    given: usize,
    left: usize,
    chunk: usize,
    end: &'static [u8],
    /// The next read returns `WouldBlock`, because a whole chunk was read.
    pause: bool,
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.pause) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.left == 0 {
            let n = self.end.len().min(into.len());
            into[..n].copy_from_slice(&self.end[..n]);
            self.end = &self.end[n..];
            self.pause = true;
            return Ok(n);
        }
        // The rest of this chunk, as far as it fits.
        let rest = match self.left % self.chunk {
            0 => self.chunk,
            rest => rest,
        };
        let at = self.given % self.text.len();
        let n = rest.min(into.len()).min(self.text.len() - at);
        into[..n].copy_from_slice(&self.text[at..at + n]);
        self.left -= n;
        self.given += n;
        self.pause = n == rest;
        Ok(n)
    }
}

impl Write for Source {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl NonBlocking for Source {
    fn set_blocking(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

struct Blocking(Source);

impl Read for Blocking {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.pause = false;
        self.0.read(into)
    }
}

/// 64 KiB that look like messages of a kernel and systemd.
fn boot_text() -> Vec<u8> {
    let lines = [
        "pci 0000:00:1f.2: reg 0x20: [io  0xc040-0xc05f]",
        "Memory: 2012004K/2096612K available (14339K kernel code, 2342K rwdata)",
        "systemd[1]: Started systemd-journald.service - Journal Service.",
        "virtio_blk virtio2: [vda] 20971520 512-byte logical blocks (10.7 GB/10.0 GiB)",
        "EXT4-fs (vda1): mounted filesystem with ordered data mode. Quota mode: none.",
        "\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mnetwork.target\x1b[0m - Network.",
        "random: crng init done",
    ];
    let mut text = Vec::new();
    for n in 0.. {
        let line = lines[n % lines.len()];
        text.extend_from_slice(
            format!("[{:5}.{:06}] {line}\r\n", n / 97, n * 7919 % 1_000_000).as_bytes(),
        );
        if text.len() >= 64 << 10 {
            break;
        }
    }
    text.truncate(64 << 10);
    text
}

/// The memory of this process in bytes, without its code, which is loaded on demand.
fn resident() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: usize = line.and_then(|l| l.split_whitespace().next()).ok_or("no RssAnon")?.parse()?;
    Ok(kib << 10)
}
