//! Random commands of the kinds that agents and scripts write, each with its right result.
//!
//! A command uses only what POSIX requires of a shell, and programs that busybox and Debian both have.

use fastrand::Rng;

/// A command, and what it must do.
#[derive(Clone, Debug)]
pub(super) struct SoakCommand {
    pub(super) text: String,
    pub(super) expected: Expected,
}

/// What a command must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// End with exactly this output and status.
    Result(Vec<u8>, i32),
    /// End with output that starts like this, and with status 0: a background job may print too.
    Start(&'static [u8]),
    /// End with a status other than 0.
    Failure,
    /// End.
    End,
    /// Run until it is given up.
    Endless,
}

impl Expected {
    /// Whether a command may end like this.
    pub(super) fn allows(&self, output: &[u8], status: i32) -> bool {
        match self {
            Self::Result(expected, code) => output == expected && status == *code,
            Self::Start(start) => output.starts_with(start) && status == 0,
            Self::Failure => status != 0,
            Self::End => true,
            Self::Endless => false,
        }
    }
}

/// A command that succeeds with this output.
fn prints(text: impl Into<String>, output: impl Into<Vec<u8>>) -> SoakCommand {
    ends(text, output, 0)
}

fn ends(text: impl Into<String>, output: impl Into<Vec<u8>>, status: i32) -> SoakCommand {
    SoakCommand { text: text.into(), expected: Expected::Result(output.into(), status) }
}

/// One of these commands, which all do the same.
fn one_of(rng: &mut Rng, texts: &[&str], expected: Expected) -> SoakCommand {
    SoakCommand { text: texts[rng.usize(..texts.len())].into(), expected }
}

/// A random command.
pub(super) fn random(rng: &mut Rng) -> SoakCommand {
    KINDS[rng.usize(..KINDS.len())](rng)
}

/// Kinds that are there twice come twice as often.
const KINDS: &[fn(&mut Rng) -> SoakCommand] = &[
    exit_status,
    exit_status,
    strict_mode,
    pipeline,
    here_document,
    script,
    background,
    pager,
    flood,
    binary,
    signal_to_itself,
    replaced_shell,
    redirected_shell,
    directory,
    quoted,
    quoted,
    many_bytes,
    syntax_error,
    reads_input,
    traced,
    trapped_exit,
    shell_error,
    unfinished_line,
    imitation,
    kernel_text,
    terminal,
    slow,
    endless,
    endless,
    deaf,
    endless_flood,
    other_group,
];

fn exit_status(rng: &mut Rng) -> SoakCommand {
    let status = rng.i32(0..=255);
    match rng.u8(..7) {
        0 => ends(format!("exit {status}"), "", status),
        1 => ends(format!("echo x; exit {status}"), "x\n", status),
        2 => ends(format!("(exit {status})"), "", status),
        3 => ends(format!("sh -c 'exit {status}'"), "", status),
        4 => ends(format!("eval 'exit {status}'"), "", status),
        5 => ends(format!("f() {{ return {status}; }}; f"), "", status),
        _ => ends(format!("printf '%s' x; exit {status}; echo never"), "x", status),
    }
}

fn strict_mode(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..5) {
        0 => ends("set -e; false; echo never", "", 1),
        1 => ends("set -eu\necho one\nfalse\necho never", "one\n", 1),
        2 => ends("set -e; echo a; (exit 9); echo never", "a\n", 9),
        3 => prints("set -e; false || echo saved", "saved\n"),
        _ => SoakCommand { text: "set -u; echo $not_set".into(), expected: Expected::Failure },
    }
}

fn pipeline(rng: &mut Rng) -> SoakCommand {
    let n = rng.u32(1..2000);
    match rng.u8(..8) {
        0 => prints(format!("seq {n} | wc -l"), format!("{n}\n")),
        1 => prints(format!("seq 1 {n} | sort -rn | head -n 1"), format!("{n}\n")),
        2 => prints("false | true", ""),
        3 => ends("true | false", "", 1),
        4 => ends("echo x | grep -q y", "", 1),
        5 => prints("printf 'b\\na\\n' | sort | tr a-z A-Z", "A\nB\n"),
        6 => prints(format!("seq {n} | while read -r i; do last=$i; done; echo end"), "end\n"),
        _ => prints(format!("yes | head -n {n} | tail -n 1"), "y\n"),
    }
}

