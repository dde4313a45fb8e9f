//! Help, made from the tables in [`crate::flags`].

pub(crate) mod completions;
pub(crate) mod man;

use std::fmt::Write as _;

use crate::config::{Key, SECTIONS};
use crate::failure::EXIT_CODES;
use crate::flags::{COMMANDS, Command, CommandRow, Flag, flags_of, row};

const WIDTH: usize = 92;
const INDENT: usize = 28;

/// The commands, and the exit codes.
pub(crate) fn overview() -> String {
    let mut out =
        String::from("capsa: runs virtual machines\n\nusage: capsa COMMAND\n\ncommands:\n");
    for command in COMMANDS {
        entry(&mut out, &joined(&[command.name, command.operands]), command.about);
    }
    out.push_str(
        "\n`capsa help COMMAND` shows the flags of one, `capsa help --man | man -l -` all of it.\n\n\
         exit codes:\n",
    );
    for (code, meaning) in EXIT_CODES {
        entry(&mut out, code, meaning);
    }
    out
}

/// What stands behind a command's name.
pub(crate) fn synopsis(row: &CommandRow) -> String {
    let takes_flags = if flags_of(row.command).next().is_some() { "[FLAGS]" } else { "" };
    let behind = if row.command == Command::Run { "[-- COMMAND…]" } else { "" };
    joined(&[row.operands, takes_flags, behind])
}

/// One command with its flags.
pub(crate) fn of(command: Command) -> String {
    let row = row(command);
    let CommandRow { name, about, .. } = row;
    let flags: Vec<&Flag> = flags_of(command).collect();
    let mut out = format!("capsa {name}: {about}\n\n");
    let _ = writeln!(out, "usage: {}", joined(&["capsa", name, &synopsis(row)]));
    if !flags.is_empty() {
        out.push_str("\nflags:\n");
    }
    for flag in flags {
        let again = if flag.repeats { " (may be given several times)" } else { "" };
        let left = left(flag);
        entry(&mut out, &left, &format!("{}{again}", flag.help));
    }
    match command {
        Command::Run => about_running(&mut out),
        Command::Config => about_config(&mut out),
        _ => {}
    }
    out
}

/// The sections of a config file and their keys.
fn about_config(out: &mut String) {
    out.push_str("\nA config file is TOML. Its paths count from its own folder.\n");
    for section in SECTIONS {
        let _ = writeln!(out, "\n{}: {}", section.head(), section.about);
        for Key { name, example, about, is_required, .. } in section.keys {
            let needed = if *is_required { "; needed" } else { "" };
            entry(out, &format!("{name} = {example}"), &format!("{about}{needed}"));
        }
    }
}

/// A flag and its value, as they stand at the left.
fn left(flag: &Flag) -> String {
    let short = flag.short.map(|short| format!("{short},")).unwrap_or_default();
    joined(&[&short, flag.name, &flag.takes.name()])
}

/// Lines to begin with.
pub(crate) const EXAMPLES: &str = "\
capsa run linux --kernel ./bzImage --initrd ./initrd --disk ./rootfs.qcow2 \\
  --share ./workspace:/workspace:rw --console stdio
capsa run --config linux-vm.toml --cpus 4 --memory 4G
capsa run --config linux-vm.toml -- uname -a
capsa run --config linux-vm.toml --dry-run
";

/// The keys that are not the guest's.
pub(crate) const KEYS: &[(&str, &str)] = &[
    ("Ctrl-] q", "ask the guest to power off"),
    ("Ctrl-] k", "cut its power"),
    ("Ctrl-] Ctrl-]", "send Ctrl-] to the guest"),
];

/// The variables that are looked at.
pub(crate) const ENVIRONMENT: &[(&str, &str)] = &[
    ("CAPSA_BACKEND", "the backend, where no flag and no file names one"),
    (
        "CAPSA_QEMU, CAPSA_CLOUD_HYPERVISOR, CAPSA_VFKIT, CAPSA_VIRTIOFSD, CAPSA_PASST, \
         CAPSA_VHOST_DEVICE_VSOCK",
        "the program, instead of a search",
    ),
    (
        "CAPSA_RUN_DIR",
        "where run directories are, instead of $XDG_RUNTIME_DIR/capsa or /tmp/capsa-UID",
    ),
    ("TMPDIR", "where what a guest writes to an ephemeral disk goes, instead of /var/tmp"),
];

/// What no flag says.
fn about_running(out: &mut String) {
    out.push_str("\nexamples:\n");
    for line in EXAMPLES.lines() {
        let _ = writeln!(out, "  {line}");
    }
    out.push_str(BEHIND);
    for (keys, what) in KEYS {
        let _ = writeln!(out, "  {keys:13}  {what}");
    }
    out.push_str(SIGNALS);
}

const BEHIND: &str = "
With -- COMMAND, capsa waits for the guest's shell, logs in where it asks, runs the command with the
words as they are, prints its output as it comes, stops the machine, and exits with the command's
status.

With --console stdio, standard output holds the guest's console and nothing else; all that capsa
says goes to standard error. On a terminal every key is the guest's, Ctrl-C too, but for:
";

const SIGNALS: &str = "
A serial line knows no window size; in the guest, `stty rows R cols C` sets it.

SIGTERM, SIGINT and SIGHUP ask the guest to power off; another one, a second
or more later, cuts its power. `capsa help` lists the exit codes.
";

/// One line, or more, with the name at the left.
fn entry(out: &mut String, left: &str, right: &str) {
    let mut line = format!("  {left}");
    if line.len() + 2 > INDENT {
        let _ = writeln!(out, "{line}");
        line.clear();
    }
    for word in right.split(' ') {
        let begins = line.trim_start().is_empty() || line.len() <= INDENT;
        if !begins && line.chars().count() + 1 + word.chars().count() > WIDTH {
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
    use crate::flags::FLAGS;

    #[test]
    fn every_command_and_every_flag_is_in_it() {
        let overview = overview();
        for command in COMMANDS {
            assert!(overview.contains(command.name), "{overview}");
            let text = of(command.command);
            for flag in FLAGS.iter().filter(|flag| flag.of.contains(&command.command)) {
                let left = format!("  {}", left(flag));
                assert!(text.contains(&left), "{left} is not in\n{text}");
            }
        }
    }

    #[test]
    fn exit_codes_are_in_the_overview() {
        assert!(overview().contains("128+N"));
    }

    #[test]
    fn no_line_is_wider_than_a_page() {
        for text in COMMANDS.iter().map(|row| of(row.command)).chain([overview()]) {
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{line}");
            }
        }
    }
}
