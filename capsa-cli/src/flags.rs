//! The command line: a command, its operands, its flags and the guest's command after `--`.
//!
//! The rows of the flags are [`crate::settings::SETTINGS`]. A value is parsed and stored by
//! [`Arguments::apply`], which can be called several times: to check the command line, and to override
//! a config file.

use std::ffi::OsString;

use lexopt::{Arg, Parser};

use crate::commands::{COMMANDS, Subcommand};
use crate::failure::CliError;
use crate::settings::{Setting, Settings, flags_of};
use crate::suggest;

/// A command line.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) command: Subcommand,
    pub(crate) operands: Vec<String>,
    /// The words after `--`; `None` without `--`.
    pub(crate) guest_command: Option<Vec<OsString>>,
    /// `--help` or `-h` was given: the values of flags were not parsed.
    pub(crate) wants_help: bool,
    /// What the flags set.
    pub(crate) settings: Settings,
    flags: Vec<(&'static Setting, OsString)>,
}

impl Arguments {
    /// Parses a command line, without the program's name.
    pub(crate) fn parse(args: Vec<OsString>) -> Result<Self, CliError> {
        let mut args = args.into_iter();
        let command = match args.next() {
            None => return Err(usage("no command was given", None)),
            Some(first) => match first.to_str() {
                None => return Err(usage("the command is not UTF-8", None)),
                Some("-h" | "--help") => Subcommand::Help,
                Some("-V" | "--version") => Subcommand::Version,
                Some(flag) if flag.starts_with('-') => {
                    return Err(usage(format!("expected a command before {flag}"), None));
                }
                Some(name) => Subcommand::named(name).ok_or_else(|| unknown_command(name))?,
            },
        };
        let mut arguments = Self {
            command,
            operands: Vec::new(),
            guest_command: None,
            wants_help: false,
            settings: Settings::default(),
            flags: Vec::new(),
        };
        let mut parser = Parser::from_args(args);
        loop {
            // lexopt drops the `--`, which separates the guest's command from the operands.
            if let Some(mut rest) = parser.try_raw_args()
                && rest.next_if(|arg| arg == "--").is_some()
            {
                arguments.guest_command = Some(rest.collect());
                break;
            }
            let name = match parser.next() {
                Ok(Some(Arg::Short(letter))) => format!("-{letter}"),
                Ok(Some(Arg::Long(name))) => format!("--{name}"),
                Ok(Some(Arg::Value(operand))) => {
                    arguments.operand(operand)?;
                    continue;
                }
                Ok(None) => break,
                Err(error) => return Err(usage(error.to_string(), Some(command))),
            };
            arguments.flag(&name, &mut parser)?;
        }
        if arguments.guest_command.is_some() && command != Subcommand::Run {
            return Err(usage(format!("`{}` accepts no --", command.row().name), Some(command)));
        }
        if !arguments.wants_help {
            let mut settings = Settings::default();
            arguments.apply(&mut settings)?;
            arguments.settings = settings;
        }
        Ok(arguments)
    }

    /// Whether this flag was given.
    pub(crate) fn has(&self, flag: &str) -> bool {
        debug_assert!(
            flags_of(self.command).any(|row| row.flag == flag),
            "{flag} is not a flag of this command"
        );
        self.flags.iter().any(|(row, _)| row.flag == flag)
    }

    /// Stores the values of the flags in `settings`, over what a config file has set.
    pub(crate) fn apply(&self, settings: &mut Settings) -> Result<(), CliError> {
        if self.flags.iter().any(|(row, _)| row.flag == "--cmdline-override") {
            settings.cmdline.clear();
            settings.spans.remove("cmdline.extra");
        }
        for (row, value) in &self.flags {
            row.set_from_flag(settings, value)
                .map_err(|reason| usage(format!("{}: {reason}", row.flag), Some(self.command)))?;
            if !row.repeats {
                settings.spans.remove(row.key);
            }
        }
        Ok(())
    }

