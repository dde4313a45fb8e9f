//! Splits an argument list into a command, its operands and its flags with their texts.
//!
//! The rows are in [`table`]; what a value means, [`crate::values`] says. The one rule: a flag that
//! is asked for by name with [`Given::one`] and its kin must be a row of [`FLAGS`].

mod table;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use pico_args::Arguments;

use crate::failure::Failure;
use crate::suggest;

pub(crate) use table::{
    COMMANDS, Command, CommandRow, FLAGS, Flag, Takes, flags_of, row, row_named,
};

/// What was given on the command line.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) command: Command,
    pub(crate) operands: Vec<String>,
    /// What stands behind `--`; `None` where there is no `--`.
    pub(crate) behind: Option<Vec<OsString>>,
    flags: Vec<(&'static str, OsString)>,
    /// `--help` or `-h` was among it: nothing else was looked at.
    pub(crate) wants_help: bool,
}

impl Given {
    /// Splits an argument list, without the program's name.
    pub(crate) fn parse(args: Vec<OsString>) -> Result<Self, Failure> {
        let mut args = Arguments::from_vec(args);
        let name = args.subcommand().map_err(|_| usage("the command is not UTF-8", None))?;
        let command = match name.as_deref() {
            Some(name) => row_named(name).ok_or_else(|| no_command(name))?.command,
            None if args.contains(["-h", "--help"]) => Command::Help,
            None if args.contains(["-V", "--version"]) => Command::Version,
            None => return Err(usage("no command was given", None)),
        };
        let (args, behind) = apart(command, args.finish());
        let mut given =
            Self { command, operands: Vec::new(), behind, flags: Vec::new(), wants_help: false };
        let mut args = Arguments::from_vec(args);
        // Those with values first: what looks like a switch may be one's value.
        for flag in flags_of(command).filter(|flag| flag.takes != Takes::Nothing) {
            given.take_values(flag, &mut args)?;
        }
        given.wants_help = args.contains(["-h", "--help"]);
        for flag in flags_of(command).filter(|flag| flag.takes == Takes::Nothing) {
            let is_there = |args: &mut Arguments| {
                args.contains(flag.name) || flag.short.is_some_and(|short| args.contains(short))
            };
            while is_there(&mut args) {
                given.put(flag, OsString::new())?;
            }
        }
        if given.behind.is_some() && command != Command::Run {
            return Err(usage(format!("`{}` takes no --", row(command).name), Some(command)));
        }
        for extra in args.finish() {
            given.operand(extra)?;
        }
        Ok(given)
    }

