//! What runs on this machine: from `/proc` where there is one, else from `ps`.
//!
//! Only for looking. A process may have ended, and another have its id, before the answer is read.

use std::fs;
use std::path::Path;
use std::process::Command;

use capsa_fixtures::command;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// It has ended, and its parent has not asked how.
    pub is_zombie: bool,
    /// Its arguments, the program's name first, with blanks between.
    pub arguments: String,
}

/// Every process, or as much as one may see of them.
///
/// # Panics
///
/// When there is neither `/proc` nor `ps`.
pub fn all() -> Vec<Process> {
    if has_proc() { from_proc() } else { from_ps(&["-A"]) }
}

/// Whether a process runs (a zombie does not).
///
/// # Panics
///
/// As [`all`].
pub fn runs(pid: u32) -> bool {
    let found =
        if has_proc() { Process::from_proc(pid) } else { from_ps(&["-p", &pid.to_string()]).pop() };
    found.is_some_and(|process| !process.is_zombie)
}

/// The processes, zombies among them, whose parent is `pid`.
///
/// # Panics
///
/// As [`all`].
pub fn children(pid: u32) -> Vec<Process> {
    all().into_iter().filter(|process| process.parent == pid).collect()
}

/// The processes that have `text` among their arguments.
///
/// # Panics
///
/// As [`all`].
pub fn with_argument(text: &str) -> Vec<Process> {
    all().into_iter().filter(|process| process.arguments.contains(text)).collect()
}

/// How many threads this process has.
///
/// # Panics
///
/// As [`all`].
pub fn threads() -> usize {
    if has_proc() {
        return fs::read_dir("/proc/self/task").expect("/proc is there").count();
    }
    // One line each, below a heading.
    let me = std::process::id().to_string();
    command::text(Command::new("ps").args(["-M", "-p", &me])).expect("ps").lines().count() - 1
}

/// How many descriptors this process has.
///
/// # Panics
///
/// When there is neither `/proc` nor `/dev/fd`.
pub fn descriptors() -> usize {
    // On Linux the second is a link to the first, which only udev makes.
    let place = if has_proc() { "/proc/self/fd" } else { "/dev/fd" };
    fs::read_dir(place).expect("/proc or /dev/fd").count()
}

fn has_proc() -> bool {
    Path::new("/proc/self/stat").exists()
}

fn from_proc() -> Vec<Process> {
    let all = fs::read_dir("/proc").expect("/proc is there").flatten();
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

    /// A line of `ps`.
    fn from_ps(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut number = || words.next()?.parse().ok();
        let (pid, parent) = (number()?, number()?);
        let is_zombie = words.next()?.starts_with('Z');
        Some(Self { pid, parent, is_zombie, arguments: words.collect::<Vec<_>>().join(" ") })
    }
}

/// Those that these arguments choose. `ps` fails when there is none.
fn from_ps(choice: &[&str]) -> Vec<Process> {
    let mut ps = Command::new("ps");
    // Twice the `w`: arguments in full, however wide the terminal is.
    ps.args(["-ww", "-o", "pid=,ppid=,stat=,args="]).args(choice);
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
    fn a_child_is_found_while_it_runs() {
        let mark = "86399.25";
        let mut child = Command::new("sleep").arg(mark).spawn().unwrap();
        let pid = child.id();
        let is_it = |process: &Process| process.pid == pid;
        assert!(runs(pid) && children(std::process::id()).iter().any(is_it));
        crate::vm::eventually("it is the program", || with_argument(mark).iter().any(is_it));
        child.kill().unwrap();
        crate::vm::eventually("it is dead", || !runs(pid));
        assert!(children(std::process::id()).iter().any(|it| it.pid == pid && it.is_zombie));
        child.wait().unwrap();
        assert!(!children(std::process::id()).iter().any(is_it));
        assert!(threads() >= 1 && descriptors() >= 3);
    }

    #[test]
    fn ps_says_what_proc_says() {
        if !has_proc() || host::find_program("ps").is_none() {
            return skip("it takes a /proc and a ps to compare them");
        }
        let mut child = Command::new("sleep").args(["86399.5"]).spawn().unwrap();
        let pid = child.id();
        let proc = || Process::from_proc(pid).unwrap();
        crate::vm::eventually("it is the program", || proc().arguments == "sleep 86399.5");
        assert_eq!(from_ps(&["-p", &pid.to_string()]), [proc()]);
        assert!(from_ps(&["-A"]).contains(&proc()));
        child.kill().unwrap();
        crate::vm::eventually("it is dead", || proc().is_zombie);
        assert!(from_ps(&["-p", &pid.to_string()])[0].is_zombie);
        child.wait().unwrap();
        assert_eq!(from_ps(&["-p", &pid.to_string()]), []);
    }
}
