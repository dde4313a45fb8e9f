//! The command wrapper: the line that runs a command in a shell, and the marks that it prints.
//!
//! ```text
//!  /bin/sh -c 'PROGRAM' capsa ID 'CMD'
//! ```
//!
//! The line means the same in every shell, also in zsh and fish: the words in quotes have no quote, no
//! `\\`, no `!` and only printable ASCII, which a terminal or a line editor does not interpret. So in
//! `CMD` such bytes are octal escapes, which `PROGRAM` expands with `printf %b`. The leading blank keeps
//! the line out of the history, if the shell is configured so.
//!
//! `printf` joins the parts of a mark with colons, which the line itself does not have there. So the
//! echo, even if a line editor wraps it, does not look like a mark.
//!
//! [`OWN_PROCESS`] runs the command in a session of its own (`setsid`, where the guest has it), without
//! a terminal: its input is `/dev/null`, its output goes into a pipe to `cat`. A subshell between the
//! command and the end mark keeps `kill $PPID` from losing the mark. The other side of the pipe reads
//! the console meanwhile: the line ` : ID INT` sends that signal to the process group of the command,
//! ` : ID ok` ends the wrapper; the host writes it after the end mark. `:` does nothing in every shell,
//! so a line that arrives too late at the login shell does no harm. This needs neither job control nor a
//! controlling terminal. A Ctrl-C that a user types is passed on. The wrapper does not wait for
//! background jobs of the command, which keep the pipe. What they print after the end mark is read and
//! discarded: it would be part of the next command's output, and without a reader SIGPIPE would end them.
//!
//! A command that does not fit into the line follows in lines of its own, each after a mark ([`READ`]).
//!
//! Tested with the login shells dash 0.5.12, bash 5.2, busybox ash 1.35, zsh 5.9 and fish 3.6, and with
//! dash, bash and busybox as `/bin/sh`.

use super::ScriptError;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// The maximum length of a command, in bytes after escaping: 64 KiB.
pub const COMMAND_MAX: usize = 64 << 10;

/// The maximum length of a line at a shell prompt, including its newline: busybox ash drops bytes after
/// the first 1022 (`CONFIG_FEATURE_EDITING_MAX_LEN`, default: 1024).
pub(super) const LINE_MAX: usize = 1000;

/// The maximum length of a part of a command in a line of its own. The kernel's line discipline takes
/// lines of 4095 bytes.
const PIECE_MAX: usize = 3000;

/// Prints the begin mark. `$1` is the ID.
const BEGIN: &str = r#"printf "%s:%s:%s\n" capsa begin $1;"#;

/// Runs the command, `$2`, in a process of its own. `\041` is `!`.
const OWN_PROCESS: &str = concat!(
    "exec 3<&0;s=;trap : 2 3;command -v setsid >/dev/null&&s=setsid;export TERM=dumb PAGER=cat;",
    r#"{ trap : 2 3;(trap : 2 3;$s /bin/sh -c "echo \$\$;exec /bin/sh -c \"\$1\" 2>&1" sh "$(printf %b "$2")" </dev/null 3<&-;exit);"#,
    r#"printf "%s:%s:%s:%d;\n" capsa end $1 $?; } 2>/dev/null|"#,
    r#"{ read -r p;trap "kill -INT -$p" 2;exec 4<&0;cat <&4 & while read -r a b k <&3;do "#,
    r#"case $b:$k in $1:ok) eval "kill \$$(printf "\041")";cat <&4 >/dev/null& exit;;"#,
    "$1:*) kill -$k -$p||kill -$k $p;;esac;done 2>/dev/null; }",
);

/// Gives the terminal to the command, and restores its modes. Ctrl-C ends the command and not the wrapper.
/// Then it discards what was typed for the command, up to the line ` : ID ok`.
const ON_TERMINAL: &str = concat!(
    r#"trap : 2 3;m=$(stty -g 2>/dev/null);/bin/sh -c "$(printf %b "$2")";s=$?;stty "$m" 2>/dev/null;"#,
    r#"printf "\030%s:%s:%s:%d;\n" capsa end $1 $s;"#,
    "while read -r l;do case $l in *$1*ok) exit;;esac;done",
);

