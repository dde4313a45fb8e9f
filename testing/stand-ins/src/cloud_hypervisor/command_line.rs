//! The flags of v53 that Capsa may use. All others are rejected with the error of v53 for an unknown flag,
//! so that a test notices a flag that the stand-in does not implement.

use std::os::fd::RawFd;
use std::process::ExitCode;

/// The parsed command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ChvOptions {
    /// The API socket.
    pub(super) api_socket: Option<FileOption>,
    /// The file of the event monitor.
    pub(super) event_monitor: Option<FileOption>,
    /// The process keeps running after the guest powers off.
    pub(super) no_shutdown: bool,
}

/// The value of a flag that names a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileOption {
    /// `path=`
    Path(String),
    /// `fd=`: an inherited descriptor.
    Descriptor(RawFd),
}

/// The output of a process that exits without serving the API.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EarlyExit {
    /// A text on standard output; exit code 0.
    Success(String),
    /// An error on standard error; exit code 2.
    UsageError(String),
}

impl EarlyExit {
    pub(super) fn exit(self) -> ExitCode {
        match self {
            Self::Success(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Self::UsageError(text) => {
                eprintln!("error: {text}\n\nFor more information, try '--help'.");
                ExitCode::from(2)
            }
        }
    }
}

const SECCOMP: [&str; 4] = ["true", "false", "log", "errno"];

impl ChvOptions {
    pub(super) fn parse(words: &[String]) -> Result<Self, EarlyExit> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (flag, inline) = match word.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
                _ => (word.as_str(), None),
            };
            let value = || {
                inline.clone().or_else(|| words.next().cloned()).ok_or_else(|| {
                    let name = flag.trim_start_matches('-');
                    EarlyExit::UsageError(format!(
                        "a value is required for '--{name} <{name}>' but none was supplied"
                    ))
                })
            };
            match flag {
                "--version" | "-V" => {
                    return Err(EarlyExit::Success(format!("cloud-hypervisor {}", super::VERSION)));
                }
                "--api-socket" => {
                    options.api_socket = Some(file_option(&{ value }()?, "API socket")?);
                }
                "--event-monitor" => {
                    options.event_monitor = Some(file_option(&{ value }()?, "event monitor")?);
                }
                "--seccomp" => {
                    let given = { value }()?;
                    if !SECCOMP.contains(&given.as_str()) {
                        return Err(EarlyExit::UsageError(format!(
                            "invalid value '{given}' for '--seccomp <seccomp>'\n  [possible \
                             values: {}]",
                            SECCOMP.join(", ")
                        )));
                    }
                }
                // Accepted without effect: it restricts the threads of the VMM, and QEMU runs the guest.
                "--landlock" => {}
                "--no-shutdown" => options.no_shutdown = true,
                "-v" | "-vv" | "-vvv" => {}
                _ => {
                    return Err(EarlyExit::UsageError(format!(
                        "unexpected argument '{word}' found\n\nUsage: cloud-hypervisor [OPTIONS]"
                    )));
                }
            }
        }
        if options.api_socket.is_none() {
            // The real one prints its help text here. Both exit.
            return Err(EarlyExit::UsageError(
                "missing option: expected a payload or an API socket".into(),
            ));
        }
        Ok(options)
    }
}

/// Parses `path=PATH` or, for the event monitor, `fd=N`.
fn file_option(value: &str, what: &str) -> Result<FileOption, EarlyExit> {
    let options: Vec<_> = value.split(',').collect();
    let invalid = || EarlyExit::UsageError(format!("{what}: cannot parse '{value}'"));
    match options[..] {
        [one] => match one.split_once('=') {
            Some(("path", path)) if !path.is_empty() => Ok(FileOption::Path(path.to_owned())),
            Some(("fd", number)) => {
                number.parse().map(FileOption::Descriptor).map_err(|_| invalid())
            }
            _ => Err(invalid()),
        },
        _ => Err(EarlyExit::UsageError(format!("{what}: unknown option in '{value}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<ChvOptions, EarlyExit> {
        ChvOptions::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_of_capsa_are_accepted() {
        let options =
            parse("--api-socket path=/r/api --event-monitor path=/r/ev --seccomp true --landlock");
        let want = ChvOptions {
            api_socket: Some(FileOption::Path("/r/api".into())),
            event_monitor: Some(FileOption::Path("/r/ev".into())),
            no_shutdown: false,
        };
        assert_eq!(options, Ok(want));
        let by_descriptor = parse("--api-socket fd=3 --event-monitor=fd=7").unwrap();
        assert_eq!(by_descriptor.api_socket, Some(FileOption::Descriptor(3)));
        assert_eq!(by_descriptor.event_monitor, Some(FileOption::Descriptor(7)));
    }

    #[test]
    fn other_flags_are_rejected() {
        for line in [
            "",
            "--api-socket",
            "--api-socket path=",
            "--api-socket fd=x",
            "--api-socket path=/a,fd=3",
            "--api-socket path=/a --bogus",
            "--api-socket path=/a --seccomp maybe",
            "--api-socket path=/a --kernel /k",
            "--api-socket path=/a extra",
        ] {
            assert!(matches!(parse(line), Err(EarlyExit::UsageError(_))), "{line}");
        }
        assert_eq!(parse("--version"), Err(EarlyExit::Success("cloud-hypervisor v53.0.0".into())));
    }
}
