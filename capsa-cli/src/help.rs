//! Help, made from the tables in [`crate::flags`].

use std::fmt::Write as _;

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
    out.push_str("\n`capsa help COMMAND` shows the flags of one.\n\nexit codes:\n");
    for (code, meaning) in EXIT_CODES {
        entry(&mut out, code, meaning);
    }
    out
}

/// One command with its flags.
pub(crate) fn of(command: Command) -> String {
    let CommandRow { name, operands, about, .. } = row(command);
    let flags: Vec<&Flag> = flags_of(command).collect();
    let takes_flags = if flags.is_empty() { "" } else { "[FLAGS]" };
    let mut out = format!("capsa {name}: {about}\n\n");
    let _ = writeln!(out, "usage: {}", joined(&["capsa", name, operands, takes_flags]));
    if !flags.is_empty() {
        out.push_str("\nflags:\n");
    }
    for flag in flags {
        let again = if flag.repeats { " (may be given several times)" } else { "" };
        let left = joined(&[flag.name, &flag.takes.name()]);
        entry(&mut out, &left, &format!("{}{again}", flag.help));
    }
    if command == Command::Run {
        out.push_str(RUN);
    }
    out
}

/// What no flag says.
const RUN: &str = "
examples:
  capsa run linux --kernel ./bzImage --initrd ./initrd --disk ./rootfs.qcow2 \\
    --share ./workspace:/workspace:rw --console stdio
  capsa run --config linux-vm.toml --cpus 4 --memory 4G
  capsa run --config linux-vm.toml --dry-run

With --console stdio, standard output holds the guest's console and nothing else; all that capsa
says goes to standard error. On a terminal every key is the guest's, Ctrl-C too, but for:
  Ctrl-] q       ask the guest to power off
  Ctrl-] k       cut its power
  Ctrl-] Ctrl-]  send Ctrl-] to the guest

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
                let left = format!("  {}", joined(&[flag.name, &flag.takes.name()]));
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
