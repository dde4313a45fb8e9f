//! Recording a console to a file that the usual players play, and [`testing`](crate::testing) replays.
//!
//! A thread of its own writes, one for each recording: neither the thread that drives the machines
//! nor the guest waits for a disk. It is a reader of the console like any other, so what waits to be
//! written is what the scrollback keeps: a disk that is slower than the guest for longer than that
//! loses bytes, and the recording says where and how many (or, where the scrollback pauses instead
//! of dropping, the guest waits).
//!
//! A machine counts as over when its recordings have been written: after
//! [`VmHandle::wait`](crate::VmHandle::wait) the file is whole.

use std::path::{Path, PathBuf};

/// A recording to make: an asciicast v2 file.
///
/// The guest's output comes as `"o"` events, the beginning of which is what the scrollback still
/// had when the recording began. Bytes that are not UTF-8 show as U+FFFD in players; the very bytes
/// are in an event of ours before, which players pass over: see [`asciicast`](crate::asciicast).
///
/// Input is recorded [when asked](Recording::with_input). A password that
/// [`login`](crate::VmConsole::login) types never is: the recording says that a line was typed, not
/// which. What a program types itself, a password or not, is recorded as it is.
///
/// A file that is there is overwritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    path: PathBuf,
    input: bool,
}

impl Recording {
    /// A recording of what the guest says.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), input: false }
    }

    /// Also of what is typed, and of when the power button was pressed. A replay needs this to know
    /// what the guest answered to, and to check what is typed to it.
    #[must_use]
    pub fn with_input(mut self) -> Self {
        self.input = true;
        self
    }

    /// Where it goes.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl<P: Into<PathBuf>> From<P> for Recording {
    fn from(path: P) -> Self {
        Self::new(path)
    }
}

#[cfg(feature = "async")]
pub(crate) use recorder::Recorder;

#[cfg(feature = "async")]
mod recorder {
    use std::collections::VecDeque;
    use std::fs::File;
    use std::future::poll_fn;
    use std::io::{self, BufWriter, Write};
    use std::sync::Arc;
    use std::task::Poll;
    use std::time::{Duration, Instant, SystemTime};

    use capsa_io::input_log::{InputRecord, RecordedInput};
    use capsa_proto::codec::asciicast::{CastHeader, Encoder, RecordedEnd};
    use futures_lite::AsyncReadExt;
    use futures_lite::future::block_on;

    use super::Recording;
    use crate::console::ConsoleReader;
    use crate::driver::{Shared, StatusWaiter};
    use crate::{EndedBy, Error, Result};

    impl Recording {
        /// Makes the file.
        pub(crate) fn create(&self) -> Result<Recorder> {
            let file = File::create(&self.path).map_err(|error| {
                let what = format!("cannot create the recording {}: {error}", self.path.display());
                Error::Io(io::Error::new(error.kind(), what))
            })?;
            Ok(Recorder { recording: self.clone(), file })
        }
    }

    /// A file to record to.
    #[derive(Debug)]
    pub(crate) struct Recorder {
        recording: Recording,
        file: File,
    }

    impl Recorder {
        /// Records from the oldest byte that is kept until the machine is over.
        pub(crate) fn begin(self, shared: &Arc<Shared>) -> Result<()> {
            let reader = ConsoleReader::observer(Arc::clone(shared));
            if self.recording.input {
                shared.lock().vm.supervisor().console_mut().log_input(reader.id());
            }
            shared.lock().relays += 1;
            let vm = Arc::clone(shared);
            let attached = Instant::now();
            let spawned =
                std::thread::Builder::new().name("capsa-record".into()).spawn(move || {
                    let path = self.recording.path;
                    let mut tape = ConsoleRecorder {
                        file: BufWriter::new(self.file),
                        encoder: Encoder::new(),
                        attached,
                        origin: None,
                        typed: VecDeque::new(),
                    };
                    if let Err(error) = tape.record(&vm, reader) {
                        tracing::error!("the recording {} is not whole: {error}", path.display());
                    }
                    let wakers = vm.lock().relayed();
                    wakers.into_iter().for_each(std::task::Waker::wake);
                });
            if let Err(error) = spawned {
                shared.lock().relayed();
                return Err(error.into());
            }
            Ok(())
        }
    }

