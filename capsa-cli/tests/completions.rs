//! The completions, in the shells they are for. One that is not installed is skipped aloud.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use capsa_testkit::nano::{self, Nano};
use capsa_testkit::skip;
use common::{Capsa, completed, run_dir};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use std::os::fd::AsFd;

const CAPSA: &str = env!("CARGO_BIN_EXE_capsa");

/// What is typed, and what each shell has to offer for its last word. A machine called `kept` runs, in
/// a directory with these files.
const CASES: &[(&str, &[&str])] = &[
    ("capsa con", &["config", "console"]),
    ("capsa run --net", &["--network"]),
    ("capsa run --network n", &["nat", "none"]),
    ("capsa run --backend q", &["qemu"]),
    ("capsa run --backend ", &["cloud-hypervisor", "qemu", "vfkit"]),
    ("capsa run --quiet --accel em", &["emulation"]),
    ("capsa run --kernel na", &["nano.elf"]),
    ("capsa run li", &["linux"]),
    ("capsa config ch", &["check"]),
    ("capsa config check go", &["good.toml"]),
    ("capsa completions f", &["fish"]),
    ("capsa help doc", &["doctor"]),
    ("capsa stop k", &["kept"]),
    ("capsa console x", &[]),
];

/// Whether this shell is here. Says so where not.
fn has(shell: &str) -> bool {
    let found = Command::new(shell).arg("--version").output().is_ok();
    if !found {
        skip(format!("{shell} is not installed"));
    }
    found
}

/// A machine to complete the name of, in whose directory the shells run.
fn machine() -> Option<Capsa> {
    let mut machine = Capsa::start(Nano::default(), &["--name", "kept"])?;
    machine.wait_for(nano::READY);
    machine.wait_until_listed("kept");
    fs::write(machine.dir().join("good.toml"), "").unwrap();
    Some(machine)
}

/// The environment of a shell: the command, and the machines of this directory.
fn shell<'c>(command: &'c mut Command, dir: &Path) -> &'c mut Command {
    let bin = Path::new(CAPSA).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).env("CAPSA_RUN_DIR", run_dir(dir)).env("HOME", dir).current_dir(dir)
}

fn check(offer: impl Fn(&str) -> Vec<String>) {
    for (line, want) in CASES {
        let mut offered = offer(line);
        offered.sort_unstable();
        assert_eq!(&offered, want, "{line}");
    }
}

fn end(mut machine: Capsa) {
    machine.write(&[nano::POWER_OFF]);
    assert_eq!(machine.wait_for_end().0, 0);
}

#[test]
fn bash_offers_commands_flags_values_files_and_machines() {
    if !has("bash") {
        return;
    }
    let Some(machine) = machine() else { return };
    check(|line| completed(machine.dir(), &line.split(' ').collect::<Vec<_>>()));
    // bash itself takes these apart.
    let equals = ["capsa", "run", "--network", "=", "no"];
    assert_eq!(completed(machine.dir(), &equals), ["none"]);
    assert_eq!(completed(machine.dir(), &equals[..4]), ["none", "nat"]);
    end(machine);
}

#[test]
fn fish_offers_commands_flags_values_files_and_machines() {
    if !has("fish") {
        return;
    }
    let Some(machine) = machine() else { return };
    let script = machine.dir().join("capsa.fish");
    let completions = Command::new(CAPSA).args(["completions", "fish"]).output().unwrap();
    fs::write(&script, completions.stdout).unwrap();
    check(|line| {
        let mut fish = Command::new("fish");
        fish.args(["--no-config", "-c", "source $argv[1]; complete -C $argv[2]"]);
        let output = shell(fish.arg(&script).arg(line), machine.dir()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
        let said = String::from_utf8(output.stdout).unwrap();
        // Each with a tab and its description.
        said.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    });
    end(machine);
}

#[test]
fn zsh_offers_commands_flags_values_files_and_machines() {
    if !has("zsh") {
        return;
    }
    let Some(machine) = machine() else { return };
    let functions = machine.dir().join("functions");
    fs::create_dir(&functions).unwrap();
    let completions = Command::new(CAPSA).args(["completions", "zsh"]).output().unwrap();
    fs::write(functions.join("_capsa"), completions.stdout).unwrap();
    // Read at the start, as many have it in their .zshrc, and found in $fpath, as packages have it.
    for load in [
        "compinit -u -D; source <(capsa completions zsh)",
        "fpath=($PWD/functions $fpath); \
                  compinit -u -D",
    ] {
        let zsh = Zsh::start(machine.dir(), load);
        check(|line| zsh.offers(line));
    }
    end(machine);
}

/// zsh completes on a terminal only: one of ours, on which `^X^A` puts all that is offered into the
/// line, and the line is then printed.
struct Zsh {
    terminal: std::cell::RefCell<File>,
    child: std::process::Child,
}

impl Zsh {
    fn start(dir: &Path, load: &str) -> Self {
        let pty = openpty(None, None).unwrap();
        let stdio = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut zsh = Command::new("setsid");
        zsh.args(["zsh", "-f", "-i"]).env("TERM", "dumb");
        shell(&mut zsh, dir).stdin(stdio()).stdout(stdio()).stderr(stdio());
        let child = zsh.spawn().unwrap();
        let zsh = Self { terminal: File::from(pty.master).into(), child };
        zsh.type_in(&format!(
            "unsetopt PROMPT_CR PROMPT_SP; PS1=; autoload -Uz compinit; {load}; \
             zle -C all-matches complete-word _generic; bindkey '^X^A' all-matches; \
             zstyle ':completion:all-matches::::' completer _all_matches _complete; \
             zstyle ':completion:*' insert true; stty -echo; echo LOAD''ED\n"
        ));
        let said = zsh.read_until("LOADED");
        assert!(!said.contains("not found") && !said.contains("error"), "{said}");
        zsh
    }

    fn offers(&self, line: &str) -> Vec<String> {
        // To the line's beginning, and what is there becomes a word of a command that shows it.
        self.type_in(&format!("{line}\x18\x01\x01print -r -- 'GOT<\x05>EN''D'\n"));
        let said = self.read_until(">END");
        let (_, got) = said.rsplit_once("GOT<").unwrap_or_else(|| panic!("{line}: {said:?}"));
        let got = got.split(">END").next().unwrap();
        let before = line.rsplit_once(' ').map_or("", |(before, _)| before);
        let words = got.strip_prefix(before).unwrap_or_else(|| panic!("{line}: {said:?}"));
        let typed = line.rsplit(' ').next().unwrap();
        // What was typed stands alone where nothing is offered.
        let words = words.split_whitespace().filter(|word| *word != typed);
        words.map(|word| word.trim_end_matches('=').to_owned()).collect()
    }

    fn type_in(&self, text: &str) {
        self.terminal.borrow_mut().write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    fn read_until(&self, what: &str) -> String {
        let end = Instant::now() + Duration::from_secs(30);
        let mut seen = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&seen);
            if text.contains(what) {
                return text.into_owned();
            }
            assert!(Instant::now() < end, "no {what} in {text:?}");
            let mut terminal = self.terminal.borrow_mut();
            let mut ready = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(100u8)).unwrap() == 0 {
                continue;
            }
            let mut chunk = [0; 4096];
            let n = terminal.read(&mut chunk).unwrap();
            seen.extend(&chunk[..n]);
        }
    }
}

impl Drop for Zsh {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
