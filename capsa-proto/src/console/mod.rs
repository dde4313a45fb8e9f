//! The console: what a guest has said, waiting for what it will say, and talking back.
//!
//! Bytes go into a [`Scrollback`], which is bounded. Each reader has a [`Cursor`], its place in it.
//! An [`Expect`] waits for one of several patterns; a [`Script`] ([`Login`], [`RunCommand`]) holds a
//! conversation. Text stays bytes here: it may be cut anywhere, and is made a string where it is
//! handed out.
//!
//! Nothing here decides what a terminal emulator would show. The work is linear in what the guest
//! sends, with regular expressions too (the feature `regex`).
//!
//! # Driving
//!
//! 1. Make the log, and a cursor for each reader.
//! 2. When the guest has said something, [`push`](Scrollback::push) it. Push no more at a time than
//!    the log holds, or its readers lose bytes (and say so).
//! 3. Poll every wait and script that uses this log, with the time: [`Expect::poll`],
//!    [`Script::poll_output`]. Send what a script writes, and poll it again until it waits.
//! 4. Sleep until there is more output or the earliest `poll_timeout`. Go back to 2.
//! 5. When the console closes, poll once more with `closed`: all of them end.
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
//! | what | bound | at the bound |
//! | --- | --- | --- |
//! | [`Scrollback`] | its capacity, [`DEFAULT_CAPACITY`] | [`Overflow`] says |
//! | output of a command | [`OUTPUT_LIMIT`] | the front is kept, [`CommandOutput::truncated`] |
//! | a command | [`COMMAND_MAX`] | refused |
//! | tail in an outcome or error | 2 KiB | the last bytes are kept |
//! | what is looked at for a near miss | 64 KiB, 16 literals | the last bytes, the first literals |
//! | a regular expression | 4 KiB, 256 KiB compiled | refused |
//! | a match of one up to its first literal | what the log holds | not found |
//! | states of a search for it | 512 KiB | forgotten, and worked out again |
//! | groups of a match | 64 KiB | only the whole is known |
//! | a line | [`LINE_MAX`] | given in pieces |
//! | Enters pressed unasked by a login | 3 per stage | it goes on waiting |

#[cfg(all(test, feature = "regex"))]
mod chunking;
mod crash;
mod cursor;
mod expect;
mod fault;
#[doc(hidden)]
pub mod fuzz;
mod kernel_log;
mod lines;
mod matcher;
mod near_match;
mod pattern;
#[cfg(feature = "regex")]
mod regex;
mod script;
mod scrollback;
mod strip;

pub use crash::{ConsoleCrash, CrashDetector};
pub use cursor::Cursor;
pub use expect::{Expect, Outcome};
pub use fault::{FaultReport, GuestFault};
pub use lines::{LINE_MAX, LineSplitter};
pub use matcher::{Matcher, PatternMatch, Search};
pub use near_match::NearMatch;
pub use pattern::{Pattern, PatternError};
pub use script::{
    COMMAND_MAX, CommandOutput, InputKind, Login, OUTPUT_LIMIT, RunCommand, Script, ScriptAction,
    ScriptError, Silence, Stdin,
};
pub use scrollback::{DEFAULT_CAPACITY, Overflow, Scrollback};
pub use strip::Stripper;
