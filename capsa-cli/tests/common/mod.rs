//! Runs the command as a child on pipes ([`CapsaProcess`]) or on a terminal ([`Terminal`]), which are
//! killed when dropped.

// Each test program uses what it needs.
#![allow(dead_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use capsa_testkit::nano::Nano;
use capsa_testkit::skip;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A start takes 0.1 s; a busy CI host may take far longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The command, independent of the environment in which the tests run.
pub(crate) fn capsa() -> Command {
    let program = env!("CARGO_BIN_EXE_capsa");
    // Tests that run in the background may ignore SIGINT, which the command would inherit.
    let mut command = if cfg!(target_os = "linux") {
        let mut command = Command::new("env");
        command.args(["--default-signal", program]);
        command
    } else {
        Command::new(program)
    };
    command.env_remove("CAPSA_BACKEND");
    command
}

/// Whether the tests can run VMs; if not, the test counts as skipped.
pub(crate) fn has_qemu() -> bool {
    let found = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    if !found {
        skip("qemu-system-x86_64 is not installed");
    } else if !cfg!(target_arch = "x86_64") {
        skip("the nano guest is one for x86-64");
    }
    found && cfg!(target_arch = "x86_64")
}

/// Writes the guest's kernel into `dir`, and returns the arguments that run it with its console on
/// standard input and output.
pub(crate) fn nano_arguments(dir: &Path, how: Nano) -> Vec<OsString> {
    let kernel = how.write_to(dir).unwrap();
    let mut arguments: Vec<OsString> = vec!["run".into(), "linux".into(), "--kernel".into()];
    arguments.push(kernel.into());
    let fixed = "--console stdio --network none --backend qemu --accel emulation --memory 64M";
    arguments.extend(fixed.split(' ').map(OsString::from));
    arguments
}

/// The directory with the run directories of a test.
pub(crate) fn run_dir(dir: &Path) -> PathBuf {
    dir.join("run")
}

/// Runs the command until it exits: exit code, standard output, standard error. It finds the VMs that
/// were started with the same `dir`.
pub(crate) fn ask(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    std::fs::create_dir_all(dir).unwrap();
    let mut command = capsa();
    command.args(arguments).env("CAPSA_RUN_DIR", run_dir(dir)).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Whether bash is installed; if not, the test counts as skipped.
pub(crate) fn has_bash() -> bool {
    let found = Command::new("bash").arg("--version").output().is_ok();
    if !found {
        skip("bash is not installed");
    }
    found
}

/// The words with which bash completes the last of these, in this directory and with its VMs.
pub(crate) fn completed(dir: &Path, words: &[&str]) -> Vec<String> {
    let script = "PATH=${CAPSA%/*}:$PATH; source <(capsa completions bash)
        COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _capsa; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["-c", script, "bash"])
        .args(words)
        .env("CAPSA", env!("CARGO_BIN_EXE_capsa"))
        .env("CAPSA_RUN_DIR", run_dir(dir))
        .current_dir(dir)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(String::from).collect()
}

/// The command on pipes.
pub(crate) struct CapsaProcess {
    child: Child,
    /// A thread sends standard output to this. It blocks until the test receives.
    output: Option<Receiver<Vec<u8>>>,
    paused: bool,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_thread: Option<JoinHandle<()>>,
    pub(crate) seen: Vec<u8>,
    dir: TempDir,
}

impl CapsaProcess {
    /// Starts it; `None` without QEMU.
    pub(crate) fn start(how: Nano, more: &[&str]) -> Option<Self> {
        if !has_qemu() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut arguments = nano_arguments(dir.path(), how);
        arguments.extend(more.iter().map(OsString::from));
        let run_dir = run_dir(dir.path());
        Some(Self::with(dir, &arguments, &run_dir))
    }

