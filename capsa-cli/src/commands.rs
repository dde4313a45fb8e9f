//! The table of commands: `run`, `ps` and the others, with their operands.
//!
//! Parsing, help, the manual page and completions read these rows. The flags of a command are rows of
//! [`crate::settings::SETTINGS`].

/// What `capsa` does: the first word of its command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subcommand {
    Run,
    Ps,
    Stop,
    Pause,
    Resume,
    Network,
    Console,
    Gc,
    Backends,
    Doctor,
    Config,
    Completions,
    Version,
    Help,
}

/// A row of the table of commands.
#[derive(Debug)]
pub(crate) struct CommandRow {
    pub(crate) command: Subcommand,
    pub(crate) name: &'static str,
    /// The operands as help shows them.
    pub(crate) operands: &'static str,
    pub(crate) max_operands: usize,
    /// The values of the first operand, where only a few are accepted.
    pub(crate) words: &'static [&'static str],
    pub(crate) help: &'static str,
}

/// A command without operands.
const fn plain(command: Subcommand, name: &'static str, help: &'static str) -> CommandRow {
    CommandRow { command, name, operands: "", max_operands: 0, words: &[], help }
}

/// All commands, in the order of `capsa help`.
pub(crate) const COMMANDS: &[CommandRow] = &[
    CommandRow {
        operands: "[linux]",
        max_operands: 1,
        words: &["linux"],
        ..plain(Subcommand::Run, "run", "Run a VM until it ends")
    },
    plain(Subcommand::Ps, "ps", "List running VMs"),
    CommandRow {
        operands: "NAME…",
        max_operands: usize::MAX,
        ..plain(
            Subcommand::Stop,
            "stop",
            "Ask guests to power off, and wait until the VMs have ended",
        )
    },
    CommandRow {
        operands: "NAME",
        max_operands: 1,
        ..plain(Subcommand::Pause, "pause", "Pause a guest: its CPUs stop")
    },
    CommandRow {
        operands: "NAME",
        max_operands: 1,
        ..plain(
            Subcommand::Resume,
            "resume",
            "Resume a guest that was paused, by `capsa pause` or at a disk error",
        )
    },
    CommandRow {
        operands: "up|down|set|check|explain|suggest …",
        max_operands: usize::MAX,
        words: &["up", "down", "set", "check", "explain", "suggest"],
        ..plain(
            Subcommand::Network,
            "network",
            "Control a guest's network; check and explain a policy",
        )
    },
    CommandRow {
        operands: "NAME",
        max_operands: 1,
        ..plain(
            Subcommand::Console,
            "console",
            "Attach to the console of a VM that another `capsa run` started",
        )
    },
    plain(Subcommand::Gc, "gc", "Remove what killed processes left behind"),
    plain(
        Subcommand::Backends,
        "backends",
        "List the hypervisors: what they support, and why one cannot be used on this host",
    ),
    plain(Subcommand::Doctor, "doctor", "Check whether this host can run VMs"),
    CommandRow {
        operands: "check FILE|schema",
        max_operands: 2,
        words: &["check", "schema"],
        ..plain(
            Subcommand::Config,
            "config",
            "Check a config file, or print the JSON Schema of config files for editors",
        )
    },
    CommandRow {
        operands: "bash|zsh|fish",
        max_operands: 1,
        words: &["bash", "zsh", "fish"],
        ..plain(Subcommand::Completions, "completions", "Print the completions for a shell")
    },
    plain(Subcommand::Version, "version", "Print the version"),
    CommandRow {
        operands: "[COMMAND]",
        max_operands: 1,
        ..plain(Subcommand::Help, "help", "Print the commands, or the flags of one command")
    },
];

impl Subcommand {
    /// The row of this command.
    pub(crate) fn row(self) -> &'static CommandRow {
        COMMANDS.iter().find(|row| row.command == self).expect("every command has a row")
    }

    /// The command with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        COMMANDS.iter().find(|row| row.name == name).map(|row| row.command)
    }
}