/// Runs the command in the login shell. `command` makes `eval` an ordinary command, whose syntax errors
/// do not abandon the line.
const IN_SHELL: &str =
    r#"command eval "$(printf %b "$2")" </dev/null;printf "%s:%s:%s:%d;\n" capsa end $1 $?"#;

/// Reads the command from the console: lines that begin with `+`, up to the line `.`. With any other line
/// the command is empty.
const READ: &str = concat!(
    r#"capsa_command=;while printf "%s:%s:%s\n" capsa more $1;IFS= read -r capsa_line;do "#,
    "case $capsa_line in +*) capsa_command=$capsa_command${capsa_line#+};;.) break;;",
    "*) capsa_command=;break;;esac;done;",
);

/// Where a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CommandScope {
    /// In a process of its own, under `/bin/sh`, whatever the login shell is: `cd` and variables end
    /// with the command, and `exit` cannot end the login shell. The default.
    #[default]
    Process,
    /// In a process of its own that has the guest's terminal, for pagers, editors and shells: it reads
    /// what is written to the console, and its output is not changed. Write only after the command has
    /// printed something: the shell would take input before that. A command that was given up gets
    /// Ctrl-C only.
    Terminal,
    /// In the login shell itself, which has to be like dash, bash or busybox ash: `cd` and variables
    /// last, `exit` ends the shell. A command that was given up gets Ctrl-C only.
    Shell,
}

/// The marks that the guest prints around the output of a command. The nonce identifies the command.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    pub(super) begin: String,
    /// The exit status in decimal and a semicolon follow.
    pub(super) end: String,
    /// Printed after each line but the last, if a command needs several lines.
    pub(super) more: String,
}

impl Marks {
    pub(super) fn new(nonce: u64) -> Self {
        let mark = |what| format!("capsa:{what}:{nonce:016x}");
        Self { begin: mark("begin"), end: mark("end") + ":", more: mark("more") }
    }

    /// The end mark of a command on a terminal. Output that may begin a mark is held back until the next
    /// byte, so this mark begins with a byte that no program prints last: CAN.
    pub(super) fn end_on_terminal(nonce: u64) -> String {
        format!("\x18{}", Self::new(nonce).end)
    }
}

/// A command in printable ASCII, ready for the wrapper.
#[derive(Debug, Clone)]
pub(super) struct EncodedCommand {
    /// Printable ASCII, for `printf %b`.
    payload: String,
}

impl EncodedCommand {
    pub(super) fn parse(command: &str) -> Result<Self, ScriptError> {
        if command.contains('\0') {
            return Err(ScriptError::Untypeable { what: "command", byte: 0 });
        }
        let payload = escape(command);
        if payload.len() > COMMAND_MAX {
            return Err(ScriptError::CommandTooLong { len: payload.len(), max: COMMAND_MAX });
        }
        Ok(Self { payload })
    }

    /// The lines to write. Before each line but the first, wait for [`Marks::more`]: a busy shell may
    /// drop input.
    pub(super) fn lines(&self, nonce: u64, scope: CommandScope) -> VecDeque<Vec<u8>> {
        let line = wrap(&format!("'{}'", self.payload), "", nonce, scope);
        if line.len() <= LINE_MAX {
            return VecDeque::from([line.into_bytes()]);
        }
        let first = wrap("\"$capsa_command\"", READ, nonce, scope);
        let pieces = self.payload.as_bytes().chunks(PIECE_MAX);
        let pieces = pieces.map(|piece| [b"+", piece, b"\n"].concat());
        core::iter::once(first.into_bytes()).chain(pieces).chain([b".\n".to_vec()]).collect()
    }
}

/// The line with the wrapper. `word` is the command as a shell word.
fn wrap(word: &str, read: &str, nonce: u64, scope: CommandScope) -> String {
    let program = match scope {
        CommandScope::Process => OWN_PROCESS,
        CommandScope::Terminal => ON_TERMINAL,
        CommandScope::Shell => IN_SHELL,
    };
    let program = [read, BEGIN, program].concat();
    if scope == CommandScope::Shell {
        let program = program.replace("$1", &format!("{nonce:016x}"));
        return format!(" {}\n", program.replace("\"$2\"", word));
    }
    let (program, word) =
        if read.is_empty() { (program, word) } else { (program.replace("\"$2\"", word), "''") };
    format!(" /bin/sh -c '{program}' capsa {nonce:016x} {word}\n")
}

