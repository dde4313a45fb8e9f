//! The base directory of run directories, as crashed and suspended programs leave it.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use capsa_fixtures::programs::TestProgram;

/// The base directory of an isolated test.
///
/// # Panics
///
/// When the test is not isolated.
pub fn base() -> PathBuf {
    PathBuf::from(env::var_os("CAPSA_RUN_DIR").expect("the test is isolated"))
}

/// Creates `count` run directories whose owner is dead, each with a control socket and a console
/// socket. Their names begin with `left`.
///
/// # Panics
///
/// When one cannot be created.
pub fn leave_behind(base: &Path, count: usize) {
    for n in 0..count {
        let path = base.join(format!("left{n:04}"));
        fs::create_dir(&path).expect("a directory of its own");
        for (file, text) in
            [("lock", "capsa 1 1\n"), ("children", "1 1\n"), ("qmp", ""), ("tty", "")]
        {
            fs::write(path.join(file), text).expect("a file in it");
        }
    }
}

/// How many of them exist.
///
/// # Panics
///
/// When the base directory cannot be read.
pub fn left_behind(base: &Path) -> usize {
    let entries = fs::read_dir(base).expect("the base directory exists");
    entries.filter(|entry| is_left(entry.as_ref().expect("an entry"))).count()
}

fn is_left(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with("left")
}

/// Another process that holds the lock of a file until this value is dropped.
#[derive(Debug)]
pub struct LockingProcess(Child);

impl LockingProcess {
    /// Starts the process, and returns when it holds the lock.
    ///
    /// # Panics
    ///
    /// When it cannot take the lock.
    pub fn of(file: &Path) -> Self {
        let mut command = Command::new(TestProgram::new("lock-holder"));
        command.arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("it prints a line");
        assert_eq!(line, "locked\n");
        Self(child)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for LockingProcess {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
