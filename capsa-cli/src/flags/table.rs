//! The tables: every command and every flag, once.
//!
//! Parsing, help, the man page and the completions are made from these rows, so that none of them
//! can forget one. What a value means is not said here but in [`crate::values`].

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Run,
    Ps,
    Stop,
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
    pub(crate) command: Command,
    pub(crate) name: &'static str,
    /// What stands behind the name, before the flags.
    pub(crate) operands: &'static str,
    /// How many operands it takes at most.
    pub(crate) most_operands: usize,
    /// What the first operand can be, where that is one of a few words.
    pub(crate) words: &'static [&'static str],
    pub(crate) about: &'static str,
}

const fn command(
    command: Command,
    name: &'static str,
    operands: (&'static str, usize, &'static [&'static str]),
    about: &'static str,
) -> CommandRow {
    let (operands, most_operands, words) = operands;
    CommandRow { command, name, operands, most_operands, words, about }
}

/// No operands.
const NONE: (&str, usize, &[&str]) = ("", 0, &[]);

/// All commands, in the order in which help lists them.
pub(crate) const COMMANDS: &[CommandRow] = &[
    command(Command::Run, "run", ("[linux]", 1, &["linux"]), "run a virtual machine until it ends"),
    command(Command::Ps, "ps", NONE, "show the machines that run"),
    command(
        Command::Stop,
        "stop",
        ("NAME…", usize::MAX, &[]),
        "ask the guests of these machines to power off, and wait until they have",
    ),
    command(
        Command::Console,
        "console",
        ("NAME", 1, &[]),
        "attach to the console of a machine that another `capsa run` holds",
    ),
    command(Command::Gc, "gc", NONE, "remove what programs that were killed left behind"),
    command(
        Command::Backends,
        "backends",
        NONE,
        "show the hypervisors, what each can do, and what keeps it from being used here",
    ),
    command(Command::Doctor, "doctor", NONE, "check whether this host can run machines"),
    command(
        Command::Config,
        "config",
        ("check FILE|schema", 2, &["check", "schema"]),
        "check a config file, or print the JSON Schema of config files for an editor",
    ),
    command(
        Command::Completions,
        "completions",
        ("bash|zsh|fish", 1, &["bash", "zsh", "fish"]),
        "print a shell's completions of this command",
    ),
    command(Command::Version, "version", NONE, "show the version"),
    command(Command::Help, "help", ("[COMMAND]", 1, &[]), "show the commands, or the flags of one"),
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
    /// A name, which may be one of these words.
    Name(&'static [&'static str]),
}

impl Takes {
    /// The name of the value in help: `FILE`, `stdio|disabled`.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::File(name) | Self::Text(name) => name.into(),
            Self::Word(words) => words.join("|"),
            Self::Name(_) => "NAME".into(),
        }
    }
}

/// A row of the table of flags.
#[derive(Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    /// One letter that stands for it: `-q`.
    pub(crate) short: Option<&'static str>,
    pub(crate) takes: Takes,
    /// It may be given several times.
    pub(crate) repeats: bool,
    pub(crate) of: &'static [Command],
    pub(crate) help: &'static str,
}

const fn flag(
    name: &'static str,
    takes: Takes,
    of: &'static [Command],
    help: &'static str,
) -> Flag {
    Flag { name, short: None, takes, repeats: false, of, help }
}

const fn run(name: &'static str, takes: Takes, help: &'static str) -> Flag {
    flag(name, takes, &[Command::Run], help)
}

impl Flag {
    const fn many(self) -> Self {
        Self { repeats: true, ..self }
    }

