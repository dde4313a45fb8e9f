//! Moves bytes between a VM's console and its stream. What the bytes mean is decided in
//! [`ConsoleMux`].

use std::io;

use capsa_proto::console::{ConsoleMux, DRAIN_LIMIT, Overflow};
use capsa_proto::time::Instant;
use capsa_proto::vm::EventQueue;

use crate::stream::{ByteStream, ReadResult};
use crate::sys::{Poll, PollSource};

/// The largest number of bytes read from the guest in one `on_ready` call.
pub const READ_BUDGET: usize = 256 * 1024;

/// What one call found on the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ConsoleActivity {
    /// A line of a kernel panic was read.
    pub(crate) panic: bool,
    /// The read budget was exhausted: there may be more output.
    pub(crate) more: bool,
}

/// The console's stream: a socket or a pty, connected or not.
#[derive(Debug, Default)]
pub(crate) struct ConsoleStream(Option<PollSource<ByteStream>>);

impl ConsoleStream {
    /// Connects `console` to `stream`.
    pub(crate) fn attach(
        &mut self,
        console: &mut ConsoleMux,
        stream: ByteStream,
        poll: &Poll,
        key: usize,
    ) -> io::Result<()> {
        self.0 = Some(poll.add(stream, key)?);
        console.handle_connected();
        self.sync(console);
        Ok(())
    }

    /// Writes queued input and watches the stream for what the console waits for. To be called after
    /// every change of the console. In a forked child it does nothing: the input is the parent's.
    pub(crate) fn sync(&mut self, console: &mut ConsoleMux) {
        let Some(stream) = self.0.as_mut().filter(|stream| stream.is_same_process()) else {
            return;
        };
        stream.io().write_from(console.outgoing());
        if let Err(error) = stream.set_interest(console.window() > 0, console.wants_write()) {
            tracing::warn!("cannot watch the console: {error}");
            self.0 = None;
            console.disconnect();
        }
    }

    /// Moves bytes both ways, reading at most `budget` bytes.
    pub(crate) fn on_ready(
        &mut self,
        console: &mut ConsoleMux,
        now: Instant,
        budget: &mut usize,
        events: &mut EventQueue,
    ) -> ConsoleActivity {
        let mut activity = ConsoleActivity::default();
        self.sync(console);
        console.handle_writable(events);
        let mut chunk = [0; 8192];
        while let Some(stream) = &mut self.0 {
            let window = console.window().min(chunk.len());
            let room = window.min(*budget);
            activity.more = room < window && room == 0;
            if room == 0 {
                break;
            }
            match stream.io().read(&mut chunk[..room]) {
                ReadResult::NothingYet => break,
                ReadResult::Bytes(n) => {
                    *budget -= n;
                    activity.panic |= console.handle_bytes(now, &chunk[..n], events);
                }
                ReadResult::Closed => {
                    self.0 = None;
                    console.handle_eof(now, events);
                }
            }
            self.sync(console);
        }
        self.sync(console);
        activity
    }

    /// Closes the console of a VM that has ended. First it reads what back-pressure has left in the
    /// system: as much as a socket or a pty holds.
    pub(crate) fn close(
        &mut self,
        console: &mut ConsoleMux,
        now: Instant,
        events: &mut EventQueue,
    ) {
        let mut chunk = [0; 8192];
        let mut left = match console.scrollback().overflow() {
            Overflow::Pause => DRAIN_LIMIT,
            Overflow::DropOldest => 0,
        };
        while let Some(stream) = &mut self.0
            && left > 0
            && let room = left.min(chunk.len())
            && let ReadResult::Bytes(n) = stream.io().read(&mut chunk[..room])
        {
            left -= n;
            console.handle_rest(&chunk[..n]);
        }
        self.0 = None;
        console.close(now, events);
    }

    /// Closes the stream without notifying a wait.
    pub(crate) fn detach(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ReadyEvents;
    use capsa_proto::console::WRITE_QUEUE;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    const KEY: usize = 7;

    struct Setup {
        poll: Poll,
        ready: ReadyEvents,
        console: ConsoleMux,
        stream: ConsoleStream,
        guest: UnixStream,
        events: EventQueue,
    }

    impl Setup {
        fn new(mut console: ConsoleMux) -> Self {
            let poll = Poll::new().unwrap();
            let mut stream = ConsoleStream::default();
            let (ours, guest) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            stream.attach(&mut console, ByteStream::Socket(ours), &poll, KEY).unwrap();
            let events = EventQueue::default();
            Self { poll, ready: ReadyEvents::new(), console, stream, guest, events }
        }

        /// Whether the poller reported the console, and how much output it has then.
        fn on_ready(&mut self) -> (bool, u64) {
            self.poll.wait(Some(Duration::ZERO), &mut self.ready).unwrap();
            let Self { console, stream, events, .. } = self;
            stream.on_ready(console, Instant::ZERO, &mut 100, events);
            (self.ready.has(KEY), console.scrollback().end())
        }
    }

    #[test]
    fn paused_console_leaves_output_in_the_socket() {
        let mut setup = Setup::new(ConsoleMux::new(8, Overflow::Pause));
        setup.guest.write_all(b"more than there is room for").unwrap();
        assert_eq!(setup.on_ready(), (true, 8));
        assert_eq!(setup.on_ready(), (false, 8), "no reader has made room");
        setup.console.release_back_pressure();
        setup.stream.sync(&mut setup.console);
        assert_eq!(setup.on_ready(), (true, 27));
        assert_eq!(setup.console.scrollback().start(), 0, "no byte is lost");
        setup.stream.detach();
        assert_eq!(setup.guest.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn close_reads_what_back_pressure_left_behind() {
        let mut setup = Setup::new(ConsoleMux::new(8, Overflow::Pause));
        setup.guest.write_all(b"more than there is room for").unwrap();
        assert_eq!(setup.on_ready(), (true, 8));
        let Setup { console, stream, events, .. } = &mut setup;
        stream.close(console, Instant::ZERO, events);
        assert_eq!((console.scrollback().start(), console.scrollback().end()), (0, 27));
        assert!(console.is_closed());
    }

    #[test]
    fn blocked_writer_makes_the_poller_report_room() {
        let mut console = ConsoleMux::new(1, Overflow::DropOldest);
        let too_much = vec![b'x'; WRITE_QUEUE + 1];
        assert_eq!(console.write(Instant::ZERO, &too_much).unwrap(), WRITE_QUEUE);
        assert_eq!(console.write(Instant::ZERO, b"y").unwrap(), 0, "the queue is full");
        let mut setup = Setup::new(console);
        // Each time the guest reads, the queue drains without a report of the poller.
        let mut chunk = vec![0; WRITE_QUEUE];
        while !setup.console.outgoing().is_empty() {
            assert_ne!(setup.guest.read(&mut chunk).unwrap(), 0);
            setup.stream.sync(&mut setup.console);
        }
        assert!(setup.on_ready().0, "the writer would wait forever");
        assert_eq!(setup.events.pop(), Some(capsa_proto::vm::VmEvent::ConsoleWritable));
        assert!(!setup.on_ready().0, "no writer waits any more");
    }
}