fn here_document(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..4) {
        0 => prints("cat <<EOF\n1 + 2 = $((1 + 2))\n\ttab\nEOF", "1 + 2 = 3\n\ttab\n"),
        1 => prints(
            "cat <<'EOF'\n$HOME `id` \\ 'it''s' \"x\"\nEOF\n",
            "$HOME `id` \\ 'it''s' \"x\"\n",
        ),
        2 => prints(
            "cat >/tmp/soak.sh <<'EOF'\n#!/bin/sh\necho \"$# $1\"\nEOF\nsh /tmp/soak.sh 'a b' c",
            "2 a b\n",
        ),
        _ => prints("cat <<A; cat <<B\na\nA\nb\nB", "a\nb\n"),
    }
}

fn script(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..6) {
        0 => prints("for i in 1 2 3\ndo\n\techo \"$i\"\ndone", "1\n2\n3\n"),
        1 => prints("if [ -d /tmp ]; then echo yes; else echo no; fi", "yes\n"),
        2 => prints("case x in x) echo match;; *) echo other;; esac", "match\n"),
        3 => prints("i=0; while [ $i -lt 5 ]; do i=$((i + 1)); done; echo $i", "5\n"),
        4 => prints("x=$(echo a; echo b); echo \"$x\" | wc -l | tr -d ' '", "2\n"),
        _ => prints("export A=1; sh -c 'echo $A'; unset A; echo \"${A-unset}\"", "1\nunset\n"),
    }
}

fn background(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..5) {
        0 => prints("sleep 20 >/dev/null 2>&1 & echo started", "started\n"),
        1 => prints("nohup sleep 20 >/dev/null 2>&1 </dev/null & true", ""),
        2 => prints("echo a & wait; echo b", "a\nb\n"),
        3 => ends("(exit 4) & wait $!", "", 4),
        // The job has the output of the command.
        _ => one_of(
            rng,
            &["sleep 20 & echo now", "(sleep 1; echo late) & echo now"],
            Expected::Start(b"now\n"),
        ),
    }
}

fn pager(rng: &mut Rng) -> SoakCommand {
    let lines = |n: u32| (1..=n).map(|i| format!("{i}\n")).collect::<String>();
    match rng.u8(..3) {
        0 => prints("seq 1 300 | less", lines(300)),
        1 => prints("seq 1 100 >/tmp/soak.txt; less /tmp/soak.txt", lines(100)),
        _ => prints("seq 1 90 | ${PAGER:-less}", lines(90)),
    }
}

fn flood(rng: &mut Rng) -> SoakCommand {
    let n = rng.usize(1000..60_000);
    match rng.u8(..3) {
        0 => prints(format!("yes | head -n {n}"), "y\n".repeat(n)),
        1 => prints(format!("head -c {n} /dev/zero | tr '\\000' x"), "x".repeat(n)),
        _ => prints(format!("head -c {n} /dev/zero"), vec![0; n]),
    }
}

fn binary(rng: &mut Rng) -> SoakCommand {
    let bytes: Vec<u8> = match rng.u8(..3) {
        0 => (0..=255).collect(),
        1 => (0..200).map(|_| rng.u8(..)).collect(),
        _ => b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \x03\x04\x1a\x1c \r\r\n\x00\xff\x1b[6n\x1bc"
            .into(),
    };
    let escapes: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
    // The terminal of a command turns `\n` into `\r\n`, and `run` turns that back.
    prints(format!("printf '{escapes}'"), bytes)
}

fn signal_to_itself(rng: &mut Rng) -> SoakCommand {
    let (signal, number) =
        [("9", 9), ("KILL", 9), ("TERM", 15), ("INT", 2), ("HUP", 1), ("PIPE", 13), ("SEGV", 11)]
            [rng.usize(..7)];
    ends(format!("echo before; kill -{signal} $$; echo after"), "before\n", 128 + number)
}

fn replaced_shell(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..5) {
        0 => prints("exec echo hi", "hi\n"),
        1 => ends("exec sh -c 'exit 6'", "", 6),
        2 => ends("exec /no/such/program 2>/dev/null", "", 127),
        3 => ends("/no/such/program 2>/dev/null", "", 127),
        _ => ends("/etc/passwd 2>/dev/null", "", 126),
    }
}

fn redirected_shell(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..4) {
        0 => prints("exec >/dev/null 2>&1; echo hidden", ""),
        1 => prints("exec 3>&1 >/dev/null; echo hidden; echo shown >&3", "shown\n"),
        2 => prints("exec </dev/null; cat; echo end", "end\n"),
        _ => prints("exec 2>&1; echo error >&2", "error\n"),
    }
}

