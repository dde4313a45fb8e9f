//! Completions of shells, made from the tables: `capsa completions SHELL`.

use std::fmt::Write as _;

use crate::flags::{COMMANDS, Command, CommandRow, Flag, Takes, flags_of};

/// The script for a shell; `None` for one that is not known.
pub(crate) fn of(shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash()),
        "zsh" => Some(zsh()),
        "fish" => Some(fish()),
        _ => None,
    }
}

/// Words that can stand first behind a command: its own, or the names of machines.
enum Operands {
    Words(String),
    Machines,
    Commands,
    Files,
    Nothing,
}

fn operands(row: &CommandRow) -> Operands {
    match row.command {
        Command::Stop | Command::Console => Operands::Machines,
        Command::Help => Operands::Commands,
        Command::Config => Operands::Files,
        _ if row.words.is_empty() => Operands::Nothing,
        _ => Operands::Words(row.words.join(" ")),
    }
}

/// The names and ids of the machines that run.
const MACHINES: &str = "capsa ps 2>/dev/null | awk 'NR > 1 { print ($1 == \"-\") ? $2 : $1 }'";

fn bash() -> String {
    let mut out = String::from(
        "_capsa() {\n    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n    \
         local command=${COMP_WORDS[1]} words=\n    \
         # To bash, `--flag=value` is three words.\n    \
         if [[ $current == = ]]; then current=\n    \
         elif [[ $previous == = ]]; then previous=${COMP_WORDS[COMP_CWORD-2]}; fi\n    \
         if [[ $COMP_CWORD -eq 1 ]]; then\n",
    );
    let _ = writeln!(out, "        COMPREPLY=($(compgen -W '{}' -- \"$current\"))", commands());
    out.push_str("        return\n    fi\n    case $command:$previous in\n");
    for row in COMMANDS {
        for flag in flags_of(row.command) {
            let pattern = format!("        {}:{})", row.name, flag.name);
            let _ = match flag.takes {
                Takes::Nothing => continue,
                // One name a line: those of files may have blanks.
                Takes::File(_) => writeln!(
                    out,
                    "{pattern} local IFS=$'\\n'; COMPREPLY=($(compgen -f -- \"$current\")); return ;;"
                ),
                Takes::Text(_) => writeln!(out, "{pattern} return ;;"),
                Takes::Word(words) | Takes::Name(words) => writeln!(
                    out,
                    "{pattern} COMPREPLY=($(compgen -W '{}' -- \"$current\")); return ;;",
                    words.join(" ")
                ),
            };
        }
    }
    out.push_str("    esac\n    case $command in\n");
    for row in COMMANDS {
        let words = match operands(row) {
            Operands::Words(words) => words,
            Operands::Machines => format!("$({MACHINES})"),
            Operands::Commands => commands(),
            Operands::Files => format!("{} $(compgen -f -- \"$current\")", row.words.join(" ")),
            Operands::Nothing => String::new(),
        };
        let _ =
            writeln!(out, "        {}) words=\"{} {words}\" ;;", row.name, flag_names(row).trim());
    }
    out.push_str(
        "    esac\n    COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n}\n\
         complete -o filenames -F _capsa capsa\n",
    );
    out
}

fn zsh() -> String {
    let mut out =
        String::from("#compdef capsa\n_capsa() {\n    local -a commands\n    commands=(\n");
    for row in COMMANDS {
        let _ = writeln!(out, "        {}", quoted(&format!("{}:{}", row.name, row.about)));
    }
    out.push_str(
        "    )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n        \
         return\n    fi\n    case $words[2] in\n",
    );
    for row in COMMANDS {
        let _ = write!(out, "        {}) shift words; (( CURRENT-- )); _arguments", row.name);
        for flag in flags_of(row.command) {
            let _ = write!(out, " \\\n            {}", quoted(&zsh_flag(flag)));
        }
        let operand = match operands(row) {
            Operands::Words(words) => format!("1:what:({words})"),
            Operands::Machines => format!("*:machine:($({MACHINES}))"),
            Operands::Commands => format!("1:command:({})", commands()),
            Operands::Files => "1:what:(check schema)' '2:file:_files".into(),
            Operands::Nothing => String::new(),
        };
        if !operand.is_empty() {
            let quoted = match row.command {
                Command::Config => format!("'{operand}'"),
                _ => quoted(&operand),
            };
            let _ = write!(out, " \\\n            {quoted}");
        }
        out.push_str(" ;;\n");
    }
    // As a file in $fpath it is called for the first completion, else it is read at the start.
    out.push_str(
        "    esac\n}\nif [[ $funcstack[1] == _capsa ]]; then _capsa \"$@\"; \
         else compdef _capsa capsa; fi\n",
    );
    out
}

