//! Every command and every flag, once. Parsing, help and whatever else lists flags read this table.
//!
//! What a value means is not said here but in [`crate::values`]: this file only splits an argument
//! list into flags and their texts. The one rule: a flag that is asked for by name with
//! [`Given::one`] and its kin must be a row of [`FLAGS`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use pico_args::Arguments;

use crate::failure::Failure;

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Run,
    Backends,
    Version,
    Help,
}

/// A row of the table of commands.
pub(crate) struct CommandRow {
    pub(crate) command: Command,
    pub(crate) name: &'static str,
    /// What stands behind the name, before the flags.
    pub(crate) operands: &'static str,
    /// How many operands it takes at most.
    pub(crate) most_operands: usize,
    pub(crate) about: &'static str,
}

/// All commands.
pub(crate) const COMMANDS: &[CommandRow] = &[
    CommandRow {
        command: Command::Run,
        name: "run",
        operands: "[linux]",
        most_operands: 1,
        about: "run a virtual machine until it ends",
    },
    CommandRow {
        command: Command::Backends,
        name: "backends",
        operands: "",
        most_operands: 0,
        about: "show the hypervisors, what each can do, and what keeps it from being used here",
    },
    CommandRow {
        command: Command::Version,
        name: "version",
        operands: "",
        most_operands: 0,
        about: "show the version",
    },
    CommandRow {
        command: Command::Help,
        name: "help",
        operands: "[COMMAND]",
        most_operands: 1,
        about: "show the commands, or the flags of one",
    },
];

/// The value of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// None: it is a switch.
    Nothing,
    /// A path on the host.
    File(&'static str),
    /// A text of this form.
    Text(&'static str),
    /// One of these words.
    Word(&'static [&'static str]),
}

impl Takes {
    /// The name of the value in help: `FILE`, `stdio|disabled`.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::File(name) | Self::Text(name) => name.into(),
            Self::Word(words) => words.join("|"),
        }
    }
}

/// A row of the table of flags.
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) takes: Takes,
    /// It may be given several times.
    pub(crate) repeats: bool,
    pub(crate) of: &'static [Command],
    pub(crate) help: &'static str,
}

const fn run(name: &'static str, takes: Takes, help: &'static str) -> Flag {
    Flag { name, takes, repeats: false, of: &[Command::Run], help }
}

const fn run_many(name: &'static str, takes: Takes, help: &'static str) -> Flag {
    Flag { name, takes, repeats: true, of: &[Command::Run], help }
}

/// All flags, in the order in which help lists them. `--help` goes with every command.
pub(crate) const FLAGS: &[Flag] = &[
    run(
        "--config",
        Takes::File("FILE"),
        "read the machine from this TOML file; flags override it, and those that can be given \
         several times add to it",
    ),
    run("--kernel", Takes::File("FILE"), "the kernel: a bzImage or vmlinux; on arm64 an Image"),
    run("--initrd", Takes::File("FILE"), "the initial RAM disk"),
    run_many(
        "--disk",
        Takes::File("FILE[:raw|:qcow2][:ro][:ephemeral]"),
        "a disk: /dev/vda, then /dev/vdb, …; ephemeral: the image is never written. In place of \
         the config file's disk with the same file",
    ),
    run_many(
        "--share",
        Takes::File("HOST:GUEST[:ro|:rw]"),
        "a host directory and where the guest mounts it; ro unless said. In place of the config \
         file's share at the same place in the guest",
    ),
    run(
        "--console",
        Takes::Word(&["stdio", "enabled", "disabled"]),
        "stdio: on this terminal, pipe or file; enabled: kept, and shown if the guest ends badly; \
         disabled unless said",
    ),
    run("--cpus", Takes::Text("N"), "virtual CPUs; 1 unless said"),
    run("--memory", Takes::Text("SIZE"), "memory: 512M, 2G; 512M unless said"),
    run("--network", Takes::Word(&["none", "nat"]), "nat unless said"),
    run_many("--cmdline", Takes::Text("ARG"), "one more kernel argument"),
    run(
        "--cmdline-override",
        Takes::Text("TEXT"),
        "the whole kernel command line; nothing is generated any more",
    ),
    run("--timeout", Takes::Text("TIME"), "stop the machine when it has run this long: 90s, 5m"),
    run(
        "--backend",
        Takes::Text("NAME"),
        "this hypervisor or none, see `capsa backends`; $CAPSA_BACKEND unless said, else the first \
         that can do it",
    ),
    run(
        "--accel",
        Takes::Word(&["auto", "kvm", "hvf", "emulation"]),
        "how the CPU is virtualised; auto unless said",
    ),
    run(
        "--on-reboot",
        Takes::Word(&["auto", "end", "restart"]),
        "what a reboot of the guest does; auto unless said: end the machine where a reboot can be told",
    ),
    run("--dry-run", Takes::Nothing, "print what would be started, and start nothing"),
    Flag {
        name: "--json",
        takes: Takes::Nothing,
        repeats: false,
        of: &[Command::Run, Command::Backends],
        help: "print JSON (of `run`: with --dry-run)",
    },
];