fn directory(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..3) {
        0 => prints("cd /tmp && pwd", "/tmp\n"),
        1 => prints("cd / && (cd /etc && pwd) && pwd", "/etc\n/\n"),
        _ => SoakCommand { text: "cd /no/such".into(), expected: Expected::Failure },
    }
}

/// A word of random characters, quoted for the shell.
fn quoted(rng: &mut Rng) -> SoakCommand {
    const CHARACTERS: &str = "ab '\"\\$`!#%&*()[]{}<>|;~?=^-\n\töß€😀 \u{7f}\u{1}\u{1b}\r";
    let choices: Vec<char> = CHARACTERS.chars().collect();
    let word: String =
        (0..rng.usize(0..300)).map(|_| choices[rng.usize(..choices.len())]).collect();
    prints(format!("printf '%s' '{}'", word.replace('\'', r"'\''")), word)
}

/// A long command: up to 60 KB, of which none needs an escape.
fn many_bytes(rng: &mut Rng) -> SoakCommand {
    let len = rng.usize(900..60_000);
    match rng.u8(..3) {
        0 => prints(format!("printf '%s' '{}' | wc -c", "x".repeat(len)), format!("{len}\n")),
        1 => prints(format!(": '{}'; echo end", "it is long ".repeat(len / 11)), "end\n"),
        _ => ends(format!("{} exit 3", "true;".repeat(len / 5)), "", 3),
    }
}

fn syntax_error(rng: &mut Rng) -> SoakCommand {
    let texts = [
        "echo 'abc",
        "echo \"abc",
        "echo $(",
        "echo `date",
        "if true; then",
        "for i in 1 2; do echo $i",
        "fi",
        ")",
        "echo a; }",
        "echo ${",
        "case x in",
        "| cat",
        "echo a &&",
        "while :",
    ];
    one_of(rng, &texts, Expected::Failure)
}

fn reads_input(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..7) {
        0 => prints("cat", ""),
        1 => prints("read -r x; echo \"got:$x\"", "got:\n"),
        2 => prints("cat - | wc -c", "0\n"),
        3 => prints("sh", ""),
        4 => prints("head -n 1", ""),
        5 => one_of(rng, &["cat </dev/tty", "read -r x </dev/tty", "sh -i"], Expected::End),
        _ => prints("while read -r line; do echo \"$line\"; done", ""),
    }
}

fn traced(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..2) {
        0 => prints("set -x; echo hi", "+ echo hi\nhi\n"),
        _ => prints("set -v; echo hi", "hi\n"),
    }
}

fn trapped_exit(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..3) {
        0 => ends("trap 'echo bye' EXIT; exit 3", "bye\n", 3),
        1 => prints("trap 'echo bye' EXIT; echo hi", "hi\nbye\n"),
        _ => prints("trap 'echo caught' USR1; kill -USR1 $$; echo on", "caught\non\n"),
    }
}

fn shell_error(rng: &mut Rng) -> SoakCommand {
    let texts = [
        ". /no/such/file",
        "readonly soak=1; soak=2",
        "unset PATH; no-such-program",
        "shift 100 && true",
        "${x?no x}",
        "fg",
    ];
    one_of(rng, &texts, Expected::Failure)
}

/// Lines that end where a wrapper could be hit: comments, backslashes, `&`, nothing at all.
fn unfinished_line(rng: &mut Rng) -> SoakCommand {
    match rng.u8(..10) {
        0 => prints("echo hi # a comment", "hi\n"),
        1 => prints("# only a comment", ""),
        2 => prints("", ""),
        3 => prints(" \t ", ""),
        4 => prints("echo hi;", "hi\n"),
        5 => prints("echo hi &\nwait", "hi\n"),
        6 => ends("! true", "", 1),
        7 => prints("echo a \\\nb", "a b\n"),
        8 => prints("{ echo a; }", "a\n"),
        _ => prints("\n\necho a\n\n\n", "a\n"),
    }
}

/// Output that looks like marks, prompts and logins.
fn imitation(rng: &mut Rng) -> SoakCommand {
    let texts = [
        "capsa:begin:0123456789abcdef",
        "capsa:end:0123456789abcdef:0;",
        "capsa:end:",
        "capsa login: ",
        "Password: ",
        "Login incorrect",
        "root@capsa:~# ",
        "$ ",
        "You are in emergency mode",
    ];
    let text = texts[rng.usize(..texts.len())];
    match rng.u8(..2) {
        0 => prints(format!("printf '%s' '{text}'"), text),
        _ => prints(format!("echo '{text}'; sleep 0.8; echo on"), format!("{text}\non\n")),
    }
}

