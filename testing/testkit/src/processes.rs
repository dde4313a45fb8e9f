//! The processes of the host, from `/proc` if it exists, otherwise from `ps`.
//!
//! A result may be out of date: a process may have ended, and its id may belong to another process.

use std::fs;
use std::path::Path;
use std::process::Command;

use capsa_fixtures::command;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The process id.
    pub pid: u32,
    /// The id of the parent.
    pub parent: u32,
    /// Whether it has ended and its parent has not reaped it.
    pub is_zombie: bool,
    /// The arguments, starting with the program, separated by blanks.
    pub arguments: String,
}

/// Every process that this one may see.
///
/// # Panics
///
/// Without `/proc` and `ps`.
pub fn all() -> Vec<Process> {
    if has_proc() { from_proc() } else { from_ps(&["-A"]) }
}

/// Whether a process runs. A zombie does not.
///
/// # Panics
///
/// As [`all`].
pub fn runs(pid: u32) -> bool {
    let found =
        if has_proc() { Process::from_proc(pid) } else { from_ps(&["-p", &pid.to_string()]).pop() };
    found.is_some_and(|process| !process.is_zombie)
}

/// The children of `pid`, including zombies.
///
/// # Panics
///
/// As [`all`].
pub fn children(pid: u32) -> Vec<Process> {
    all().into_iter().filter(|process| process.parent == pid).collect()
}

/// The processes whose arguments contain `text`.
///
/// # Panics
///
/// As [`all`].
pub fn with_argument(text: &str) -> Vec<Process> {
    all().into_iter().filter(|process| process.arguments.contains(text)).collect()
}

/// The number of threads of this process.
///
/// # Panics
///
/// As [`all`].
pub fn threads() -> usize {
    if has_proc() {
        return fs::read_dir("/proc/self/task").expect("/proc exists").count();
    }
    // A heading, then a line for each thread.
    let me = std::process::id().to_string();
    command::text(Command::new("ps").args(["-M", "-p", &me])).expect("ps").lines().count() - 1
}

/// The number of open descriptors of this process.
///
/// # Panics
///
/// When there is neither `/proc` nor `/dev/fd`.
pub fn descriptors() -> usize {
    // On Linux, /dev/fd is a link that udev creates.
    let place = if has_proc() { "/proc/self/fd" } else { "/dev/fd" };
    fs::read_dir(place).expect("/proc or /dev/fd").count()
}

/// Raises this process's limit of descriptors as far as possible: 200 VMs need more than the 1024
/// of an ordinary login.
///
/// # Panics
///
/// When the system refuses.
pub fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a process may raise its soft limit");
}

fn has_proc() -> bool {
    Path::new("/proc/self/stat").exists()
}

fn from_proc() -> Vec<Process> {
    let all = fs::read_dir("/proc").expect("/proc exists").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::from_proc).collect()
}

impl Process {
    fn from_proc(pid: u32) -> Option<Self> {
        let read = |file| fs::read(format!("/proc/{pid}/{file}"));
        // `PID (NAME) STATE PARENT ...`, and the name may hold anything.
        let stat = String::from_utf8_lossy(&read("stat").ok()?).into_owned();
        let mut words = stat.rsplit(')').next()?.split_whitespace();
        let state = words.next()?;
        let parent = words.next()?.parse().ok()?;
        let arguments = read("cmdline").unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let is_zombie = matches!(state, "Z" | "X");
        Some(Self { pid, parent, is_zombie, arguments: arguments.trim_end().to_owned() })
    }

    /// Parses a line of `ps`.
    fn from_ps(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut number = || words.next()?.parse().ok();
        let (pid, parent) = (number()?, number()?);
        let is_zombie = words.next()?.starts_with('Z');
        Some(Self { pid, parent, is_zombie, arguments: words.collect::<Vec<_>>().join(" ") })
    }
}

/// The processes that these arguments of `ps` select. `ps` fails if there is none.
fn from_ps(selection: &[&str]) -> Vec<Process> {
    let mut ps = Command::new("ps");
    // `-ww`: full arguments with any width of the terminal.
    ps.args(["-ww", "-o", "pid=,ppid=,stat=,args="]).args(selection);
    match command::text(&mut ps) {
        Ok(lines) => lines.lines().filter_map(Process::from_ps).collect(),
        Err(command::CommandError::Status { .. }) => Vec::new(),
        Err(failed) => panic!("neither /proc nor ps: {failed}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa_fixtures::{host, skip};

    #[test]
    fn child_is_listed_until_it_is_reaped() {
        let mark = "86399.25";
        let mut child = Command::new("sleep").arg(mark).spawn().unwrap();
        let pid = child.id();
        let is_it = |process: &Process| process.pid == pid;
        assert!(runs(pid) && children(std::process::id()).iter().any(is_it));
        crate::vm::eventually("the program runs", || with_argument(mark).iter().any(is_it));
        child.kill().unwrap();
        crate::vm::eventually("the program has ended", || !runs(pid));
        assert!(children(std::process::id()).iter().any(|it| it.pid == pid && it.is_zombie));
        child.wait().unwrap();
        assert!(!children(std::process::id()).iter().any(is_it));
        assert!(threads() >= 1 && descriptors() >= 3);
    }

    #[test]
    fn ps_and_proc_agree() {
        if !has_proc() || host::find_program("ps").is_none() {
            return skip("needs /proc and ps");
        }
        let mut child = Command::new("sleep").args(["86399.5"]).spawn().unwrap();
        let pid = child.id();
        let proc = || Process::from_proc(pid).unwrap();
        crate::vm::eventually("the program runs", || proc().arguments == "sleep 86399.5");
        assert_eq!(from_ps(&["-p", &pid.to_string()]), [proc()]);
        assert!(from_ps(&["-A"]).contains(&proc()));
        child.kill().unwrap();
        crate::vm::eventually("the program has ended", || proc().is_zombie);
        assert!(from_ps(&["-p", &pid.to_string()])[0].is_zombie);
        child.wait().unwrap();
        assert_eq!(from_ps(&["-p", &pid.to_string()]), []);
    }
}