/// The flags of a command.
pub(crate) fn flags_of(command: Command) -> impl Iterator<Item = &'static Flag> {
    FLAGS.iter().filter(move |flag| flag.of.contains(&command))
}

/// The row of a command.
pub(crate) fn row(command: Command) -> &'static CommandRow {
    COMMANDS.iter().find(|row| row.command == command).expect("every command has a row")
}

/// The row of the command with this name.
pub(crate) fn row_named(name: &str) -> Option<&'static CommandRow> {
    COMMANDS.iter().find(|row| row.name == name)
}

/// What was given on the command line.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) command: Command,
    pub(crate) operands: Vec<String>,
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
            Some(name) => {
                let unknown = || usage(format!("there is no command {name:?}"), None);
                row_named(name).ok_or_else(unknown)?.command
            }
            None if args.contains(["-h", "--help"]) => Command::Help,
            None if args.contains(["-V", "--version"]) => Command::Version,
            None => return Err(usage("no command was given", None)),
        };
        let mut given =
            Self { command, operands: Vec::new(), flags: Vec::new(), wants_help: false };
        let mut args = Arguments::from_vec(apart(command, args.finish()));
        // Those with values first: what looks like a switch may be one's value.
        for flag in flags_of(command).filter(|flag| flag.takes != Takes::Nothing) {
            given.take_values(flag, &mut args)?;
        }
        given.wants_help = args.contains(["-h", "--help"]);
        for flag in flags_of(command).filter(|flag| flag.takes == Takes::Nothing) {
            while args.contains(flag.name) {
                given.put(flag, OsString::new())?;
            }
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

    fn operand(&mut self, extra: OsString) -> Result<(), Failure> {
        let command = Some(self.command);
        let row = row(self.command);
        match extra.into_string() {
            Ok(text) if text.starts_with('-') && text.len() > 1 => {
                let name = text.split_once('=').map_or(text.as_str(), |(name, _)| name);
                if flags_of(self.command).any(|flag| flag.name == name) {
                    return Err(usage(format!("{name} takes no value"), command));
                }
                let meant = meant(self.command, name);
                Err(usage(format!("`{}` has no flag {name}{meant}", row.name), command))
            }
            Ok(text) if self.operands.len() < row.most_operands => {
                self.operands.push(text);
                Ok(())
            }
            Ok(text) => Err(usage(format!("{text:?} is one argument too many"), command)),
            Err(raw) => Err(usage(format!("{raw:?} is one argument too many"), command)),
        }
    }
}

/// The arguments with every `--flag=value` taken apart.
///
/// pico-args does that for UTF-8 alone, and finds `--disk b` before `--disk=a`, where the order of
/// disks matters.
fn apart(command: Command, args: Vec<OsString>) -> Vec<OsString> {
    let takes_value = |name: &[u8]| {
        flags_of(command).any(|flag| flag.takes != Takes::Nothing && flag.name.as_bytes() == name)
    };
    let mut out = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
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
    out
}

/// `, did you mean --memory?` where a flag begins like it or is its beginning.
fn meant(command: Command, name: &str) -> String {
    let mut close = flags_of(command).filter(|flag| {
        name.len() > 3
            && name != flag.name
            && (flag.name.starts_with(name) || name.starts_with(flag.name))
    });
    close.next().map(|flag| format!("; did you mean {}?", flag.name)).unwrap_or_default()
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
            ("backends --kernel K", "`backends` has no flag --kernel"),
            ("run --frob=1", "`run` has no flag --frob"),
            ("run --dry-run=yes", "--dry-run takes no value"),
            ("run --", "`run` has no flag --"),
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
            assert!(FLAGS[..n].iter().all(|other| other.name != flag.name), "{}", flag.name);
            assert!(flag.takes != Takes::Nothing || !flag.repeats, "{}", flag.name);
        }
    }
}