    /// Takes a flag, and its value from the parser.
    fn flag(&mut self, name: &str, parser: &mut Parser) -> Result<(), CliError> {
        let command = Some(self.command);
        let is_named = |row: &&Setting| {
            row.flag == name || row.short.is_some_and(|short| name == format!("-{short}"))
        };
        let help = name == "--help" || name == "-h";
        let row = flags_of(self.command).find(is_named);
        if row.is_none() && !help {
            return Err(self.unknown_flag(name));
        }
        let value = match row {
            Some(row) if !row.is_switch() => parser.value().map_err(|_| {
                usage(format!("{name} needs a value: {}", row.placeholder()), command)
            })?,
            // Behind a short flag it would be the next letter: -qv.
            _ if name.starts_with("--") && parser.optional_value().is_some() => {
                return Err(usage(format!("{name} takes no value"), command));
            }
            _ => OsString::new(),
        };
        let Some(row) = row else {
            self.wants_help = true;
            return Ok(());
        };
        if !row.repeats && self.flags.iter().any(|(other, _)| other.flag == row.flag) {
            return Err(usage(format!("{} was given twice", row.flag), command));
        }
        self.flags.push((row, value));
        Ok(())
    }

    fn unknown_flag(&self, name: &str) -> CliError {
        let command = self.command.row().name;
        let is_guest_command = self.command == Subcommand::Run
            && self.operands.first().is_some_and(|operand| operand != "linux");
        let known = flags_of(self.command).map(|row| row.flag);
        let hint = match name.starts_with("--") {
            _ if is_guest_command => GUEST_COMMAND_HINT.into(),
            true => suggest::did_you_mean(name, known.chain(["--help"])),
            // A single letter is similar to too many names.
            false => String::new(),
        };
        usage(format!("`{command}` has no flag {name}{hint}"), Some(self.command))
    }

    fn operand(&mut self, operand: OsString) -> Result<(), CliError> {
        if self.operands.len() < self.command.row().max_operands
            && let Some(text) = operand.to_str()
        {
            self.operands.push(text.into());
            return Ok(());
        }
        let hint = if self.command == Subcommand::Run { GUEST_COMMAND_HINT } else { "" };
        Err(usage(format!("unexpected argument {operand:?}{hint}"), Some(self.command)))
    }
}

/// For a command line such as `capsa run … uname -a`.
pub(crate) const GUEST_COMMAND_HINT: &str = "; write a command for the guest after --";

/// The error for an unknown command.
pub(crate) fn unknown_command(name: &str) -> CliError {
    let hint = suggest::did_you_mean(name, COMMANDS.iter().map(|row| row.name));
    usage(format!("unknown command {name:?}{hint}"), None)
}

