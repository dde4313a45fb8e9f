//! The manual page, made from the tables of commands and settings: `capsa help --man`.

use std::fmt::Write as _;

use crate::commands::{COMMANDS, Subcommand};
use crate::failure::EXIT_CODES;
use crate::help::{self, KEYS};
use crate::settings::{Setting, flags_of};

/// The page, in man(7) format.
pub(crate) fn page() -> String {
    let mut out =
        format!(".TH CAPSA 1 \"\" \"capsa {}\" \"User Commands\"\n", env!("CARGO_PKG_VERSION"));
    out.push_str(".SH NAME\ncapsa \\- run virtual machines\n");
    out.push_str(".SH SYNOPSIS\n");
    for row in COMMANDS {
        let _ = writeln!(out, ".B capsa {}\n{}\n.br", row.name, escaped(&help::synopsis(row)));
    }
    out.push_str(".SH COMMANDS\n");
    for row in COMMANDS {
        let _ = writeln!(out, ".SS capsa {}", row.name);
        text(&mut out, row.help);
        for flag in flags_of(row.command) {
            flag_entry(&mut out, flag);
        }
        if row.command == Subcommand::Network {
            for (form, what) in help::NETWORK_FORMS {
                entry(&mut out, form, what);
            }
        }
        if row.command == Subcommand::Run {
            text(&mut out, "On a terminal all keys go to the guest, Ctrl-C included, except:");
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

fn flag_entry(out: &mut String, flag: &Setting) {
    entry(out, &help::left(flag), &help::flag_help(flag));
}

fn entry(out: &mut String, left: &str, right: &str) {
    let _ = writeln!(out, ".TP\n.B {}", escaped(left));
    let _ = writeln!(out, "{}", escaped(right));
}

fn text(out: &mut String, text: &str) {
    let _ = writeln!(out, ".PP\n{}", escaped(text));
}

/// Text without requests to the formatter, in ASCII.
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
    use crate::settings::SETTINGS;

    #[test]
    fn man_page_has_all_commands_flags_and_codes() {
        let page = page();
        for row in COMMANDS {
            assert!(page.contains(&format!(".SS capsa {}\n", row.name)), "{}", row.name);
        }
        for flag in SETTINGS {
            assert!(page.contains(&escaped(flag.flag)), "{}", flag.flag);
        }
        for (code, _) in EXIT_CODES {
            assert!(page.contains(&format!(".B {}\n", escaped(code))), "{code}");
        }
    }

    #[test]
    fn man_page_has_only_known_requests() {
        for line in page().lines().filter(|line| line.starts_with(['.', '\''])) {
            let request = line.split(' ').next().unwrap();
            let known = [".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".br", ".nf", ".fi"];
            assert!(known.contains(&request), "{line}");
        }
        assert!(page().is_ascii());
    }
}
