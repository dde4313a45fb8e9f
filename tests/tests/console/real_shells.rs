//! The command wrapper in real shells of the test host, on a pseudoterminal, without a VM.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use capsa_proto::console::{
    CommandOutput, CommandScope, Cursor, RunCommand, Script, ScriptAction, ScriptError, Scrollback,
};
use capsa_proto::time::Instant;
use capsa_testkit::vm::{PATIENCE, poll_fd};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;

const SHELLS: [&[&str]; 5] = [
    &["dash", "-i"],
    &["bash", "--norc"],
    &["busybox", "ash"],
    &["zsh", "-f"],
    &["fish", "--no-config"],
];

type Ender = (Box<dyn Script + Send>, Cursor);

/// A shell on a terminal.
struct RealShell {
    process: Child,
    terminal: File,
    log: Scrollback,
    began: std::time::Instant,
    nonce: u64,
    scope: CommandScope,
    /// Ends the last command.
    ender: Option<Ender>,
}

impl RealShell {
    /// `None` where the host does not have this shell.
    fn start(words: &[&str]) -> Option<Self> {
        let pty = openpty(None, None).unwrap();
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let stdio = || Stdio::from(pty.slave.try_clone().unwrap());
        // The shell leads a session and has the terminal.
        let mut command = Command::new("setsid");
        command.arg("-c").args(words).env("TERM", "vt220").env("PS1", "PROMPT# ");
        let process = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn();
        let mut shell = Self {
            process: process.ok()?,
            terminal: pty.master.into(),
            log: Scrollback::new(1 << 20),
            began: std::time::Instant::now(),
            nonce: 0xabc_0000,
            scope: CommandScope::Process,
            ender: None,
        };
        drop(pty.slave);
        shell.read_for(Duration::from_millis(700));
        let is_there = shell.process.try_wait().unwrap().is_none();
        is_there.then_some(shell)
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.began.elapsed().as_micros() as u64)
    }

    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.terminal.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                // The terminal takes more when its output is read.
                Err(_) => self.read(Duration::from_millis(1)),
            }
        }
    }

    fn read(&mut self, timeout: Duration) {
        poll_fd(&self.terminal, Some(timeout));
        let mut bytes = [0; 4096];
        if let Ok(read) = self.terminal.read(&mut bytes) {
            self.log.push(&bytes[..read]);
        }
    }

    fn read_for(&mut self, time: Duration) {
        let until = self.now() + time;
        while self.now() < until {
            self.read(until.since(self.now()));
        }
    }

    /// Drives a script until it is done, or for `time`.
    fn drive(
        &mut self,
        script: &mut dyn Script,
        cursor: &mut Cursor,
        time: Duration,
    ) -> Option<Result<CommandOutput, ScriptError>> {
        let until = self.now() + time;
        loop {
            let now = self.now();
            match script.poll_output(now, &self.log, cursor, false) {
                ScriptAction::Write(bytes) => self.write(&bytes),
                ScriptAction::Done(result) => return Some(result),
                ScriptAction::Wait if now >= until => return None,
                ScriptAction::Wait => {
                    let due = script.poll_timeout().map_or(until, |due| due.at.min(until));
                    self.read(due.since(now));
                }
            }
        }
    }

    /// Begins a command and drives it for `time` at most. A command that has not ended is given up.
    fn run_for(
        &mut self,
        command: &str,
        timeout: Duration,
        time: Duration,
    ) -> Option<Result<CommandOutput, ScriptError>> {
        if let Some((mut script, mut cursor)) = self.ender.take() {
            let ended = self.drive(script.as_mut(), &mut cursor, PATIENCE);
            ended.expect("the command that was given up has not ended").unwrap();
        }
        self.nonce += 1;
        let mut cursor = Cursor::at(self.log.end());
        let script = RunCommand::new(command, None, self.nonce, self.now(), Some(timeout));
        let mut script = script.unwrap().scope(self.scope);
        let result = self.drive(&mut script, &mut cursor, time);
        self.ender = script.abandon(self.now(), &cursor);
        result
    }

    /// Runs a command on the terminal. `keys` are typed when it has printed `ready`.
    fn run_on_terminal(&mut self, command: &str, keys: &[u8]) -> CommandOutput {
        self.nonce += 1;
        let (mut cursor, mut typed) = (Cursor::at(self.log.end()), false);
        let script = RunCommand::new(command, None, self.nonce, self.now(), Some(PATIENCE));
        let mut script = script.unwrap().scope(CommandScope::Terminal).streamed();
        let mut output = Vec::new();
        loop {
            let result = self.drive(&mut script, &mut cursor, Duration::from_millis(5));
            output.extend(script.take_output());
            if let Some(result) = result {
                let mut reply = result.unwrap_or_else(|error| panic!("{command}: {error}"));
                reply.output.splice(..0, output);
                return reply;
            }
            if !typed && output.ends_with(b"ready") {
                typed = true;
                // dash loses a SIGINT that arrives while it forks.
                self.read_for(Duration::from_millis(100));
                self.write(keys);
            }
        }
    }

    fn run(&mut self, command: &str, timeout: Duration) -> Result<CommandOutput, ScriptError> {
        self.run_for(command, timeout, PATIENCE + timeout).expect("it ends by its timeout")
    }
}