/// A flag as `_arguments` of zsh wants it: `*--disk=[help]:value:_files`.
fn zsh_flag(flag: &Flag) -> String {
    let again = if flag.repeats { "*" } else { "" };
    let help: String = flag.help.chars().filter(|c| !"[]:".contains(*c)).collect();
    let (assign, value) = match flag.takes {
        Takes::Nothing => ("", String::new()),
        Takes::File(_) => ("=", ":file:_files".to_owned()),
        Takes::Text(_) => ("=", ":value: ".to_owned()),
        Takes::Word(words) | Takes::Name(words) => ("=", format!(":value:({})", words.join(" "))),
    };
    format!("{again}{}{assign}[{help}]{value}", flag.name)
}

fn fish() -> String {
    let mut out = String::from("complete -c capsa -f\n");
    for row in COMMANDS {
        let _ = writeln!(
            out,
            "complete -c capsa -n __fish_use_subcommand -a {} -d {}",
            row.name,
            quoted(row.about)
        );
        let condition = format!("-n '__fish_seen_subcommand_from {}'", row.name);
        for flag in flags_of(row.command) {
            let value = match flag.takes {
                Takes::Nothing => String::new(),
                Takes::File(_) => " -r -F".into(),
                Takes::Text(_) => " -x".into(),
                Takes::Word(words) | Takes::Name(words) => {
                    format!(" -x -a {}", quoted(&words.join(" ")))
                }
            };
            let short = flag.short.map(|s| format!(" -s {}", &s[1..])).unwrap_or_default();
            let name = flag.name.trim_start_matches('-');
            let about = quoted(flag.help);
            let _ =
                writeln!(out, "complete -c capsa {condition} -l {name}{short}{value} -d {about}");
        }
        let words = match operands(row) {
            Operands::Words(words) => words,
            Operands::Machines => format!("({MACHINES})"),
            Operands::Commands => commands(),
            Operands::Files => {
                let _ = writeln!(out, "complete -c capsa {condition} -F");
                row.words.join(" ")
            }
            Operands::Nothing => continue,
        };
        let _ = writeln!(out, "complete -c capsa {condition} -a {}", quoted(&words));
    }
    out
}

fn commands() -> String {
    COMMANDS.iter().map(|row| row.name).collect::<Vec<_>>().join(" ")
}

fn flag_names(row: &CommandRow) -> String {
    let names = flags_of(row.command).flat_map(|flag| [Some(flag.name), flag.short]);
    names.flatten().chain(["--help"]).collect::<Vec<_>>().join(" ")
}

/// One word to every shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_flag_is_in_every_shells() {
        for shell in ["bash", "zsh", "fish"] {
            let script = of(shell).unwrap();
            for row in COMMANDS {
                assert!(script.contains(row.name), "{shell}: {}", row.name);
                for flag in flags_of(row.command) {
                    let name = match shell {
                        "fish" => format!(" -l {} ", flag.name.trim_start_matches('-')),
                        _ => flag.name.to_owned(),
                    };
                    assert!(script.contains(&name), "{shell}: {name}");
                }
            }
        }
        assert_eq!(of("csh"), None);
    }

    #[test]
    fn the_names_of_backends_are_all_of_them() {
        let flag = flags_of(Command::Run).find(|flag| flag.name == "--backend").unwrap();
        let Takes::Name(names) = flag.takes else { panic!("{:?}", flag.takes) };
        let mut known: Vec<_> = capsa::backends().into_iter().map(|report| report.name).collect();
        known.sort_unstable();
        assert_eq!(names, known);
    }
}
