//! The logs of vfkit: its own on standard error, and that of its REST server on standard output, which may
//! also be the guest's console.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The log level: an index into `LEVELS`.
static LEVEL: OnceLock<u8> = OnceLock::new();

const LEVELS: [&str; 3] = ["error", "info", "debug"];

/// Sets the log level to the value of `--log-level`.
pub(super) fn set_level(level: &str) {
    let level = LEVELS.iter().position(|known| *known == level).unwrap_or(1);
    let _ = LEVEL.set(u8::try_from(level).unwrap_or(1));
}

/// Writes a line in the format that logrus uses if standard error is not a terminal.
pub(super) fn write(level: &str, message: &str) {
    // `error` and `fatal` are written at every level, warnings at every level but `error`.
    let needs = match level {
        "debug" => 2,
        "info" | "warning" => 1,
        _ => 0,
    };
    if *LEVEL.get_or_init(|| 1) >= needs {
        let Time { date: [year, month, day], time: [hour, minute, second] } = Time::now();
        let time = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z");
        eprintln!("time=\"{time}\" level={level} msg={message:?}");
    }
}

/// Logs a signal, in the format of Go's own logger.
pub(super) fn captured(signal: &str) {
    let Time { date: [year, month, day], time: [hour, minute, second] } = Time::now();
    eprintln!(
        "{year:04}/{month:02}/{day:02} {hour:02}:{minute:02}:{second:02} captured {signal}, \
         calling exit handlers and exiting.."
    );
}

/// Logs a request, in colour on a terminal. The line is written before the reply is sent: if standard
/// output is not read, the reply waits.
pub(super) fn request(status: u16, took: Duration, method: &str, path: &str) {
    let mut stdout = io::stdout();
    let is_plain = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let colours = stdout.is_terminal() && !is_plain;
    let coloured = |colour: &str, text: String| match colours {
        true => format!("\x1b[97;{colour}m{text}\x1b[0m"),
        false => text,
    };
    let of_status = match status {
        200..300 => "42",
        400..500 => "43",
        _ => "41",
    };
    let of_method = if method == "POST" { "46" } else { "44" };
    let Time { date: [year, month, day], time: [hour, minute, second] } = Time::now();
    let line = format!(
        "[GIN] {year:04}/{month:02}/{day:02} - {hour:02}:{minute:02}:{second:02} |{}| {:>13} | \
         {:>15} |{} {path:?}\n",
        coloured(of_status, format!(" {status:3} ")),
        format!("{took:?}"),
        "",
        coloured(of_method, format!(" {method:<7} ")),
    );
    let _ = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
}

/// A date and time in UTC.
#[derive(Debug, PartialEq, Eq)]
struct Time {
    date: [u64; 3],
    time: [u64; 3],
}

impl Time {
    fn now() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::of(now.as_secs())
    }

    fn of(seconds: u64) -> Self {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Counts years from March, so that the leap day is the last day of a year.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let date = [
            era * 400 + year + u64::from(month >= 10),
            if month < 10 { month + 3 } else { month - 9 },
            day - (153 * month + 2) / 5 + 1,
        ];
        Self { date, time: [rest / 3600, rest / 60 % 60, rest % 60] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_from_unix_seconds() {
        for (seconds, date, time) in [
            (0, [1970, 1, 1], [0, 0, 0]),
            (951_782_399, [2000, 2, 28], [23, 59, 59]),
            (951_782_400, [2000, 2, 29], [0, 0, 0]),
            (1_798_761_599, [2026, 12, 31], [23, 59, 59]),
        ] {
            assert_eq!(Time::of(seconds), Time { date, time }, "{seconds}");
        }
    }
}