impl Drop for RealShell {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn each_shell(test: impl Fn(&mut RealShell, &str)) {
    for words in SHELLS {
        if let Some(mut shell) = RealShell::start(words) {
            test(&mut shell, words[0]);
        }
    }
}

#[test]
fn real_shell_command_cannot_end_it() {
    let long = "x".repeat(9000);
    let echo_long = format!("printf %s {long}");
    let cases: [(&str, &str, i32); 22] = [
        ("exit 5", "", 5),
        ("set -e; false; echo no", "", 1),
        ("exec echo hi", "hi\n", 0),
        ("kill -9 $$", "", 137),
        ("kill -INT $$", "", 130),
        ("kill -9 $PPID; sleep 0.1", "", 137),
        ("trap 'echo trapped' INT; kill -INT $$", "trapped\n", 0),
        ("echo out; echo err >&2; false", "out\nerr\n", 1),
        ("cd /; pwd", "/\n", 0),
        ("printf '%s ' 'a\\b' \"q\" 'ü!x'; echo", "a\\b q ü!x \n", 0),
        ("cat <<E\nhi $((1+1))\nE\n", "hi 2\n", 0),
        ("sleep 3 & echo now", "now\n", 0),
        ("[ -t 0 ] || [ -t 1 ] || [ -t 2 ] || echo no terminal", "no terminal\n", 0),
        ("echo $TERM $PAGER", "dumb cat\n", 0),
        ("seq 1 300 | $PAGER | tail -n 1", "300\n", 0),
        ("cat; read x || echo end", "end\n", 0),
        ("set -x; echo a", "+ echo a\na\n", 0),
        ("printf '# \\n$ '", "# \n$ ", 0),
        ("# comment", "", 0),
        ("! true", "", 1),
        ("", "", 0),
        (&echo_long, &long, 0),
    ];
    each_shell(|shell, name| {
        for (command, output, status) in cases {
            let reply = shell.run(command, PATIENCE).unwrap_or_else(|e| panic!("{name}: {e}"));
            let seen = (reply.text().into_owned(), reply.status);
            assert_eq!(seen, (output.to_owned(), Some(status)), "{name}: {command:.40}");
        }
    });
}

#[test]
fn real_shell_late_output_of_job_is_discarded() {
    let directory = tempfile::tempdir().unwrap();
    each_shell(|shell, name| {
        let file = directory.path().join(name).display().to_string();
        let job = format!("(sleep 0.3; echo late; echo alive >{file}) & echo now");
        assert_eq!(shell.run(&job, PATIENCE).unwrap().text(), "now\n", "{name}");
        let wait = format!("until [ -s {file} ]; do sleep 0.1; done; cat {file}");
        assert_eq!(shell.run(&wait, PATIENCE).unwrap().text(), "alive\n", "{name}");
    });
}

#[test]
fn real_shell_login_shell_scope_keeps_state() {
    let is_posix = |name: &str| !["zsh", "fish"].contains(&name);
    each_shell(|shell, name| {
        if !is_posix(name) {
            return;
        }
        shell.scope = CommandScope::Shell;
        let long = format!("printf %s '{}'", "é".repeat(2000));
        for (command, output, status) in [
            ("cd /usr; number=7", "", 0),
            ("pwd; echo $number", "/usr\n7\n", 0),
            ("false", "", 1),
            ("(exit 5)", "", 5),
            ("cat; echo end", "end\n", 0),
            (&long, &"é".repeat(2000), 0),
        ] {
            let reply = shell.run(command, PATIENCE).unwrap_or_else(|e| panic!("{name}: {e}"));
            let seen = (reply.text().into_owned(), reply.status);
            assert_eq!(seen, (output.to_owned(), Some(status)), "{name}: {command:.40}");
        }
        let reply = shell.run("echo $(", PATIENCE).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_ne!(reply.status, Some(0), "{name}: a syntax error");
        let error = shell.run("sleep 30", Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, ScriptError::TimedOut { .. }), "{name}: {error}");
        let reply = shell.run("echo $number", PATIENCE).map(|reply| reply.text().into_owned());
        assert_eq!(reply, Ok("7\n".into()), "{name}");
    });
}

