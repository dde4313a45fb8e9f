//! Writes the console to files: `--log` with its bytes, and `--record` as an asciicast.
//!
//! If a file cannot be written, it is closed with an error message, and the VM keeps running.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use capsa::embed::{ReaderId, Vm};
use capsa::{EndedBy, StopReport};
use capsa_proto::codec::asciicast::{CastHeader, Encoder, RecordedEnd};
use rustix::termios::tcgetwinsize;

use crate::failure::{CONFIG, CliError};
use crate::reporter::Reporter;

/// The log and the recording of a run.
#[derive(Debug)]
pub(crate) struct FileRecorder {
    reader: ReaderId,
    begin: Instant,
    log: Option<BufWriter<File>>,
    cast: Option<(BufWriter<File>, Encoder)>,
}

impl FileRecorder {
    /// Creates the files; `None` where there is no path.
    pub(crate) fn create(
        log: Option<&Path>,
        record: Option<&Path>,
        vm: &mut Vm,
    ) -> Result<Option<Self>, CliError> {
        if log.is_none() && record.is_none() {
            return Ok(None);
        }
        let create = |path: &Path| {
            File::create(path).map(BufWriter::new).map_err(|error| {
                CliError::new(CONFIG, format!("cannot write {}: {error}", path.display()))
            })
        };
        let log = log.map(create).transpose()?;
        let cast = record.map(create).transpose()?.map(|file| (file, Encoder::new()));
        Ok(Some(Self { reader: vm.add_reader(), begin: Instant::now(), log, cast }))
    }

    /// Writes the recording's header. Its times count from here.
    pub(crate) fn begin(&mut self, reporter: &Reporter) {
        self.begin = Instant::now();
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut header = CastHeader {
            timestamp: since_epoch.ok().map(|time| time.as_secs()),
            ..CastHeader::default()
        };
        if let Ok(size) = tcgetwinsize(io::stdin())
            && size.ws_col > 0
            && size.ws_row > 0
        {
            (header.width, header.height) = (size.ws_col, size.ws_row);
        }
        self.write(reporter, |encoder, _| encoder.header(&header));
    }

    /// Records the console output since the last call.
    pub(crate) fn record_output(&mut self, vm: &mut Vm, reporter: &Reporter) {
        let bytes = vm.take(self.reader);
        if bytes.is_empty() {
            return;
        }
        if let Some(log) = &mut self.log
            && let Err(error) = log.write_all(&bytes).and_then(|()| log.flush())
        {
            self.log = None;
            reporter.error(&format!("the console log is incomplete, cannot write it: {error}"));
        }
        self.write(reporter, |encoder, at| encoder.output(at, &bytes));
    }

    /// Records console input.
    pub(crate) fn record_input(&mut self, bytes: &[u8], reporter: &Reporter) {
        self.write(reporter, |encoder, at| encoder.input(at, bytes));
    }

    /// Writes the recording's end.
    pub(crate) fn finish(&mut self, report: Option<&StopReport>, reporter: &Reporter) {
        let end = match report.map(|report| &report.ended_by) {
            Some(EndedBy::GuestPowerOff) => RecordedEnd::PoweredOff,
            Some(EndedBy::GuestReboot) => RecordedEnd::Reset,
            Some(EndedBy::GuestPanic) => RecordedEnd::Panicked,
            _ => RecordedEnd::Cut,
        };
        self.write(reporter, |encoder, at| encoder.finish() + &encoder.end(at, end));
    }

    fn write(&mut self, reporter: &Reporter, line: impl FnOnce(&mut Encoder, Duration) -> String) {
        let Some((file, encoder)) = &mut self.cast else { return };
        let line = line(encoder, self.begin.elapsed());
        if let Err(error) = file.write_all(line.as_bytes()).and_then(|()| file.flush()) {
            self.cast = None;
            reporter.error(&format!("the recording is incomplete, cannot write it: {error}"));
        }
    }
}
