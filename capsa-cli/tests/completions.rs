//! The completions, tested in bash, fish and zsh. A shell that is not installed is skipped.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use capsa_testkit::nano::{self, Nano};
use capsa_testkit::skip;
use common::{CapsaProcess, completed, run_dir};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use std::os::fd::AsFd;

const CAPSA: &str = env!("CARGO_BIN_EXE_capsa");

/// A command line, and the completions of its last word. A VM with the name `kept` runs, and the
/// working directory has the files.
const CASES: &[(&str, &[&str])] = &[
    ("capsa con", &["config", "console"]),
    ("capsa run --net", &["--network", "--network-log", "--network-pcap"]),
    ("capsa run --network n", &["nat", "none"]),
    ("capsa run --backend q", &["qemu"]),
    ("capsa run --backend ", &["cloud-hypervisor", "qemu", "vfkit"]),
    ("capsa run --quiet --accel em", &["emulation"]),
    ("capsa run --kernel na", &["nano.elf"]),
    ("capsa run li", &["linux"]),
    ("capsa config ch", &["check"]),
    ("capsa config check go", &["good.toml"]),
    ("capsa network ex", &["explain"]),
    ("capsa network explain go", &["good.toml"]),
    ("capsa completions f", &["fish"]),
    ("capsa help doc", &["doctor"]),
    ("capsa stop k", &["kept"]),
    ("capsa console x", &[]),
];

/// Whether this shell is installed; if not, the test counts as skipped.
fn has(shell: &str) -> bool {
    let found = Command::new(shell).arg("--version").output().is_ok();
    if !found {
        skip(format!("{shell} is not installed"));
    }
    found
}

/// A VM whose name is completed, in whose directory the shells run.
fn running_vm() -> Option<CapsaProcess> {
    let mut vm = CapsaProcess::start(Nano::default(), &["--name", "kept"])?;
    vm.wait_for(nano::READY);
    vm.wait_until_listed("kept");
    fs::write(vm.dir().join("good.toml"), "").unwrap();
    Some(vm)
}

/// Sets a shell's environment: the command in `PATH`, and the run directories of `dir`.
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

fn end(mut vm: CapsaProcess) {
    vm.write(&[nano::POWER_OFF]);
    assert_eq!(vm.wait_for_end().0, 0);
}

#[test]
fn bash_completes_all_words() {
    if !has("bash") {
        return;
    }
    let Some(vm) = running_vm() else { return };
    check(|line| completed(vm.dir(), &line.split(' ').collect::<Vec<_>>()));
    // bash splits words at `=`.
    let equals = ["capsa", "run", "--network", "=", "no"];
    assert_eq!(completed(vm.dir(), &equals), ["none"]);
    assert_eq!(completed(vm.dir(), &equals[..4]), ["none", "nat", "policy", "record"]);
    end(vm);
}

#[test]
fn fish_completes_all_words() {
    if !has("fish") {
        return;
    }
    let Some(vm) = running_vm() else { return };
    let script = vm.dir().join("capsa.fish");
    let completions = Command::new(CAPSA).args(["completions", "fish"]).output().unwrap();
    fs::write(&script, completions.stdout).unwrap();
    check(|line| {
        let mut fish = Command::new("fish");
        fish.args(["--no-config", "-c", "source $argv[1]; complete -C $argv[2]"]);
        let output = shell(fish.arg(&script).arg(line), vm.dir()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
        let text = String::from_utf8(output.stdout).unwrap();
        // Each line has a tab and a description.
        text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    });
    end(vm);
}

#[test]
fn zsh_completes_all_words() {
    if !has("zsh") {
        return;
    }
    let Some(vm) = running_vm() else { return };
    let functions = vm.dir().join("functions");
    fs::create_dir(&functions).unwrap();
    let completions = Command::new(CAPSA).args(["completions", "zsh"]).output().unwrap();
    fs::write(functions.join("_capsa"), completions.stdout).unwrap();
    // Sourced, as in a .zshrc, and found in $fpath, as in a package.
    for load in [
        "compinit -u -D; source <(capsa completions zsh)",
        "fpath=($PWD/functions $fpath); \
                  compinit -u -D",
    ] {
        let zsh = Zsh::start(vm.dir(), load);
        check(|line| zsh.offers(line));
    }
    end(vm);
}

/// zsh completes only on a terminal. `^X^A` inserts all completions into the line, which is then
/// printed.
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
        let text = zsh.read_until("LOADED");
        assert!(!text.contains("not found") && !text.contains("error"), "{text}");
        zsh
    }

    fn offers(&self, line: &str) -> Vec<String> {
        // Go to the beginning of the line, and turn the line into an argument of `print`.
        self.type_in(&format!("{line}\x18\x01\x01print -r -- 'GOT<\x05>EN''D'\n"));
        let text = self.read_until(">END");
        let (_, got) = text.rsplit_once("GOT<").unwrap_or_else(|| panic!("{line}: {text:?}"));
        let got = got.split(">END").next().unwrap();
        let before = line.rsplit_once(' ').map_or("", |(before, _)| before);
        let words = got.strip_prefix(before).unwrap_or_else(|| panic!("{line}: {text:?}"));
        let typed = line.rsplit(' ').next().unwrap();
        // Without completions, the typed word remains.
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