    const fn short(self, short: &'static str) -> Self {
        Self { short: Some(short), ..self }
    }
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
    run(
        "--disk",
        Takes::File("FILE[:raw|:qcow2][:ro|:rw][:ephemeral]"),
        "a disk: /dev/vda, then /dev/vdb, …; ephemeral: the image is never written. In place of \
         the config file's disk with the same file",
    )
    .many(),
    run(
        "--share",
        Takes::File("HOST:GUEST[:ro|:rw]"),
        "a host directory and where the guest mounts it; ro unless said. In place of the config \
         file's share at the same place in the guest",
    )
    .many(),
    run(
        "--console",
        Takes::Word(&["stdio", "enabled", "disabled"]),
        "stdio: on this terminal, pipe or file; enabled: kept for `capsa console`, and shown if the \
         guest ends badly; disabled unless said, or enabled where -- COMMAND, --log or --record \
         needs it",
    ),
    run("--cpus", Takes::Text("N"), "virtual CPUs; 1 unless said"),
    run("--memory", Takes::Text("SIZE"), "memory: 512M, 2G; 512M unless said"),
    run("--network", Takes::Word(&["none", "nat"]), "nat unless said"),
    run(
        "--vsock",
        Takes::Text("listen:PORT:SOCKET|connect:PORT:SOCKET"),
        "a vsock port of the guest as a unix socket. listen: capsa listens on SOCKET, and who \
         connects there is connected to PORT of the guest; connect: when the guest connects to PORT \
         of the host (CID 2), capsa connects to SOCKET",
    )
    .many(),
    run("--cmdline", Takes::Text("ARG"), "one more kernel argument").many(),
    run(
        "--cmdline-override",
        Takes::Text("TEXT"),
        "the whole kernel command line; nothing is generated any more",
    ),
    run("--timeout", Takes::Text("TIME"), "stop the machine when it has run this long: 90s, 5m"),
    run(
        "--grace",
        Takes::Text("TIME"),
        "how long the guest may take to power off when asked, before its power is cut; 30s unless \
         said",
    ),
    run(
        "--backend",
        Takes::Name(&["cloud-hypervisor", "qemu", "vfkit"]),
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
    run(
        "--name",
        Takes::Text("NAME"),
        "a name for `capsa ps`, `stop` and `console`; the last part of the run directory unless said",
    ),
    run(
        "--user",
        Takes::Text("USER"),
        "who -- COMMAND logs in as, where the guest asks; root unless said",
    ),
    run(
        "--password-file",
        Takes::File("FILE"),
        "the first line of this file is the password that -- COMMAND logs in with",
    ),
    run("--log", Takes::File("FILE"), "write the guest's console to this file too"),
    run(
        "--record",
        Takes::File("FILE"),
        "record the console, and what is typed, to this asciicast file",
    ),
    run(
        "--progress",
        Takes::Word(&["auto", "json", "none"]),
        "auto: one line on a terminal until the guest speaks; json: JSON lines on standard error, \
         and nothing else there",
    ),
    flag(
        "--dry-run",
        Takes::Nothing,
        &[Command::Run, Command::Gc],
        "print what would be done, and do nothing",
    ),
    flag(
        "--grace",
        Takes::Text("TIME"),
        &[Command::Stop],
        "how long a guest may take before its power is cut; 30s unless said",
    ),
    flag("--kill", Takes::Nothing, &[Command::Stop], "cut the power at once"),
    flag("--all", Takes::Nothing, &[Command::Stop], "all machines that `capsa ps` shows with a name"),
    flag("--read-only", Takes::Nothing, &[Command::Console], "look on, and type nothing"),
    flag("--man", Takes::Nothing, &[Command::Help], "print the manual page: capsa help --man | man -l -"),
    flag(
        "--json",
        Takes::Nothing,
        &[
            Command::Run,
            Command::Ps,
            Command::Stop,
            Command::Gc,
            Command::Backends,
            Command::Doctor,
            Command::Config,
            Command::Version,
        ],
        "print JSON, and errors as JSON too",
    ),
    flag(
        "--quiet",
        Takes::Nothing,
        &[Command::Run, Command::Console],
        "say nothing but errors",
    )
    .short("-q"),
    flag(
        "--verbose",
        Takes::Nothing,
        &[Command::Run],
        "say which backend was chosen and why, and what happens when",
    )
    .short("-v"),
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