    /// Starts it with these arguments and this `CAPSA_RUN_DIR`.
    pub(crate) fn with(dir: TempDir, arguments: &[OsString], run_dir: &Path) -> Self {
        let mut child = capsa()
            .args(arguments)
            .env("CAPSA_RUN_DIR", run_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = Arc::<Mutex<Vec<u8>>>::default();
        let stderr_thread = thread::spawn({
            let (mut from, stderr) = (child.stderr.take().unwrap(), Arc::clone(&stderr));
            move || {
                let mut buffer = [0; 4096];
                while let n @ 1.. = from.read(&mut buffer).unwrap() {
                    stderr.lock().unwrap().extend_from_slice(&buffer[..n]);
                }
            }
        });
        let output = Some(read_in_thread(child.stdout.take().unwrap()));
        let stderr_thread = Some(stderr_thread);
        Self { child, output, paused: false, stderr, stderr_thread, seen: Vec::new(), dir }
    }

    /// Whether this output comes within 500 ms.
    pub(crate) fn comes_soon(&mut self, what: &[u8]) -> bool {
        let end = Instant::now() + Duration::from_millis(500);
        let output = self.output.as_ref().unwrap();
        while !self.seen.windows(what.len()).any(|w| w == what) {
            match output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(more) => self.seen.extend(more),
                Err(_) => return false,
            }
        }
        true
    }

    #[track_caller]
    pub(crate) fn wait_until_killed(&mut self) {
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), None, "{status}");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A temporary directory with the same lifetime.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs another command with the same run directories: exit code, standard output, standard
    /// error.
    pub(crate) fn ask(&self, arguments: &[&str]) -> (i32, String, String) {
        ask(self.dir(), arguments)
    }

    /// Waits until `capsa ps` lists this name.
    #[track_caller]
    pub(crate) fn wait_until_listed(&self, name: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.ask(&["ps"]).1.contains(name) {
            assert!(Instant::now() < end, "{name} is not listed");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    pub(crate) fn close_input(&mut self) {
        self.child.stdin = None;
    }

    /// Reads no more than one chunk until [`CapsaProcess::resume_reading`].
    pub(crate) fn pause_reading(&mut self) {
        self.paused = true;
    }

    pub(crate) fn resume_reading(&mut self) {
        self.paused = false;
    }

    /// Ends the reading thread at its next chunk, which closes the pipe.
    pub(crate) fn close_output(&mut self) {
        self.output = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(&self.child, signal);
    }

    #[track_caller]
    pub(crate) fn wait_for(&mut self, what: &[u8]) {
        assert!(!self.paused);
        if !wait_for(self.output.as_ref().unwrap(), &mut self.seen, what) {
            let (code, stderr) = self.wait_for_end();
            panic!(
                "exited with {code}, output {:?}\n{stderr}",
                String::from_utf8_lossy(&self.seen)
            );
        }
    }

    /// Waits until it exits: exit code and standard error.
    #[track_caller]
    pub(crate) fn wait_for_end(&mut self) -> (i32, String) {
        if let Some(output) = &self.output {
            read_to_end(output, &mut self.seen);
        }
        let code = exit_code(&mut self.child);
        self.stderr_thread.take().unwrap().join().unwrap();
        (code, self.stderr())
    }

    /// Standard error so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.stderr.lock().unwrap().clone()).unwrap()
    }

    /// Whether it has exited.
    pub(crate) fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// The same without reading its output.
    #[track_caller]
    pub(crate) fn wait_for_end_unread(&mut self) -> i32 {
        exit_code(&mut self.child)
    }
}

impl Drop for CapsaProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command on a terminal.
pub(crate) struct Terminal {
    child: Child,
    ours: File,
    theirs: OwnedFd,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    /// The terminal's modes before the start.
    pub(crate) before: Termios,
    _dir: TempDir,
}

impl Terminal {
    /// Starts it; `None` without QEMU or a pseudoterminal.
    pub(crate) fn start(how: Nano) -> Option<Self> {
        if !has_qemu() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let arguments = nano_arguments(dir.path(), how);
        let run_dir = run_dir(dir.path());
        Self::in_run_dir(dir, &run_dir, &arguments)
    }

    /// Starts it with these arguments and this `CAPSA_RUN_DIR`; `None` where there is no
    /// terminal.
    pub(crate) fn in_run_dir(dir: TempDir, run_dir: &Path, arguments: &[OsString]) -> Option<Self> {
        let mut command = capsa();
        command.args(arguments).env("CAPSA_RUN_DIR", run_dir).env("TERM", "vt220");
        Self::of(dir, command)
    }

