//! Help texts, made from the tables of commands and settings.

pub(crate) mod completions;
pub(crate) mod man;

use std::fmt::Write as _;

use crate::commands::{COMMANDS, CommandRow, Subcommand};
use crate::failure::EXIT_CODES;
use crate::settings::{SECTIONS, Setting, flags_of};

const WIDTH: usize = 92;
const INDENT: usize = 28;

/// The commands, and the exit codes.
pub(crate) fn overview() -> String {
    let mut out = String::from("Run virtual machines\n\nUsage: capsa COMMAND\n\nCommands:\n");
    for row in COMMANDS {
        entry(&mut out, &joined(&[row.name, row.operands]), row.help);
    }
    out.push_str("\nFlags:\n");
    entry(&mut out, "-h, --help", "Print this help; after a command, the flags of the command");
    entry(&mut out, "-V, --version", "Print the version");
    out.push_str(
        "\nRun `capsa help COMMAND` for the flags of a command, `capsa help --man | man -l -` for \
         the\nmanual page.\n\nExit codes:\n",
    );
    for (code, meaning) in EXIT_CODES {
        entry(&mut out, code, meaning);
    }
    out
}

/// What follows a command's name.
pub(crate) fn synopsis(row: &CommandRow) -> String {
    let flags = if flags_of(row.command).next().is_some() { "[FLAGS]" } else { "" };
    let guest_command = if row.command == Subcommand::Run { "[-- COMMAND…]" } else { "" };
    joined(&[row.operands, flags, guest_command])
}

/// The help of one command, with its flags.
pub(crate) fn of(command: Subcommand) -> String {
    let row = command.row();
    let flags: Vec<&Setting> = flags_of(command).collect();
    let mut out = format!("{}\n\nUsage: ", row.help);
    let _ = writeln!(out, "{}", joined(&["capsa", row.name, &synopsis(row)]));
    if !flags.is_empty() {
        out.push_str("\nFlags:\n");
    }
    for flag in flags {
        entry(&mut out, &left(flag), &flag_help(flag));
    }
    match command {
        Subcommand::Run => run_details(&mut out),
        Subcommand::Config => config_keys(&mut out),
        Subcommand::Network => {
            out.push_str("\nForms:\n");
            NETWORK_FORMS.iter().for_each(|(form, what)| entry(&mut out, form, what));
        }
        _ => {}
    }
    out
}

/// The sections of a config file and their keys.
fn config_keys(out: &mut String) {
    out.push_str("\nA config file is TOML. Relative paths are relative to its directory.\n");
    for section in SECTIONS {
        let _ = writeln!(out, "\n{} {}", section.header(), section.help);
        for row in section.rows() {
            let required = if row.required { " [required]" } else { "" };
            let left = format!("{} = {}", row.key_name(), row.example);
            entry(out, &left, &format!("{}{required}", row.help()));
        }
    }
}

/// A flag and its value.
pub(crate) fn left(flag: &Setting) -> String {
    let short = flag.short.map(|short| format!("-{short},")).unwrap_or_default();
    joined(&[&short, flag.flag, &flag.placeholder()])
}

/// What a flag does.
pub(crate) fn flag_help(flag: &Setting) -> String {
    let repeats = if flag.repeats { " [may be repeated]" } else { "" };
    format!("{}{repeats}", flag.help())
}

/// What `capsa network` does.
pub(crate) const NETWORK_FORMS: &[(&str, &str)] = &[
    ("up NAME, down NAME", "Take the link of a running VM's network up or down"),
    ("set NAME FILE", "Replace the policy of a running VM's network by that of a config file"),
    ("check FILE", "Check the policy of a config file, and print what it allows, with warnings"),
    (
        "explain FILE DEST…",
        "Print whether the policy allows destinations such as pypi.org:443, udp://9.9.9.9:53, 10.1.2.3:22, \
         icmp://1.1.1.1, host:8080 or dns:pypi.org, by which rule, and why",
    ),
    ("suggest LOG", "Print the smallest policy for the flows in a file that --network-log wrote"),
];

