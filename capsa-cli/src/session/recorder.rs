//! Writes the console to files: `--log` with its bytes, and `--record` as an asciicast.
//!
//! If a file cannot be written, it is closed with an error message, and the VM keeps running. A log that is a
//! FIFO needs no reader at the start; a stalled reader delays only the log, and the guest if the scrollback
//! pauses it.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use capsa::StopReport;
use capsa::embed::{ReaderId, Vm};
use capsa::recording::CastWriter;
use nix::fcntl::OFlag;
use rustix::termios::tcgetwinsize;

use crate::failure::{CONFIG, CliError};
use crate::reporter::Reporter;
use crate::stdio::output::OutputWriter;
use crate::stdio::poll_set::PollSet;

/// How long a FIFO may accept nothing at the end.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The log and the recording of a run.
#[derive(Debug)]
pub(crate) struct FileRecorder {
    reader: ReaderId,
    begin: Instant,
    log: Option<LogFile>,
    cast: Option<CastFile>,
}

/// The file of the log.
#[derive(Debug)]
enum LogFile {
    File(BufWriter<File>),
    Fifo(OutputWriter),
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
        let unwritable = |path: &Path, error: &io::Error| {
            CliError::new(CONFIG, format!("cannot write {}: {error}", path.display()))
        };
        let create = |path: &Path| File::create(path).map_err(|error| unwritable(path, &error));
        let log =
            log.map(|path| match path.metadata().is_ok_and(|log| log.file_type().is_fifo()) {
                false => create(path).map(|file| LogFile::File(BufWriter::new(file))),
                true => {
                    // Opened for reading too, it needs no reader.
                    let mut options = File::options();
                    options.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
                    let fifo = options.open(path).map_err(|error| unwritable(path, &error))?;
                    Ok(LogFile::Fifo(OutputWriter::to_file(fifo)))
                }
            });
        let log = log.transpose()?;
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
        if let Some(LogFile::Fifo(fifo)) = &mut self.log {
            fifo.drain(Duration::ZERO);
            if !fifo.is_empty() {
                return;
            }
        }
        let bytes = vm.take(self.reader);
        if bytes.is_empty() {
            return;
        }
        match &mut self.log {
            Some(LogFile::File(log)) => {
                if let Err(error) = log.write_all(&bytes).and_then(|()| log.flush()) {
                    self.log = None;
                    let text = format!("the console log is incomplete, cannot write it: {error}");
                    reporter.error(&text);
                }
            }
            Some(LogFile::Fifo(fifo)) => {
                fifo.put(bytes.clone());
                fifo.drain(Duration::ZERO);
            }
            None => {}
        }
        self.write(reporter, |cast, at| cast.output(at, &bytes));
    }

    /// Adds a FIFO that is full to the descriptors to poll.
    pub(crate) fn register<'fd, Source: Copy>(
        &'fd self,
        poll_set: &mut PollSet<'fd, Source>,
        source: Source,
    ) {
        if let Some(LogFile::Fifo(fifo)) = &self.log
            && !fifo.is_empty()
        {
            poll_set.writable(source, fifo.as_fd());
        }
    }

    /// Records console input.
    pub(crate) fn record_input(&mut self, bytes: &[u8], reporter: &Reporter) {
        self.write(reporter, |cast, at| cast.input(at, bytes));
    }

    /// Writes the rest of the output, and the recording's end.
    pub(crate) fn finish(&mut self, vm: &mut Vm, report: Option<&StopReport>, reporter: &Reporter) {
        self.record_output(vm, reporter);
        if let Some(LogFile::Fifo(fifo)) = &mut self.log {
            fifo.drain(STALL_TIMEOUT);
            fifo.put(vm.take(self.reader));
            fifo.drain(STALL_TIMEOUT);
            let lost = fifo.unwritten() as u64 + vm.lost(self.reader);
            if lost > 0 {
                let text = format!("the console log lacks {lost} bytes: its FIFO was not read");
                reporter.error(&text);
            }
        }
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