#[test]
fn real_shell_terminal_scope_gives_the_terminal() {
    let long = format!("printf %s {}; printf ready; read x", "x".repeat(3000));
    let cases: [(&str, &[u8], &str, i32); 8] = [
        ("[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all", b"", "all\r\n", 0),
        ("stty rows 12 cols 77; stty size", b"", "12 77\r\n", 0),
        (
            "stty -icanon -echo; printf ready; k=$(dd bs=1 count=1 2>/dev/null); echo \" key $k\"",
            b"q",
            "ready key q\r\n",
            0,
        ),
        ("printf ready; sleep 60", b"\x03", "ready^C", 130),
        (
            "stty -echo; trap 'echo int; exit 9' INT; printf ready; while :; do sleep 0.1; done",
            b"\x03",
            "readyint\r\n",
            9,
        ),
        ("stty raw -echo; exit 3", b"", "", 3),
        // What is typed and not read does not reach the login shell.
        ("stty -echo; printf ready; sleep 0.3", b"echo typed\rexit\rand more", "ready", 0),
        (&long, b"\r", &format!("{}ready\r\n", "x".repeat(3000)), 0),
    ];
    each_shell(|shell, name| {
        for (command, keys, output, status) in cases {
            let reply = shell.run_on_terminal(command, keys);
            let seen = (reply.text().into_owned(), reply.status);
            assert_eq!(seen, (output.to_owned(), Some(status)), "{name}: {command:.40}");
            let next = shell.run("echo ok", PATIENCE).map(|reply| reply.text().into_owned());
            assert_eq!(next, Ok("ok\n".into()), "{name}: after {command:.40}");
        }
    });
}

#[test]
fn real_shell_exit_in_login_shell_is_an_error() {
    let Some(mut outer) = RealShell::start(&["dash", "-i"]) else { return };
    outer.write(b"dash -i\n");
    outer.read_for(Duration::from_millis(300));
    outer.scope = CommandScope::Shell;
    let error = outer.run("exit 3", PATIENCE).unwrap_err();
    assert!(matches!(error, ScriptError::ShellExited { .. }), "{error}");
    assert_eq!(outer.run("echo ok", PATIENCE).map(|reply| reply.output), Ok(b"ok\n".into()));
}

/// dash loses a SIGINT that arrives while it forks, so an interrupt is repeated until the command has ended.
#[test]
fn real_shell_dash_is_free_after_100_give_ups() {
    const COMMANDS: [&str; 3] =
        ["while :; do /bin/true; done", "sleep 30; sleep 30", "while :; do (:); done"];
    let Some(mut shell) = RealShell::start(&["dash", "-i"]) else { return };
    for n in 0..100 {
        shell.scope = if n % 2 == 0 { CommandScope::Process } else { CommandScope::Shell };
        let command = COMMANDS[n % COMMANDS.len()];
        let moment = Duration::from_millis(n as u64 * 2);
        let ended = shell.run_for(command, PATIENCE, moment);
        assert!(ended.is_none(), "{command}: {ended:?}");
        let reply = shell.run("echo ok", PATIENCE).map(|reply| reply.text().into_owned());
        assert_eq!(reply, Ok("ok\n".into()), "{command} after {moment:?}");
    }
}

#[test]
fn real_shell_give_up_at_any_time_frees_it() {
    const COMMANDS: [&str; 6] = [
        "sleep 30",
        "trap '' INT; sleep 30",
        "trap '' INT TERM; sleep 30; sleep 30",
        "cat /dev/zero | wc -c",
        "yes",
        "kill -STOP $$",
    ];
    each_shell(|shell, name| {
        for n in 0..7 {
            let command = COMMANDS[n % COMMANDS.len()];
            let moment = Duration::from_millis(n as u64 * 29);
            if n % 2 == 0 {
                let ended = shell.run_for(command, PATIENCE, moment);
                assert!(ended.is_none(), "{name}: {ended:?}");
            } else {
                let error = shell.run(command, moment).unwrap_err();
                assert!(matches!(error, ScriptError::TimedOut { .. }), "{name}: {error}");
            }
            let reply = shell.run("echo ok", PATIENCE).map(|reply| reply.text().into_owned());
            assert_eq!(reply, Ok("ok\n".into()), "{name}: {command} after {moment:?}");
        }
    });
}

#[test]
fn real_shell_on_exit_fails_before_timeout() {
    let Some(mut outer) = RealShell::start(&["dash", "-i"]) else { return };
    outer.write(b"dash -i\n");
    outer.read_for(Duration::from_millis(300));
    // The wrapper and the shell that runs it.
    let kill = "p=$PPID; for i in 1 2 3; do l=$p; p=$(ps -o ppid= -p $p); done\n\
                kill -9 $p $l; sleep 20";
    let error = outer.run(kill, PATIENCE).unwrap_err();
    assert!(matches!(error, ScriptError::ShellExited { .. }), "{error}");
    assert_eq!(outer.run("echo ok", PATIENCE).map(|reply| reply.output), Ok(b"ok\n".into()));
}