/// A mistake on the command line.
pub(crate) fn usage(problem: impl Into<String>, command: Option<Subcommand>) -> CliError {
    let operand = command.map(|command| format!(" {}", command.row().name)).unwrap_or_default();
    CliError::usage(problem).hint(format!("see `capsa help{operand}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    fn parse(line: &str) -> Result<Arguments, CliError> {
        Arguments::parse(shell_words::split(line).unwrap().into_iter().map(Into::into).collect())
    }

    /// The values of a flag, in order.
    fn values<'a>(arguments: &'a Arguments, flag: &str) -> Vec<&'a OsStr> {
        let of_flag = arguments.flags.iter().filter(|(row, _)| row.flag == flag);
        of_flag.map(|(_, value)| value.as_os_str()).collect()
    }

    #[test]
    fn flags_any_order_and_separator_are_parsed() {
        let line = "run --cpus=2 linux --kernel K --cmdline a=b --cmdline=c=d --json";
        let arguments = parse(line).unwrap();
        assert_eq!(arguments.operands, ["linux"]);
        assert_eq!(values(&arguments, "--kernel"), ["K"]);
        assert_eq!(arguments.settings.cpus, Some(2));
        assert_eq!(arguments.settings.cmdline, ["a=b", "c=d"]);
        assert!(arguments.has("--json") && !arguments.has("--dry-run"));
        assert!(arguments.settings.options.json && !arguments.settings.options.dry_run);
    }

    #[test]
    fn repeated_flag_with_either_separator_keeps_order() {
        let arguments = parse("run --disk=a --disk b --disk=c=d --disk --disk=e").unwrap();
        assert_eq!(values(&arguments, "--disk"), ["a", "b", "c=d", "--disk=e"]);
    }

    #[test]
    fn path_that_is_not_utf8_is_kept() {
        for args in [
            vec!["run".into(), OsString::from_vec(b"--kernel=\xff=".to_vec())],
            vec!["run".into(), "--kernel".into(), OsString::from_vec(b"\xff=".to_vec())],
        ] {
            let arguments = Arguments::parse(args).unwrap();
            assert_eq!(values(&arguments, "--kernel")[0].as_bytes(), b"\xff=");
        }
    }

    #[test]
    fn words_behind_two_dashes_are_not_parsed() {
        let arguments = parse("run --cmdline -- -q -- sh -c 'exit 7' --json").unwrap();
        let words = arguments.guest_command.as_ref().unwrap();
        assert_eq!(words, &["sh", "-c", "exit 7", "--json"]);
        assert_eq!(values(&arguments, "--cmdline"), ["--"]);
        assert!(arguments.has("--quiet") && !arguments.has("--json"));
        assert_eq!(parse("run --").unwrap().guest_command, Some(vec![]));
        assert_eq!(parse("run").unwrap().guest_command, None);
    }

    #[test]
    fn value_that_looks_like_a_switch_is_a_value() {
        let arguments = parse("run --cmdline --json").unwrap();
        assert!(!arguments.has("--json"));
        assert_eq!(values(&arguments, "--cmdline"), ["--json"]);
    }

    #[test]
    fn help_is_found_behind_other_flags() {
        assert!(parse("run --cpus many --help").unwrap().wants_help);
        assert!(parse("run -qh").unwrap().wants_help);
    }

    #[test]
    fn command_line_mistakes_are_explained() {
        for (line, want) in [
            ("", "no command was given"),
            ("fly", "unknown command \"fly\""),
            ("--json ps", "expected a command before --json"),
            ("run --kernel", "--kernel needs a value: FILE"),
            ("run --kernel a --kernel b", "--kernel was given twice"),
            ("run --dry-run --dry-run", "--dry-run was given twice"),
            ("run linux bsd", "unexpected argument \"bsd\""),
            ("run --mem 2G", "`run` has no flag --mem; did you mean --memory?"),
            ("run --kernal k", "`run` has no flag --kernal; did you mean --kernel?"),
            ("rum", "unknown command \"rum\"; did you mean run?"),
            ("backends --kernel K", "`backends` has no flag --kernel"),
            ("run --frob=1", "`run` has no flag --frob"),
            ("run --dry-run=yes", "--dry-run takes no value"),
            ("run -x", "`run` has no flag -x"),
            ("run --kernel K uname -a", "no flag -a; write a command for the guest after --"),
            ("run linux uname", "\"uname\"; write a command for the guest after --"),
            ("run -q --quiet", "--quiet was given twice"),
            ("backends -- ls", "`backends` accepts no --"),
            ("config check -- FILE", "`config` accepts no --"),
            ("run --cpus two", "--cpus: invalid number \"two\": expected 1 to 4294967295"),
        ] {
            let failure = parse(line).unwrap_err();
            assert!(failure.to_string().contains(want), "{line}: {failure}");
            assert_eq!(failure.code, crate::failure::USAGE, "{line}");
        }
    }

    #[test]
    fn arguments_that_are_not_utf8_are_mistakes() {
        let raw = || OsString::from_vec(b"\xff--kernel".to_vec());
        for args in [
            vec![raw()],
            vec!["run".into(), raw()],
            vec!["run".into(), "--cpus".into(), raw()],
            vec!["backends".into(), OsString::from_vec(b"--json=\xff".to_vec())],
            vec!["run".into(), OsString::from_vec(b"--\xff".to_vec())],
            vec!["run".into(), OsString::from_vec(b"-\xff".to_vec())],
        ] {
            assert!(Arguments::parse(args.clone()).is_err(), "{args:?}");
        }
    }
}
