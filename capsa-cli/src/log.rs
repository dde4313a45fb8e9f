//! `--log-level` and `CAPSA_LOG`: the library's `tracing` events on standard error.
//!
//! An event is one line. Control characters in it are escaped, because it may contain output of the
//! hypervisor or the guest. With `--progress json` it is a JSON line like the others, with the event
//! `log`. A terminal may be in raw mode, where a line ends in CR LF.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use capsa::console::escape_control_line;
use serde_json::json;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::failure::CliError;
use crate::flags::Arguments;
use crate::json_output;
use crate::print::print_message;
use crate::settings::{ProgressMode, Settings, flags_of};

/// The flag. `CAPSA_LOG` accepts the same values; an empty one counts as unset.
const FLAG: &str = "--log-level";
const VARIABLE: &str = "CAPSA_LOG";

/// Prints events from now on, if the flag or the variable asks for it. Returns whether they do.
pub(crate) fn init(arguments: &Arguments) -> Result<bool, CliError> {
    let Some(row) = flags_of(arguments.command).find(|row| row.flag == FLAG) else {
        return Ok(false);
    };
    let options = &arguments.settings.options;
    let mut level = options.log_level;
    let variable = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
    if let (None, Some(value)) = (level, variable) {
        let mut settings = Settings::default();
        row.set_from_flag(&mut settings, &value).map_err(|reason| {
            CliError::usage(format!("{VARIABLE}: {reason}"))
                .hint(format!("unset {VARIABLE}, or set it to e.g. debug"))
        })?;
        level = settings.options.log_level;
    }
    let level = level.unwrap_or(LevelFilter::OFF);
    if level == LevelFilter::OFF {
        return Ok(false);
    }
    let lines = LogLines { json: options.progress == ProgressMode::Json, start: Instant::now() };
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(lines);
    if options.progress == ProgressMode::Json {
        subscriber.without_time().with_level(false).with_target(false).init();
    } else {
        subscriber.init();
    }
    Ok(true)
}

/// Makes the writers of events.
struct LogLines {
    json: bool,
    start: Instant,
}

/// Writes one event to standard error.
struct LogLine {
    /// For JSON: the seconds since the start, the level and the target.
    json: Option<(f64, Level, String)>,
}

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = LogLine;

    fn make_writer(&'a self) -> Self::Writer {
        LogLine { json: None }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Self::Writer {
        let seconds = self.start.elapsed().as_secs_f64();
        let json = self.json.then(|| (seconds, *about.level(), about.target().to_owned()));
        LogLine { json }
    }
}

impl Write for LogLine {
    /// Writes the line of an event, which the subscriber passes as a whole.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = escape_control_line(text.trim_end());
        let line = match &self.json {
            None => text,
            Some((seconds, level, target)) => json_output::line(
                "progress",
                json!({
                    "event": "log",
                    "seconds": seconds,
                    "level": level.as_str().to_ascii_lowercase(),
                    "target": target,
                    "text": text,
                }),
            ),
        };
        let end = if io::stderr().is_terminal() { "\r\n" } else { "\n" };
        // Like all output on standard error it is lost if it cannot be written.
        print_message(&format!("{line}{end}"));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
