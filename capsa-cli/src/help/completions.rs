//! Shell completions, made from the tables of commands and settings: `capsa completions SHELL`.

use std::fmt::Write as _;

use crate::commands::{COMMANDS, CommandRow, Subcommand};
use crate::settings::{Setting, flags_of};

/// The script for a shell; `None` for an unknown one.
pub(crate) fn of(shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash()),
        "zsh" => Some(zsh()),
        "fish" => Some(fish()),
        _ => None,
    }
}

/// What a shell offers for the first operand of a command.
enum Operands {
    Words(String),
    /// The names of running VMs.
    Vms,
    Commands,
    Files,
    Nothing,
}

fn operands(row: &CommandRow) -> Operands {
    match row.command {
        Subcommand::Stop | Subcommand::Pause | Subcommand::Resume | Subcommand::Console => {
            Operands::Vms
        }
        Subcommand::Help => Operands::Commands,
        Subcommand::Config | Subcommand::Network => Operands::Files,
        _ if row.words.is_empty() => Operands::Nothing,
        _ => Operands::Words(row.words.join(" ")),
    }
}

/// A command that prints the names of running VMs, and the ids of those without a name.
const VM_NAMES: &str = "capsa ps 2>/dev/null | awk 'NR > 1 { print ($1 == \"-\") ? $2 : $1 }'";

fn bash() -> String {
    let mut out = String::from(
        "_capsa() {\n    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n    \
         local command=${COMP_WORDS[1]} words=\n    \
         # Bash splits `--flag=value` into three words.\n    \
         if [[ $current == = ]]; then current=\n    \
         elif [[ $previous == = ]]; then previous=${COMP_WORDS[COMP_CWORD-2]}; fi\n    \
         if [[ $COMP_CWORD -eq 1 ]]; then\n",
    );
    let _ = writeln!(out, "        COMPREPLY=($(compgen -W '{}' -- \"$current\"))", commands());
    out.push_str("        return\n    fi\n    case $command:$previous in\n");
    for row in COMMANDS {
        for flag in flags_of(row.command) {
            let pattern = format!("        {}:{})", row.name, flag.flag);
            let words = flag.words().join(" ");
            let _ = match () {
                () if flag.is_switch() => continue,
                // One name per line: names of files may contain blanks.
                () if flag.takes_file() => writeln!(
                    out,
                    "{pattern} local IFS=$'\\n'; COMPREPLY=($(compgen -f -- \"$current\")); return ;;"
                ),
                () if words.is_empty() => writeln!(out, "{pattern} return ;;"),
                () => writeln!(
                    out,
                    "{pattern} COMPREPLY=($(compgen -W '{words}' -- \"$current\")); return ;;"
                ),
            };
        }
    }
    out.push_str("    esac\n    case $command in\n");
    for row in COMMANDS {
        let words = match operands(row) {
            Operands::Words(words) => words,
            Operands::Vms => format!("$({VM_NAMES})"),
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
        let _ = writeln!(out, "        {}", quoted(&format!("{}:{}", row.name, row.help)));
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
            Operands::Vms => format!("*:VM:($({VM_NAMES}))"),
            Operands::Commands => format!("1:command:({})", commands()),
            Operands::Files => format!("1:what:({})' '*:file:_files", row.words.join(" ")),
            Operands::Nothing => String::new(),
        };
        if !operand.is_empty() {
            let quoted = match row.command {
                Subcommand::Config | Subcommand::Network => format!("'{operand}'"),
                _ => quoted(&operand),
            };
            let _ = write!(out, " \\\n            {quoted}");
        }
        out.push_str(" ;;\n");
    }
    // A file in $fpath is called for the first completion; a sourced one defines the completion.
    out.push_str(
        "    esac\n}\nif [[ $funcstack[1] == _capsa ]]; then _capsa \"$@\"; \
         else compdef _capsa capsa; fi\n",
    );
    out
}

/// A flag in the form of zsh's `_arguments`: `*--disk=[help]:value:_files`.
fn zsh_flag(flag: &Setting) -> String {
    let repeats = if flag.repeats { "*" } else { "" };
    let help: String = flag.help.chars().filter(|c| !"[]:".contains(*c)).collect();
    let words = flag.words().join(" ");
    let (assign, value) = match () {
        () if flag.is_switch() => ("", String::new()),
        () if flag.takes_file() => ("=", ":file:_files".to_owned()),
        () if words.is_empty() => ("=", ":value: ".to_owned()),
        () => ("=", format!(":value:({words})")),
    };
    format!("{repeats}{}{assign}[{help}]{value}", flag.flag)
}

fn fish() -> String {
    let mut out = String::from("complete -c capsa -f\n");
    for row in COMMANDS {
        let _ = writeln!(
            out,
            "complete -c capsa -n __fish_use_subcommand -a {} -d {}",
            row.name,
            quoted(row.help)
        );
        let condition = format!("-n '__fish_seen_subcommand_from {}'", row.name);
        for flag in flags_of(row.command) {
            let words = flag.words().join(" ");
            let value = match () {
                () if flag.is_switch() => String::new(),
                () if flag.takes_file() => " -r -F".into(),
                () if words.is_empty() => " -x".into(),
                () => format!(" -x -a {}", quoted(&words)),
            };
            let short = flag.short.map(|short| format!(" -s {short}")).unwrap_or_default();
            let name = flag.flag.trim_start_matches('-');
            let help = quoted(flag.help);
            let _ =
                writeln!(out, "complete -c capsa {condition} -l {name}{short}{value} -d {help}");
        }
        let words = match operands(row) {
            Operands::Words(words) => words,
            Operands::Vms => format!("({VM_NAMES})"),
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
    let names = flags_of(row.command)
        .flat_map(|flag| [Some(flag.flag.to_owned()), flag.short.map(|short| format!("-{short}"))]);
    names.flatten().chain(["--help".into()]).collect::<Vec<_>>().join(" ")
}

/// A text as one word, in every shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_have_all_commands_and_flags() {
        for shell in ["bash", "zsh", "fish"] {
            let script = of(shell).unwrap();
            for row in COMMANDS {
                assert!(script.contains(row.name), "{shell}: {}", row.name);
                for flag in flags_of(row.command) {
                    let name = match shell {
                        "fish" => format!(" -l {} ", flag.flag.trim_start_matches('-')),
                        _ => flag.flag.to_owned(),
                    };
                    assert!(script.contains(&name), "{shell}: {name}");
                }
            }
        }
        assert_eq!(of("csh"), None);
    }

    #[test]
    fn backend_flag_offers_all_backends() {
        let flag = flags_of(Subcommand::Run).find(|flag| flag.flag == "--backend").unwrap();
        let mut known: Vec<_> =
            capsa::backend::backends().into_iter().map(|report| report.name).collect();
        known.sort_unstable();
        assert_eq!(flag.words(), known);
    }
}