/// The line that prints the end mark of a command in the login shell which Ctrl-C has ended: its status is
/// that of SIGINT.
pub(super) fn end_of_interrupted(nonce: u64) -> String {
    format!(" printf '%s:%s:%s:%d;\\n' capsa end {nonce:016x} 130\n")
}

/// The line that sends `request` to the wrapper: the name of a signal, or `ok`.
pub(super) fn request(nonce: u64, request: &str) -> Vec<u8> {
    format!(" : {nonce:016x} {request}\n").into_bytes()
}

/// What follows an end mark.
pub(super) enum StatusParse {
    Known { status: i32, len: usize },
    Incomplete,
    No,
}

/// Parses `decimal ";"`, with at most as many digits as an exit status has.
pub(super) fn parse_status(bytes: &[u8]) -> StatusParse {
    const DIGITS: usize = 3;
    let digits = bytes.iter().take(DIGITS + 1).take_while(|b| b.is_ascii_digit()).count();
    match bytes.get(digits) {
        None if digits <= DIGITS => StatusParse::Incomplete,
        Some(b';') if (1..=DIGITS).contains(&digits) => {
            let status = bytes[..digits].iter().fold(0, |n, b| n * 10 + i32::from(b - b'0'));
            StatusParse::Known { status, len: digits + 1 }
        }
        _ => StatusParse::No,
    }
}

/// Escapes `text` for `printf %b` in single quotes: other bytes become octal escapes.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if !b"'\\!".contains(&byte) => out.push(byte as char),
            // Writing to a `String` does not fail.
            _ => _ = write!(out, r"\0{byte:03o}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    fn typed(command: &str, scope: CommandScope) -> Vec<String> {
        let lines = EncodedCommand::parse(command).expect("typeable").lines(7, scope);
        lines.into_iter().map(|l| String::from_utf8(l).expect("ASCII")).collect()
    }

    fn own_process(command: &str) -> Vec<String> {
        typed(command, CommandScope::Process)
    }

    #[test]
    fn short_command_is_one_line() {
        let [line] = &own_process("echo 'hi'")[..] else { panic!("one line") };
        assert!(line.starts_with(r#" /bin/sh -c 'printf "%s:%s:%s\n" capsa begin $1;exec 3<&0;"#));
        assert!(line.ends_with("' capsa 0000000000000007 'echo \\0047hi\\0047'\n"), "{line}");
        assert!(line.len() < 610, "{}", line.len());
        assert_eq!(
            typed("$1", CommandScope::Shell),
            [" printf \"%s:%s:%s\\n\" capsa begin 0000000000000007;\
              command eval \"$(printf %b '$1')\" </dev/null;\
              printf \"%s:%s:%s:%d;\\n\" capsa end 0000000000000007 $?\n"]
        );
    }

    #[test]
    fn command_nul_or_too_long_is_rejected() {
        let error = |c: &str| EncodedCommand::parse(c).expect_err("rejected").to_string();
        assert_eq!(error("a\0"), "command contains the byte 0x00, which cannot be typed");
        assert_eq!(
            error(&"x".repeat(COMMAND_MAX + 1)),
            "command of 65537 bytes is longer than 65536 bytes"
        );
        assert!(EncodedCommand::parse(&"x".repeat(COMMAND_MAX)).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn wrapper_lines_are_short_printable_without_marks(
            command in r#"([ -~]|'|\n|é|capsa:end:0000000000000007:){0,900}"#,
        ) {
            let marks = Marks::new(7);
            for (n, line) in own_process(&command).iter().enumerate() {
                let max = if n == 0 { LINE_MAX } else { PIECE_MAX + 2 };
                prop_assert!(line.len() <= max);
                let body = line.strip_suffix('\n').expect("a newline at the end");
                prop_assert!(body.bytes().all(|b| matches!(b, b' '..=b'~')));
                if n == 0 {
                    // What zsh and fish see: quoted words without quotes, `\\` and `!`.
                    prop_assert_eq!(body.matches('\'').count(), 4);
                    prop_assert!(!body.contains(r"\\") && !body.contains('!'));
                }
                // A user may write the mark of another command, but does not know this nonce.
                if !command.contains("capsa:") {
                    for mark in [&marks.begin, &marks.end, &marks.more] {
                        prop_assert!(!body.contains(mark.as_str()));
                    }
                }
            }
        }
    }
}
