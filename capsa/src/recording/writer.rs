//! [`CastWriter`]: writes a recording event by event.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use capsa_proto::codec::asciicast::{CastHeader, Encoder, RecordedEnd};

use crate::EndedBy;

/// Writes a recording event by event, for a program that reads the console itself, such as the owner
/// of an [`embed::Vm`](crate::embed::Vm).
///
/// It writes an asciicast v2 file, which players play and
/// [`testing::recording`](crate::testing::recording) replays. The time of an event counts from the
/// beginning of the recording and must not decrease. Each call writes to `W` at once, so a slow disk
/// delays the caller; use a [`BufWriter`](io::BufWriter) and [`flush`](Self::flush).
///
/// ```
/// use std::time::Duration;
/// use capsa::EndedBy;
/// use capsa::recording::CastWriter;
///
/// # fn main() -> std::io::Result<()> {
/// let mut file = Vec::new();
/// let mut recording = CastWriter::new(&mut file, (80, 24))?;
/// recording.output(Duration::from_millis(1500), b"login: ")?;
/// recording.input(Duration::from_secs(2), b"root\r")?;
/// recording.end(Duration::from_secs(9), Some(&EndedBy::GuestPowerOff))?;
/// let events = std::str::from_utf8(&file).unwrap().lines().skip(1);
/// assert!(events.eq([
///     r#"[1.500000,"o","login: "]"#,
///     r#"[2.000000,"i","root\r"]"#,
///     r#"[9.000000,"end","powered off"]"#,
/// ]));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CastWriter<W: Write> {
    to: W,
    encoder: Encoder,
}

impl<W: Write> CastWriter<W> {
    /// Begins a recording now. `size` is the width and the height of the terminal, for players.
    ///
    /// # Errors
    ///
    /// Those of `to`.
    pub fn new(to: W, (width, height): (u16, u16)) -> io::Result<Self> {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let timestamp = since_epoch.ok().map(|time| time.as_secs());
        let mut writer = Self { to, encoder: Encoder::new() };
        let header = CastHeader { width, height, timestamp, ..CastHeader::default() };
        writer.write(|encoder| encoder.header(&header))?;
        Ok(writer)
    }

    /// Writes output of the guest.
    ///
    /// # Errors
    ///
    /// Those of the writer, as for all methods.
    pub fn output(&mut self, at: Duration, bytes: &[u8]) -> io::Result<()> {
        self.write(|encoder| encoder.output(at, bytes))
    }

    /// Writes input of the console.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn input(&mut self, at: Duration, bytes: &[u8]) -> io::Result<()> {
        self.write(|encoder| encoder.input(at, bytes))
    }

    /// Notes that a line was typed that must not be recorded, such as a password.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn secret(&mut self, at: Duration) -> io::Result<()> {
        self.write(|encoder| encoder.secret(at))
    }

    /// Notes that the power button was pressed.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn power_button(&mut self, at: Duration) -> io::Result<()> {
        self.write(|encoder| encoder.power_button(at))
    }

    /// Writes a remark, which players may show.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn remark(&mut self, at: Duration, text: &str) -> io::Result<()> {
        self.write(|encoder| encoder.marker(at, text))
    }

    /// Writes how the VM ended, and flushes. `None`: the recording ends before the VM.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn end(&mut self, at: Duration, ended_by: Option<&EndedBy>) -> io::Result<()> {
        let end = match ended_by {
            Some(EndedBy::GuestPowerOff) => RecordedEnd::PoweredOff,
            Some(EndedBy::GuestReboot) => RecordedEnd::Reset,
            Some(EndedBy::GuestPanic) => RecordedEnd::Panicked,
            _ => RecordedEnd::Cut,
        };
        self.write(|encoder| encoder.finish() + &encoder.end(at, end))?;
        self.flush()
    }

    /// Flushes the writer.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    fn write(&mut self, line: impl FnOnce(&mut Encoder) -> String) -> io::Result<()> {
        self.to.write_all(line(&mut self.encoder).as_bytes())
    }
}
