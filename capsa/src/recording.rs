//! Recordings of a console: asciicast files that players play and [`testing`](crate::testing)
//! replays.
//!
//! This module needs the feature `recording`, which is not in the default build.
//!
//! Each recording has a thread that writes it, so that neither the driver thread nor the guest
//! waits for the disk. The thread is an ordinary reader of the console and buffers nothing beyond
//! the scrollback: if the disk is slower than the guest for too long, bytes are lost and the
//! recording notes where and how many, or the guest is paused if the scrollback pauses instead of
//! dropping.
//!
//! A VM counts as ended only when its recordings are written: after
//! [`VmHandle::wait`](crate::VmHandle::wait) the file is complete.

mod writer;

use std::path::{Path, PathBuf};

use capsa_proto::capabilities::{Violation, ViolationKind};

use crate::{ConsoleMode, Error, LinuxVmBuilder, Result};

pub use writer::CastWriter;

/// A recording to make: an asciicast v2 file.
///
/// The guest's output is stored as `"o"` events, starting with the output that the scrollback still
/// holds when the recording begins. Bytes that are not UTF-8 appear as U+FFFD in players; an event
/// `"bytes"` before them holds the exact bytes in hexadecimal, and players skip it.
///
/// Input is recorded [on request](Recording::with_input). A password that
/// [`login`](crate::VmConsole::login) types is never recorded: the recording notes only that a line
/// was typed. Other input is recorded as it is, passwords included.
///
/// An existing file is overwritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    path: PathBuf,
    input: bool,
}