    /// Whether the switch was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.all_os(name).next().is_some()
    }

    /// The value of a flag as the system gave it.
    pub(crate) fn one_os(&self, name: &str) -> Option<&OsStr> {
        self.all_os(name).next()
    }

    /// The value of a flag, read with `read`.
    pub(crate) fn one<T, E: std::fmt::Display>(
        &self,
        name: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Failure> {
        Ok(self.all(name, read)?.pop())
    }

    /// All values of a flag, each read with `read`.
    pub(crate) fn all<T, E: std::fmt::Display>(
        &self,
        name: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, Failure> {
        let read = |value: &OsStr| {
            let fail = |why: String| {
                let value = value.to_string_lossy();
                usage(format!("{name} {value:?}: {why}"), Some(self.command))
            };
            let text = value.to_str().ok_or_else(|| fail("it is not UTF-8".into()))?;
            read(text).map_err(|error| fail(error.to_string()))
        };
        self.all_os(name).map(read).collect()
    }

    fn all_os(&self, name: &str) -> impl Iterator<Item = &OsStr> {
        debug_assert!(FLAGS.iter().any(|flag| flag.name == name), "{name} is no flag");
        self.flags.iter().filter(move |(n, _)| *n == name).map(|(_, value)| value.as_os_str())
    }

    fn take_values(&mut self, flag: &'static Flag, args: &mut Arguments) -> Result<(), Failure> {
        loop {
            let value = args.opt_value_from_os_str(flag.name, |value| {
                Ok::<_, std::convert::Infallible>(value.to_owned())
            });
            match value {
                Ok(Some(value)) => self.put(flag, value)?,
                Ok(None) => return Ok(()),
                Err(_) => {
                    let problem = format!("{} needs a value: {}", flag.name, flag.takes.name());
                    return Err(usage(problem, Some(self.command)));
                }
            }
        }
    }

    fn put(&mut self, flag: &'static Flag, value: OsString) -> Result<(), Failure> {
        if !flag.repeats && self.flags.iter().any(|(name, _)| *name == flag.name) {
            return Err(usage(format!("{} was given twice", flag.name), Some(self.command)));
        }
        self.flags.push((flag.name, value));
        Ok(())
    }

    /// Something that is no guest stands before this: `capsa run --config F uname -a`.
    fn begins_a_command(&self) -> bool {
        self.command == Command::Run
            && self.operands.first().is_some_and(|operand| operand != "linux")
    }

    fn operand(&mut self, extra: OsString) -> Result<(), Failure> {
        let command = Some(self.command);
        let row = row(self.command);
        match extra.into_string() {
            Ok(text) if text.starts_with('-') && text.len() > 1 => {
                let name = text.split_once('=').map_or(text.as_str(), |(name, _)| name);
                if flags_of(self.command).any(|flag| flag.name == name) {
                    return Err(usage(format!("{name} takes no value"), command));
                }
                let known = flags_of(self.command).map(|flag| flag.name);
                // One letter is like too many a name.
                let meant = match name.starts_with("--") {
                    true => suggest::did_you_mean(name, known.chain(["--help"])),
                    false => String::new(),
                };
                let meant = if self.begins_a_command() { BEHIND_DASHES.into() } else { meant };
                Err(usage(format!("`{}` has no flag {name}{meant}", row.name), command))
            }
            Ok(text) if self.operands.len() < row.most_operands => {
                self.operands.push(text);
                Ok(())
            }
            Ok(text) => {
                let meant = if command == Some(Command::Run) { BEHIND_DASHES } else { "" };
                Err(usage(format!("{text:?} is one argument too many{meant}"), command))
            }
            Err(raw) => Err(usage(format!("{raw:?} is one argument too many"), command)),
        }
    }
}

/// For who wrote `capsa run … uname -a`.
pub(crate) const BEHIND_DASHES: &str = "; a command for the guest stands behind --";

/// The arguments with every `--flag=value` taken apart, and those behind `--`.
///
/// pico-args does that for UTF-8 alone, and finds `--disk b` before `--disk=a`, where the order of
/// disks matters.
fn apart(command: Command, args: Vec<OsString>) -> (Vec<OsString>, Option<Vec<OsString>>) {
    let takes_value = |name: &[u8]| {
        flags_of(command).any(|flag| flag.takes != Takes::Nothing && flag.name.as_bytes() == name)
    };
    let mut out = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            None if bytes == b"--" => return (out, Some(args.collect())),
            Some(at) if takes_value(&bytes[..at]) => {
                let (name, value) = (&bytes[..at], &bytes[at + 1..]);
                out.extend([name, value].map(|part| OsStr::from_bytes(part).to_owned()));
            }
            None if takes_value(bytes) => {
                out.push(arg);
                out.extend(args.next());
            }
            _ => out.push(arg),
        }
    }
    (out, None)
}

/// There is no such command, perhaps another was meant.
pub(crate) fn no_command(name: &str) -> Failure {
    let meant = suggest::did_you_mean(name, COMMANDS.iter().map(|row| row.name));
    usage(format!("there is no command {name:?}{meant}"), None)
}

