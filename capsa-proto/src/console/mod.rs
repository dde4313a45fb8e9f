//! The console: the buffer of guest output, waits for patterns in it, and scripts that write input.
//!
//! Guest output goes into a [`Scrollback`], which is bounded. Each reader has a [`Cursor`], its
//! position in the scrollback. An [`Expect`] waits for one of several patterns; a [`Script`]
//! ([`Login`], [`RunCommand`]) reads output and writes input. Output stays bytes here: it may be
//! split anywhere, even inside a character.
//!
//! This is not a terminal emulator. All work is linear in the size of the output, also with regular
//! expressions (feature `regex`).
//!
//! # Driving
//!
//! 1. Create the scrollback, and a cursor for each reader.
//! 2. [`push`](Scrollback::push) guest output. Push at most the scrollback's capacity at a time;
//!    otherwise readers lose bytes, which they report.
//! 3. Poll each wait and script with the current time: [`Expect::poll`], [`Script::poll_output`].
//!    Send what a script writes, and poll the script again until it waits.
//! 4. Sleep until there is more output or the earliest `poll_timeout`. Go back to 2.
//! 5. When the console closes, poll once more with `closed`: every wait and script ends.
//!
//! ```
//! use capsa_proto::console::{Cursor, Expect, Matcher, Outcome, Scrollback};
//! use capsa_proto::time::Instant;
//! use core::time::Duration;
//!
//! // 1
//! let mut log = Scrollback::default();
//! let mut cursor = Cursor::at(0);
//! let mut now = Instant::ZERO;
//! let patterns = Matcher::new(["login: ", "Kernel panic"]);
//! let mut wait = Expect::new(patterns, now, Some(Duration::from_secs(30)));
//!
//! let mut guest = [&b"Booting\r\ngue"[..], b"st log", b"in: "].into_iter();
//! let outcome = loop {
//!     // 2
//!     let closed = match guest.next() {
//!         Some(bytes) => { log.push(bytes); false }
//!         None => true,
//!     };
//!     // 3
//!     if let Some(outcome) = wait.poll(now, &log, &mut cursor, closed) {
//!         break outcome;
//!     }
//!     // 4
//!     let deadline = wait.poll_timeout().unwrap();
//!     assert_eq!((deadline.why, deadline.at.as_micros()), ("console wait timed out", 30_000_000));
//!     now = now + Duration::from_millis(1);
//! };
//! let Outcome::Matched { pattern: 0, output, truncated: false, .. } = outcome else { panic!() };
//! assert_eq!(output, b"Booting\r\nguest login: ");
//! ```
//!
//! # Bounds
//!
//! | object | bound | at the bound |
//! | --- | --- | --- |
//! | [`Scrollback`] | its capacity, [`DEFAULT_CAPACITY`] | see [`Overflow`] |
//! | panics since the kernel booted | 16 | the newest replaces the one before it |
//! | output of a command | [`OUTPUT_LIMIT`] | the first bytes are kept, [`CommandOutput::truncated`] |
//! | a command | 64 KiB, [`COMMAND_MAX`] | rejected |
//! | tail in an outcome or error | 2 KiB | the last bytes are kept |
//! | search for a near match | 64 KiB, 16 literals | the last bytes, the first literals |
//! | a regular expression | 4 KiB, 256 KiB compiled | rejected |
//! | its match up to its first literal | the content of the scrollback | not found |
//! | cached states of its search | 512 KiB | dropped and computed again |
//! | a match with groups | 64 KiB | only the whole match is reported |
//! | output of the serial port beside a virtio console | 64 KiB | the last bytes are kept |
//! | a line | `LINE_MAX` | returned in pieces |
//! | Enter keys that a login sends to a silent guest | 3 per step | it keeps waiting |

#[cfg(all(test, feature = "regex"))]
mod chunking;
mod cursor;
mod expect;
mod fault;
mod fault_check;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod input_log;
mod kernel_log;
mod lines;
mod matcher;
mod mux;
mod near_match;
mod pattern;
#[cfg(feature = "regex")]
mod regex;
mod script;
mod scrollback;
mod serial_port;
mod shutdown;
mod strip;
mod wait;

pub use cursor::Cursor;
pub use expect::{Expect, Outcome};
pub use fault::{FaultReport, GuestFault};
pub use fault_check::ConsoleCrash;
pub use input_log::{InputRecord, RecordedInput};
pub use lines::LineSplitter;
pub use matcher::{Matcher, PatternMatch, Search};
pub(crate) use mux::DRAIN_LIMIT;
pub use mux::{ConsoleClosed, ConsoleMux, WRITE_QUEUE};
pub use near_match::NearMatch;
pub use pattern::{Pattern, PatternError};
pub use script::{
    COMMAND_MAX, CommandOutput, CommandScope, InputKind, Login, OUTPUT_LIMIT, RunCommand, Script,
    ScriptAction, ScriptError, ScriptPoll, ShellUse, Silence,
};
pub use scrollback::{DEFAULT_CAPACITY, Overflow, Scrollback};
pub use serial_port::OPEN_LIMIT;
pub use shutdown::SHUTDOWN_COMMAND;
pub use strip::Stripper;
pub use wait::{BlockingReader, Ended, ReaderId, WaitId, WaitKind};