impl Recording {
    /// A recording of the guest's output.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), input: false }
    }

    /// Also records input and presses of the power button. A replay needs this to know what the
    /// guest reacted to, and to compare the input of the program under test.
    #[must_use]
    pub fn with_input(mut self) -> Self {
        self.input = true;
        self
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl<P: Into<PathBuf>> From<P> for Recording {
    fn from(path: P) -> Self {
        Self::new(path)
    }
}

impl LinuxVmBuilder {
    /// Records the console to a file from its first byte; see [`Recording`]. Needs a console.
    #[cfg_attr(docsrs, doc(cfg(feature = "recording")))]
    pub fn record(mut self, recording: impl Into<Recording>) -> Self {
        self.recording = Some(recording.into());
        self
    }

    /// A recording needs a console.
    pub(crate) fn recording_violation(&self) -> Option<Violation> {
        let is_unread = |_: &&Recording| self.console == ConsoleMode::Disabled;
        self.recording.as_ref().filter(is_unread).map(|_| {
            Violation::new(
                "record",
                ViolationKind::NotGiven,
                "a recording needs a console, and the VM has none",
                "enable the console",
            )
        })
    }

    /// A recording needs a thread.
    pub(crate) fn reject_recording(&self) -> Result<()> {
        if self.recording.is_none() {
            return Ok(());
        }
        Err(Error::from_violations(vec![Violation::new(
            "record",
            ViolationKind::Unsupported,
            "a VM in the caller's event loop has no thread to write a recording",
            "read the console with a reader and write it with `recording::CastWriter`",
        )]))
    }
}

#[cfg(feature = "async")]
pub(crate) use recorder::Recorder;

#[cfg(feature = "async")]
mod recorder {
    use std::collections::VecDeque;
    use std::fs::File;
    use std::future::poll_fn;
    use std::io::{self, BufWriter};
    use std::sync::Arc;
    use std::task::Poll;
    use std::time::Duration;

    use capsa_io::context;
    use capsa_proto::console::{InputRecord, RecordedInput};
    use capsa_proto::time::Instant;
    use futures_lite::AsyncReadExt;
    use futures_lite::future::block_on;

    use super::{CastWriter, Recording};
    use crate::console::ConsoleReader;
    use crate::driver::{Shared, Waiter};
    use crate::embed::{ReaderId, Vm};
    use crate::{Error, Result};

    impl Recording {
        /// Creates the file.
        pub(crate) fn create(&self) -> Result<Recorder> {
            let file = File::create(&self.path).map_err(|error| {
                let what = format!("cannot create the recording {}", self.path.display());
                Error::Io(context::failed(what, error))
            })?;
            Ok(Recorder { recording: self.clone(), file })
        }
    }

    impl Vm {
        /// The number of bytes of output that precede the next byte of this reader.
        fn offset(&mut self, reader: ReaderId) -> u64 {
            self.with_console(|console, _, _| console.offset(reader))
        }

        /// Keeps what is written from now on for this reader, until it takes it.
        fn log_input(&mut self, reader: ReaderId) {
            self.with_console(|console, _, _| console.log_input(reader));
        }

        /// Takes what was written since the last call.
        fn take_input_log(&mut self, reader: ReaderId) -> VecDeque<InputRecord> {
            self.with_console(|console, _, _| console.take_input_log(reader))
        }
    }

    /// An open file for a recording.
    #[derive(Debug)]
    pub(crate) struct Recorder {
        recording: Recording,
        file: File,
    }

    impl Recorder {
        /// Records from the oldest kept byte until the VM has ended.
        pub(crate) fn begin(self, shared: &Arc<Shared>) -> Result<()> {
            let reader = ConsoleReader::observer(Arc::clone(shared));
            if self.recording.input {
                shared.lock().vm.log_input(reader.id());
            }
            shared.lock().relays += 1;
            let vm = Arc::clone(shared);
            let attached = shared.lock().vm.now();
            let spawned =
                std::thread::Builder::new().name("capsa-record".into()).spawn(move || {
                    let path = self.recording.path;
                    let file = CastWriter::new(BufWriter::new(self.file), (80, 24));
                    let recorded = file.and_then(|file| {
                        let typed = VecDeque::new();
                        let recorder = ConsoleRecorder { file, attached, origin: None, typed };
                        recorder.record(&vm, reader)
                    });
                    if let Err(error) = recorded {
                        tracing::error!("recording {} is incomplete: {error}", path.display());
                    }
                    vm.relay_finished();
                });
            if let Err(error) = spawned {
                shared.relay_finished();
                return Err(error.into());
            }
            Ok(())
        }
    }

    /// A recording in progress.
    struct ConsoleRecorder {
        file: CastWriter<BufWriter<File>>,
        attached: Instant,
        /// The origin of the time stamps.
        origin: Option<Instant>,
        /// Input records whose position the recorded output has not reached yet.
        typed: VecDeque<InputRecord>,
    }

    impl ConsoleRecorder {
        fn record(mut self, vm: &Arc<Shared>, mut reader: ConsoleReader) -> io::Result<()> {
            let mut chunk = vec![0; 16 * 1024];
            let mut lost = 0;
            loop {
                self.file.flush()?;
                let n = block_on(reader.read(&mut chunk))?;
                let (now, end, lost_now) = {
                    let mut state = vm.lock();
                    self.begin_at(state.started);
                    let (vm, id) = (&mut state.vm, reader.id());
                    self.typed.extend(vm.take_input_log(id));
                    (vm.now(), vm.offset(id), vm.lost(id))
                };
                if lost_now > lost {
                    let missing = lost_now - lost;
                    let text = format!("{missing} bytes of output were not recorded here");
                    self.file.remark(self.time(now), &text)?;
                    lost = lost_now;
                }
                self.output(now, end, &chunk[..n])?;
                if n == 0 {
                    return self.finish(vm);
                }
            }
        }

        /// Sets the origin of time stamps: the start of the VM, or the beginning of the recording
        /// if that is later.
        fn begin_at(&mut self, started: Option<Instant>) {
            let started = started.map_or(self.attached, |started| started.max(self.attached));
            self.origin.get_or_insert(started);
        }

        fn time(&self, at: Instant) -> Duration {
            at.since(self.origin.unwrap_or(self.attached))
        }

        /// Records output up to offset `end`, and the input records inside it.
        fn output(&mut self, now: Instant, end: u64, mut bytes: &[u8]) -> io::Result<()> {
            while self.typed.front().is_some_and(|typed| typed.after <= end)
                && let Some(typed) = self.typed.pop_front()
            {
                let left = usize::try_from(end - typed.after).unwrap_or(usize::MAX);
                let (before, after) = bytes.split_at(bytes.len().saturating_sub(left));
                bytes = after;
                // Output that precedes an input record cannot have a later time stamp.
                self.file.output(self.time(now.min(typed.at)), before)?;
                let at = self.time(typed.at);
                match typed.what {
                    RecordedInput::Bytes(bytes) => self.file.input(at, &bytes),
                    RecordedInput::Secret => self.file.secret(at),
                    RecordedInput::PowerButton => self.file.power_button(at),
                    RecordedInput::Lost(n) => {
                        self.file.remark(at, &format!("{n} bytes of input were not recorded here"))
                    }
                }?;
            }
            self.file.output(self.time(now), bytes)
        }

        /// Waits for the end of the VM and records how it ended.
        fn finish(&mut self, vm: &Arc<Shared>) -> io::Result<()> {
            let waiter = Waiter::for_status(vm)?;
            let ended_by: io::Result<_> = block_on(poll_fn(|cx| {
                let mut state = vm.lock();
                match state.vm.stop_report() {
                    Some(report) => Poll::Ready(Ok(report.ended_by)),
                    None => waiter.wait(&mut state, cx),
                }
            }));
            let ended_by = ended_by?;
            let now = vm.lock().vm.now();
            self.file.end(self.time(now), Some(&ended_by))
        }
    }
}