/// A mistake on the command line.
pub(crate) fn usage(problem: impl Into<String>, command: Option<Command>) -> Failure {
    let about = command.map(|command| format!(" {}", row(command).name)).unwrap_or_default();
    Failure::usage(problem).hint(format!("see `capsa help{about}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn parse(line: &str) -> Result<Given, Failure> {
        Given::parse(shell_words::split(line).unwrap().into_iter().map(Into::into).collect())
    }

    #[test]
    fn flags_stand_in_any_order_and_with_either_separator() {
        let given = parse("run --cpus=2 linux --kernel K --cmdline a=b --cmdline=c=d --json");
        let given = given.unwrap();
        assert_eq!(given.operands, ["linux"]);
        assert_eq!(given.one_os("--kernel"), Some(OsStr::new("K")));
        assert_eq!(given.one("--cpus", str::parse::<u32>).unwrap(), Some(2));
        assert_eq!(given.all("--cmdline", str::parse::<String>).unwrap(), ["a=b", "c=d"]);
        assert!(given.has("--json") && !given.has("--dry-run"));
    }

    #[test]
    fn repeated_flags_keep_their_order_however_they_are_written() {
        let given = parse("run --disk=a --disk b --disk=c=d --disk --disk=e").unwrap();
        let disks = given.all("--disk", str::parse::<String>).unwrap();
        assert_eq!(disks, ["a", "b", "c=d", "--disk=e"]);
    }

    #[test]
    fn a_value_that_is_not_utf8_stays_as_it_is() {
        for args in [
            vec!["run".into(), OsString::from_vec(b"--kernel=\xff=".to_vec())],
            vec!["run".into(), "--kernel".into(), OsString::from_vec(b"\xff=".to_vec())],
        ] {
            let given = Given::parse(args).unwrap();
            assert_eq!(given.one_os("--kernel").unwrap().as_bytes(), b"\xff=");
        }
    }

    #[test]
    fn what_is_behind_two_dashes_is_left_alone() {
        let given = parse("run --cmdline -- -q -- sh -c 'exit 7' --json").unwrap();
        assert_eq!(given.behind.as_ref().unwrap(), &["sh", "-c", "exit 7", "--json"]);
        assert_eq!(given.one_os("--cmdline"), Some(OsStr::new("--")));
        assert!(given.has("--quiet") && !given.has("--json"));
        assert_eq!(parse("run --").unwrap().behind, Some(vec![]));
        assert_eq!(parse("run").unwrap().behind, None);
    }

    #[test]
    fn a_value_may_look_like_a_switch() {
        let given = parse("run --cmdline --json").unwrap();
        assert!(!given.has("--json"));
        assert_eq!(given.one_os("--cmdline"), Some(OsStr::new("--json")));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, want) in [
            ("", "no command was given"),
            ("fly", "there is no command \"fly\""),
            ("run --kernel", "--kernel needs a value: FILE"),
            ("run --kernel a --kernel b", "--kernel was given twice"),
            ("run --dry-run --dry-run", "--dry-run was given twice"),
            ("run linux bsd", "\"bsd\" is one argument too many"),
            ("run --mem 2G", "`run` has no flag --mem; did you mean --memory?"),
            ("run --kernal k", "`run` has no flag --kernal; did you mean --kernel?"),
            ("rum", "there is no command \"rum\"; did you mean run?"),
            ("backends --kernel K", "`backends` has no flag --kernel"),
            ("run --frob=1", "`run` has no flag --frob"),
            ("run --dry-run=yes", "--dry-run takes no value"),
            ("run -x", "`run` has no flag -x"),
            ("run --kernel K uname -a", "no flag -a; a command for the guest stands behind --"),
            ("run linux uname", "one argument too many; a command for the guest stands behind --"),
            ("run -q --quiet", "--quiet was given twice"),
            ("backends -- ls", "`backends` takes no --"),
        ] {
            let failure = parse(line).unwrap_err();
            assert!(failure.to_string().contains(want), "{line}: {failure}");
            assert_eq!(failure.code, crate::failure::USAGE, "{line}");
        }
    }

    #[test]
    fn arguments_that_are_not_utf8_are_refused_without_a_panic() {
        let raw = || OsString::from_vec(b"\xff--kernel".to_vec());
        for args in [
            vec![raw()],
            vec!["run".into(), raw()],
            vec!["run".into(), "--cpus".into(), raw()],
            vec!["backends".into(), OsString::from_vec(b"--json=\xff".to_vec())],
        ] {
            let given = Given::parse(args.clone());
            let failure = given.and_then(|given| given.one("--cpus", str::parse::<u32>));
            assert!(failure.is_err(), "{args:?}");
        }
    }

    #[test]
    fn the_table_is_in_order() {
        for (n, flag) in FLAGS.iter().enumerate() {
            assert!(flag.name.starts_with("--"), "{}", flag.name);
            assert!(!flag.of.is_empty() && !flag.help.is_empty(), "{}", flag.name);
            let same = |other: &&Flag| other.name == flag.name || other.short == flag.short;
            let shares = |other: &Flag| other.of.iter().any(|command| flag.of.contains(command));
            for other in FLAGS[..n].iter().filter(same) {
                let may = other.short.is_none() && other.name != flag.name;
                assert!(may || !shares(other), "{} and {}", flag.name, other.name);
            }
            assert!(flag.takes != Takes::Nothing || !flag.repeats, "{}", flag.name);
        }
    }
}