/// Command lines to start with.
pub(crate) const EXAMPLES: &str = "\
capsa run linux --kernel ./bzImage --initrd ./initrd --disk ./rootfs.qcow2 \\
  --share ./workspace:/workspace:rw --console stdio
capsa run --config linux-vm.toml --cpus 4 --memory 4G
capsa run --config linux-vm.toml -- uname -a
capsa run --config linux-vm.toml --dry-run
";

/// The keys that capsa does not send to the guest.
pub(crate) const KEYS: &[(&str, &str)] = &[
    ("Ctrl-] q", "ask the guest to power off"),
    ("Ctrl-] k", "kill the VM"),
    ("Ctrl-] Ctrl-]", "send Ctrl-] to the guest"),
];

/// The environment variables.
pub(crate) const ENVIRONMENT: &[(&str, &str)] = &[
    ("CAPSA_BACKEND", "Backend, if neither a flag nor the config file names one"),
    (
        "CAPSA_QEMU, CAPSA_CLOUD_HYPERVISOR, CAPSA_VFKIT, CAPSA_VIRTIOFSD, CAPSA_VHOST_DEVICE_VSOCK",
        "Path of the program, in place of a search",
    ),
    ("CAPSA_LOG", "Log level, if --log-level is not given"),
    (
        "CAPSA_RUN_DIR",
        "Parent of run directories [default: $XDG_RUNTIME_DIR/capsa, else /tmp/capsa-UID]",
    ),
    ("TMPDIR", "Directory for the writes to ephemeral disks [default: /var/tmp]"),
];

fn run_details(out: &mut String) {
    out.push_str("\nExamples:\n");
    for line in EXAMPLES.lines() {
        let _ = writeln!(out, "  {line}");
    }
    out.push_str(CONSOLE);
    for (keys, what) in KEYS {
        let _ = writeln!(out, "  {keys:13}  {what}");
    }
    out.push_str(SIGNALS);
}

const CONSOLE: &str = "
With -- COMMAND, capsa runs the command in the guest with its words unchanged, prints its output as
it arrives, stops the VM, and exits with the command's exit code. The guest agent runs it, with
standard input, and standard error apart. Where the guest cannot have the agent, or with --via
console, capsa waits for the guest's shell on the console and logs in if the guest asks.

With --console stdio, standard output has the guest's console and nothing else; messages of capsa go
to standard error. On a terminal all keys go to the guest, Ctrl-C included, except:
";

const SIGNALS: &str = "
A serial console has no window size; run `stty rows R cols C` in the guest to set it. With --tty the
guest gets the size of the terminal at the start of the command; a later change does not reach it.

SIGTERM, SIGINT and SIGHUP ask the guest to power off. A second signal, at least one second later,
kills the VM. `capsa help` lists the exit codes.
";

/// An entry with its name on the left, wrapped.
fn entry(out: &mut String, left: &str, right: &str) {
    let mut line = format!("  {left}");
    if line.len() + 2 > INDENT {
        let _ = writeln!(out, "{line}");
        line.clear();
    }
    for word in right.split(' ') {
        let is_first = line.trim_start().is_empty() || line.len() <= INDENT;
        if !is_first && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(out, "{line}");
            line.clear();
        }
        if line.len() < INDENT {
            line = format!("{line:INDENT$}{word}");
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    let _ = writeln!(out, "{line}");
}

fn joined(words: &[&str]) -> String {
    let words: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_command_and_flag() {
        let overview = overview();
        for row in COMMANDS {
            assert!(overview.contains(row.name), "{overview}");
            let text = of(row.command);
            for flag in flags_of(row.command) {
                let left = format!("  {}", left(flag));
                assert!(text.contains(&left), "{left} is not in\n{text}");
            }
        }
    }

    #[test]
    fn overview_lists_exit_codes() {
        assert!(overview().contains("128+N"));
    }

    #[test]
    fn help_lines_fit_into_100_columns() {
        for text in COMMANDS.iter().map(|row| of(row.command)).chain([overview()]) {
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{line}");
            }
        }
    }
}
