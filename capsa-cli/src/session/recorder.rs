//! Writes the console to files: `--log` with its bytes, and `--record` as an asciicast.
//!
//! If a file cannot be written, it is closed with an error message, and the VM keeps running.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use capsa::StopReport;
use capsa::embed::{ReaderId, Vm};
use capsa::recording::CastWriter;
use rustix::termios::tcgetwinsize;

use crate::failure::{CONFIG, CliError};
use crate::reporter::Reporter;

/// The log and the recording of a run.
#[derive(Debug)]
pub(crate) struct FileRecorder {
    reader: ReaderId,
    begin: Instant,
    log: Option<BufWriter<File>>,
    cast: Option<CastFile>,
}

/// The file of the recording.
#[derive(Debug)]
enum CastFile {
    Created(File),
    Begun(CastWriter<BufWriter<File>>),
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
            File::create(path).map_err(|error| {
                CliError::new(CONFIG, format!("cannot write {}: {error}", path.display()))
            })
        };
        let log = log.map(create).transpose()?.map(BufWriter::new);
        let cast = record.map(create).transpose()?.map(CastFile::Created);
        Ok(Some(Self { reader: vm.add_reader(), begin: Instant::now(), log, cast }))
    }

    /// Begins the recording. Its times count from here.
    pub(crate) fn begin(&mut self, reporter: &Reporter) {
        self.begin = Instant::now();
        let Some(CastFile::Created(file)) = self.cast.take() else { return };
        let size = tcgetwinsize(io::stdin()).map(|size| (size.ws_col, size.ws_row));
        let size = size.ok().filter(|(columns, rows)| *columns > 0 && *rows > 0);
        match CastWriter::new(BufWriter::new(file), size.unwrap_or((80, 24))) {
            Ok(writer) => self.cast = Some(CastFile::Begun(writer)),
            Err(error) => report_incomplete(reporter, &error),
        }
        self.write(reporter, |cast, _| cast.flush());
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
        self.write(reporter, |cast, at| cast.output(at, &bytes));
    }

    /// Records console input.
    pub(crate) fn record_input(&mut self, bytes: &[u8], reporter: &Reporter) {
        self.write(reporter, |cast, at| cast.input(at, bytes));
    }

    /// Writes the recording's end.
    pub(crate) fn finish(&mut self, report: Option<&StopReport>, reporter: &Reporter) {
        let ended_by = report.map(|report| &report.ended_by);
        self.write(reporter, |cast, at| cast.end(at, ended_by));
    }

    fn write(
        &mut self,
        reporter: &Reporter,
        event: impl FnOnce(&mut CastWriter<BufWriter<File>>, Duration) -> io::Result<()>,
    ) {
        let Some(CastFile::Begun(cast)) = &mut self.cast else { return };
        if let Err(error) = event(cast, self.begin.elapsed()).and_then(|()| cast.flush()) {
            self.cast = None;
            report_incomplete(reporter, &error);
        }
    }
}

fn report_incomplete(reporter: &Reporter, error: &io::Error) {
    reporter.error(&format!("the recording is incomplete, cannot write it: {error}"));
}