    /// A recording under way.
    struct ConsoleRecorder {
        file: BufWriter<File>,
        encoder: Encoder,
        attached: Instant,
        /// The moment from which its times count.
        origin: Option<Instant>,
        /// Typed, at a place that the output has not come to.
        typed: VecDeque<InputRecord>,
    }

    impl ConsoleRecorder {
        fn record(&mut self, vm: &Arc<Shared>, mut reader: ConsoleReader) -> io::Result<()> {
            let timestamp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let timestamp = timestamp.ok().map(|since| since.as_secs());
            let header = self.encoder.header(&CastHeader { timestamp, ..CastHeader::default() });
            self.file.write_all(header.as_bytes())?;
            let mut chunk = vec![0; 16 * 1024];
            let mut lost = 0;
            loop {
                self.file.flush()?;
                let n = block_on(reader.read(&mut chunk))?;
                let now = Instant::now();
                let (end, lost_now) = {
                    let mut state = vm.lock();
                    self.begin_at(state.started);
                    let console = state.vm.supervisor().console_mut();
                    self.typed.extend(console.take_input_log(reader.id()));
                    (console.offset(reader.id()), console.lost(reader.id()))
                };
                if lost_now > lost {
                    let missing = lost_now - lost;
                    self.remark(now, &format!("{missing} bytes of output were not recorded here"))?;
                    lost = lost_now;
                }
                self.output(now, end, &chunk[..n])?;
                if n == 0 {
                    return self.finish(vm);
                }
            }
        }

        /// Times count from the start of the machine, or from when the recording began where that
        /// was later.
        fn begin_at(&mut self, started: Option<Instant>) {
            let started = started.map_or(self.attached, |started| started.max(self.attached));
            self.origin.get_or_insert(started);
        }

        fn time(&self, at: Instant) -> Duration {
            at.saturating_duration_since(self.origin.unwrap_or(self.attached))
        }

        /// Output up to the place `end`, and what was typed in it.
        fn output(&mut self, now: Instant, end: u64, mut bytes: &[u8]) -> io::Result<()> {
            while self.typed.front().is_some_and(|typed| typed.after <= end)
                && let Some(typed) = self.typed.pop_front()
            {
                let left = usize::try_from(end - typed.after).unwrap_or(usize::MAX);
                let (before, after) = bytes.split_at(bytes.len().saturating_sub(left));
                bytes = after;
                // It cannot have been said later than what was typed after it.
                let line = self.encoder.output(self.time(now.min(typed.at)), before);
                self.file.write_all(line.as_bytes())?;
                let at = self.time(typed.at);
                let line = match typed.what {
                    RecordedInput::Bytes(bytes) => self.encoder.input(at, &bytes),
                    RecordedInput::Secret => self.encoder.secret(at),
                    RecordedInput::PowerButton => self.encoder.power_button(at),
                    RecordedInput::Lost(n) => {
                        self.encoder.marker(at, &format!("{n} bytes typed were not recorded here"))
                    }
                };
                self.file.write_all(line.as_bytes())?;
            }
            let line = self.encoder.output(self.time(now), bytes);
            self.file.write_all(line.as_bytes())
        }

        fn remark(&mut self, now: Instant, text: &str) -> io::Result<()> {
            let line = self.encoder.marker(self.time(now), text);
            self.file.write_all(line.as_bytes())
        }

        /// Waits for the machine's end, and says what it was.
        fn finish(&mut self, vm: &Arc<Shared>) -> io::Result<()> {
            let waiting = StatusWaiter::for_status(vm);
            let ended_by = block_on(poll_fn(|cx| {
                let mut state = vm.lock();
                match state.vm.stop_report() {
                    Some(report) => Poll::Ready(report.ended_by),
                    None => {
                        waiting.register_waker(&mut state, cx.waker());
                        Poll::Pending
                    }
                }
            }));
            let end = match ended_by {
                EndedBy::GuestPowerOff => RecordedEnd::PoweredOff,
                EndedBy::GuestReboot => RecordedEnd::Reset,
                EndedBy::GuestPanic => RecordedEnd::Panicked,
                _ => RecordedEnd::Cut,
            };
            let rest = self.encoder.finish();
            self.file.write_all(rest.as_bytes())?;
            let line = self.encoder.end(self.time(Instant::now()), end);
            self.file.write_all(line.as_bytes())?;
            self.file.flush()
        }
    }
}
