//! The manual page, made from the tables: `capsa help --man`.

use std::fmt::Write as _;

use crate::failure::EXIT_CODES;
use crate::flags::{COMMANDS, Command, Flag, flags_of};
use crate::help::{self, KEYS};

/// The page, in the language of man(7).
pub(crate) fn page() -> String {
    let mut out =
        format!(".TH CAPSA 1 \"\" \"capsa {}\" \"User Commands\"\n", env!("CARGO_PKG_VERSION"));
    out.push_str(".SH NAME\ncapsa \\- runs virtual machines\n");
    out.push_str(".SH SYNOPSIS\n");
    for row in COMMANDS {
        let _ = writeln!(out, ".B capsa {}\n{}\n.br", row.name, escaped(&help::synopsis(row)));
    }
    out.push_str(".SH COMMANDS\n");
    for row in COMMANDS {
        let _ = writeln!(out, ".SS capsa {}", row.name);
        text(&mut out, row.about);
        for flag in flags_of(row.command) {
            flag_entry(&mut out, flag);
        }
        if row.command == Command::Run {
            text(&mut out, "On a terminal every key is the guest's, Ctrl-C too, but for:");
            for (keys, what) in KEYS {
                entry(&mut out, keys, what);
            }
        }
    }
    out.push_str(".SH EXIT STATUS\n");
    for (code, meaning) in EXIT_CODES {
        entry(&mut out, code, meaning);
    }
    out.push_str(".SH ENVIRONMENT\n");
    for (name, meaning) in help::ENVIRONMENT {
        entry(&mut out, name, meaning);
    }
    out.push_str(".SH EXAMPLES\n.nf\n");
    for line in help::EXAMPLES.lines() {
        let _ = writeln!(out, "{}", escaped(line));
    }
    out.push_str(".fi\n");
    out
}

fn flag_entry(out: &mut String, flag: &Flag) {
    let short = flag.short.map(|short| format!("{short}, ")).unwrap_or_default();
    let again = if flag.repeats { " (may be given several times)" } else { "" };
    let value = flag.takes.name();
    let left = format!("{short}{} {value}", flag.name);
    entry(out, left.trim_end(), &format!("{}{again}", flag.help));
}

fn entry(out: &mut String, left: &str, right: &str) {
    let _ = writeln!(out, ".TP\n.B {}", escaped(left));
    let _ = writeln!(out, "{}", escaped(right));
}

fn text(out: &mut String, text: &str) {
    let _ = writeln!(out, ".PP\n{}", escaped(text));
}

/// Text in which nothing is an order to the formatter, in ASCII.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            c if c.is_ascii() => out.push(c),
            c => drop(write!(out, "\\[u{:04X}]", u32::from(c))),
        }
    }
    if out.starts_with('.') { format!("\\&{out}") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::FLAGS;

    #[test]
    fn every_command_flag_and_exit_code_is_in_it() {
        let page = page();
        for row in COMMANDS {
            assert!(page.contains(&format!(".SS capsa {}\n", row.name)), "{}", row.name);
        }
        for flag in FLAGS {
            assert!(page.contains(&escaped(flag.name)), "{}", flag.name);
        }
        for (code, _) in EXIT_CODES {
            assert!(page.contains(&format!(".B {}\n", escaped(code))), "{code}");
        }
    }

    #[test]
    fn no_line_is_an_order_by_accident() {
        for line in page().lines().filter(|line| line.starts_with(['.', '\''])) {
            let order = line.split(' ').next().unwrap();
            let known = [".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".br", ".nf", ".fi"];
            assert!(known.contains(&order), "{line}");
        }
        assert!(page().is_ascii());
    }
}