    /// Starts an interactive shell with job control; `None` where that is impossible.
    pub(crate) fn shell(dir: TempDir) -> Option<Self> {
        if !has_bash() || Command::new("setsid").arg("--version").output().is_err() {
            skip("bash or setsid is not installed");
            return None;
        }
        let mut command = Command::new("setsid");
        command.args(["--ctty", "bash", "--norc", "-i"]).env("CAPSA_RUN_DIR", run_dir(dir.path()));
        command.env("TERM", "dumb").env_remove("CAPSA_BACKEND");
        Self::of(dir, command)
    }

    fn of(dir: TempDir, mut command: Command) -> Option<Self> {
        let size = Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).map_err(skip).ok()?;
        let before = tcgetattr(&pty.slave).unwrap();
        let stdio = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let ours = File::from(pty.master);
        let output = read_in_thread(ours.try_clone().unwrap());
        Some(Self { child, ours, theirs: pty.slave, output, seen: Vec::new(), before, _dir: dir })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The output so far.
    pub(crate) fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// The waits from now on do not match earlier output.
    pub(crate) fn forget(&mut self) {
        self.seen.clear();
    }

    pub(crate) fn modes(&self) -> Termios {
        tcgetattr(&self.theirs).unwrap()
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.ours.write_all(bytes).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(&self.child, signal);
    }

    #[track_caller]
    pub(crate) fn wait_for(&mut self, what: &[u8]) {
        let came = wait_for(&self.output, &mut self.seen, what);
        assert!(came, "exited, output {:?}", String::from_utf8_lossy(&self.seen));
    }

    /// Waits until the terminal is raw.
    #[track_caller]
    pub(crate) fn wait_until_raw(&self) {
        let cooked = LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::ECHO;
        let end = Instant::now() + PATIENCE;
        while self.modes().local_flags.intersects(cooked) {
            assert!(Instant::now() < end, "the terminal does not become raw");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    pub(crate) fn wait_until_stopped(&self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{status:?}");
    }

    #[track_caller]
    pub(crate) fn wait_for_end(&mut self) -> i32 {
        exit_code(&mut self.child)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Measures up to three times, because a busy host can exceed an upper limit of real time by accident.
#[track_caller]
pub(crate) fn assert_within(limit: Duration, mut measure: impl FnMut() -> Duration) {
    let times: Vec<Duration> =
        (0..3).map(|_| measure()).take_while(|took| *took >= limit).collect();
    assert!(times.len() < 3, "the limit is {limit:?}, and it took {times:?}");
}

/// Waits until a file has this many bytes.
#[track_caller]
pub(crate) fn wait_for_size(file: &Path, bytes: u64) {
    let end = Instant::now() + PATIENCE;
    while file.metadata().map_or(0, |file| file.len()) < bytes {
        assert!(Instant::now() < end, "{} has less than {bytes} bytes", file.display());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Kills the hypervisor that the process `owner` started.
pub(crate) fn kill_hypervisor(owner: u32) {
    let children = Command::new("pgrep").args(["-P", &owner.to_string(), "qemu"]).output();
    let children = String::from_utf8(children.unwrap().stdout).unwrap();
    let pid = children.trim().parse().unwrap_or_else(|_| panic!("no hypervisor: {children:?}"));
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// Reads until the end, or until the receiver is dropped. The channel has no capacity, so the pipe
/// fills up if the test does not receive.
fn read_in_thread(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive): (SyncSender<Vec<u8>>, _) = sync_channel(0);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match from.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(n @ 1..) if send.send(buffer[..n].to_vec()).is_ok() => {}
                _ => break,
            }
        }
    });
    receive
}

/// Reads until `what` has come; `false` if the output ends first.
#[track_caller]
fn wait_for(output: &Receiver<Vec<u8>>, seen: &mut Vec<u8>, what: &[u8]) -> bool {
    let end = Instant::now() + PATIENCE;
    while !seen.windows(what.len()).any(|w| w == what) {
        match output.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(more) => seen.extend(more),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(error) => panic!("{error}, output {:?}", String::from_utf8_lossy(seen)),
        }
    }
    true
}

#[track_caller]
fn read_to_end(output: &Receiver<Vec<u8>>, seen: &mut Vec<u8>) {
    let end = Instant::now() + PATIENCE;
    loop {
        match output.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(more) => seen.extend(more),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => panic!("the output does not end"),
        }
    }
}

/// Sends a signal to a program.
pub(crate) fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

#[track_caller]
fn exit_code(child: &mut Child) -> i32 {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| panic!("{status}"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("capsa does not exit");
}