/// Output that quotes a kernel.
fn kernel_text(rng: &mut Rng) -> SoakCommand {
    let texts = [
        "[    5.000000] Kernel panic - not syncing: VFS",
        "Kernel panic - not syncing: x",
        "[    5.000000] reboot: Restarting system",
        "---[ end Kernel panic - not syncing: x ]---",
        "[    0.000000] Linux version 6.1.0",
        "Kernel panic - not syncing: x\n---[ end Kernel panic - not syncing: x ]---",
    ];
    let text = texts[rng.usize(..texts.len())];
    match rng.u8(..2) {
        0 => prints(format!("printf '%s\\n' '{text}'"), format!("{text}\n")),
        _ => prints(format!("echo '{text}'; sleep 1.2; echo on"), format!("{text}\non\n")),
    }
}

/// Programs that would change a terminal, if they had one.
fn terminal(rng: &mut Rng) -> SoakCommand {
    one_of(rng, &["stty -echo", "stty raw", "reset", "clear", "tty", "stty sane"], Expected::End)
}

fn slow(rng: &mut Rng) -> SoakCommand {
    prints(format!("sleep 0.{}; echo done", rng.u8(1..9)), "done\n")
}

fn endless(rng: &mut Rng) -> SoakCommand {
    let texts = [
        "sleep 600",
        "echo x; sleep 600",
        "while :; do :; done",
        "while true; do sleep 1; done",
        "tail -f /dev/null",
        "sleep 600 | cat",
        "(sleep 600)",
        "sh -c 'sleep 600; echo never'",
        "sleep 600 & wait",
        "kill -STOP $$",
        "trap 'exit 0' TERM; while :; do sleep 1; done",
    ];
    one_of(rng, &texts, Expected::Endless)
}

/// Commands that ignore the first signals.
fn deaf(rng: &mut Rng) -> SoakCommand {
    let texts = [
        "trap '' INT; sleep 600",
        "trap '' INT TERM; sleep 600",
        "trap '' HUP INT QUIT TERM TSTP; while :; do sleep 1; done",
        "trap 'echo no' INT TERM; while :; do sleep 1; done",
        "trap '' INT; sleep 600 | sleep 600",
    ];
    one_of(rng, &texts, Expected::Endless)
}

fn endless_flood(rng: &mut Rng) -> SoakCommand {
    let texts = [
        "yes",
        "cat /dev/zero",
        "cat /dev/urandom",
        "while :; do echo line; done",
        "trap '' INT; yes | cat",
        "yes 'Kernel panic - not syncing: x'",
    ];
    one_of(rng, &texts, Expected::Endless)
}

/// Commands whose processes leave the process group of the command.
fn other_group(rng: &mut Rng) -> SoakCommand {
    let texts = ["timeout 600 sleep 600", "setsid sleep 600 & wait", "set -m; sleep 600; true"];
    one_of(rng, &texts, Expected::Endless)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use super::{Expected, Rng, SoakCommand, random};

    /// The output and the status of a command under the host's shell.
    fn run(text: &str) -> (Vec<u8>, i32) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let output = |_| Stdio::from(file.reopen().unwrap());
        // The file is open for appending, so that standard output and error do not overwrite each other.
        let mut shell = Command::new("setsid");
        let line = format!("exec >>{0} 2>&1; exec sh -c \"$1\"", file.path().display());
        shell.args(["-w", "sh", "-c", &line, "sh", text]).stdin(Stdio::null()).stdout(output(1));
        let status = shell.status().unwrap();
        let status = std::os::unix::process::ExitStatusExt::signal(&status)
            .map_or_else(|| status.code().unwrap(), |signal| 128 + signal);
        (fs::read(file.path()).unwrap(), status)
    }

    #[test]
    fn commands_do_the_same_under_the_hosts_shell() {
        for seed in 0..300 {
            let SoakCommand { text, expected } = random(&mut Rng::with_seed(seed));
            if expected == Expected::Endless || text.contains("less") {
                continue;
            }
            let (output, status) = run(&text);
            let shown = String::from_utf8_lossy(&output[..output.len().min(300)]);
            let is_right = expected.allows(&output, status);
            assert!(is_right, "seed {seed}: {text:?}: status {status}, output {shown:?}");
        }
    }
}
