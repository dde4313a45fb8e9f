//! The files that keep a console: `--log`, its bytes, and `--record`, an asciicast.
//!
//! A file that cannot be written any more costs a warning and is given up; the machine goes on.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use capsa::asciicast::{CastHeader, Encoder, RecordedEnd};
use capsa::embed::{ReaderId, Vm};
use capsa::{EndedBy, StopReport};
use rustix::termios::tcgetwinsize;

use crate::failure::{CONFIG, Failure};
use crate::voice::Voice;

/// What is kept of a console.
#[derive(Debug)]
pub(crate) struct Tape {
    reader: ReaderId,
    begin: Instant,
    log: Option<BufWriter<File>>,
    cast: Option<(BufWriter<File>, Encoder)>,
}

impl Tape {
    /// Makes the files; nothing where none is wanted.
    pub(crate) fn new(
        log: Option<&Path>,
        record: Option<&Path>,
        vm: &mut Vm,
    ) -> Result<Option<Self>, Failure> {
        if log.is_none() && record.is_none() {
            return Ok(None);
        }
        let create = |path: &Path| {
            File::create(path).map(BufWriter::new).map_err(|error| {
                Failure::new(CONFIG, format!("cannot write {}: {error}", path.display()))
            })
        };
        let log = log.map(create).transpose()?;
        let cast = record.map(create).transpose()?.map(|file| (file, Encoder::new()));
        Ok(Some(Self { reader: vm.add_reader(), begin: Instant::now(), log, cast }))
    }

    /// Writes the recording's first line. Its times count from here.
    pub(crate) fn begin(&mut self, voice: &Voice) {
        self.begin = Instant::now();
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut header = CastHeader {
            timestamp: since.ok().map(|since| since.as_secs()),
            ..CastHeader::default()
        };
        if let Ok(size) = tcgetwinsize(io::stdin())
            && size.ws_col > 0
            && size.ws_row > 0
        {
            (header.width, header.height) = (size.ws_col, size.ws_row);
        }
        self.write(voice, |encoder, _| encoder.header(&header));
    }

    /// Keeps what the guest has said since.
    pub(crate) fn carry(&mut self, vm: &mut Vm, voice: &Voice) {
        let bytes = vm.take(self.reader);
        if bytes.is_empty() {
            return;
        }
        if let Some(log) = &mut self.log
            && let Err(error) = log.write_all(&bytes).and_then(|()| log.flush())
        {
            self.log = None;
            voice.fail(&format!("the console is not logged any more: {error}"));
        }
        self.write(voice, |encoder, at| encoder.output(at, &bytes));
    }

    /// Keeps what was typed.
    pub(crate) fn typed(&mut self, bytes: &[u8], voice: &Voice) {
        self.write(voice, |encoder, at| encoder.input(at, bytes));
    }

    /// Writes what is left.
    pub(crate) fn finish(&mut self, report: Option<&StopReport>, voice: &Voice) {
        let end = match report.map(|report| &report.ended_by) {
            Some(EndedBy::GuestPowerOff) => RecordedEnd::PoweredOff,
            Some(EndedBy::GuestReboot) => RecordedEnd::Reset,
            Some(EndedBy::GuestPanic) => RecordedEnd::Panicked,
            _ => RecordedEnd::Cut,
        };
        self.write(voice, |encoder, at| encoder.finish() + &encoder.end(at, end));
    }

    fn write(&mut self, voice: &Voice, line: impl FnOnce(&mut Encoder, Duration) -> String) {
        let Some((file, encoder)) = &mut self.cast else { return };
        let line = line(encoder, self.begin.elapsed());
        if let Err(error) = file.write_all(line.as_bytes()).and_then(|()| file.flush()) {
            self.cast = None;
            voice.fail(&format!("the recording is not whole: {error}"));
        }
    }
}
