//! `cargo xtask conformance --backend NAME`: holds a backend of this machine to the suite and prints a
//! report that can be sent: what ran, on what, and a line for each scenario.
//!
//! Flags are the suite's own, as `--filter TEXT`. The report is also kept in Cargo's target directory.

use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use capsa_test::{command, workspace};

use super::Outcome;

/// What the suite says with its status when nothing failed, and some could not run here.
const SOME_COULD_NOT_RUN: i32 = 3;

pub(crate) fn run(arguments: pico_args::Arguments) -> Outcome {
    let flags = arguments.finish();
    let backend = flags.iter().skip_while(|flag| *flag != "--backend").nth(1);
    let name = backend.and_then(|name| name.to_str()).ok_or("which? --backend NAME")?.to_owned();
    workspace::build_programs()?;
    let path = workspace::target_directory().join(format!("conformance-{name}.txt"));
    let mut report = Report { file: File::create(&path)? };
    report.line(&format!("Capsa {}, backend {name}", revision()))?;
    report.line(&format!("host: {}", host()))?;
    for backend in capsa::backends() {
        let version = backend.availability.version.map(|version| format!(" {version}"));
        let mut line = format!("{}{}:", backend.name, version.unwrap_or_default());
        let against: Vec<_> =
            backend.availability.against.iter().map(|reason| reason.what.as_str()).collect();
        line += " ";
        line += &if against.is_empty() { "usable".to_owned() } else { against.join("; ") };
        report.line(&line)?;
    }

    // It lies beside us: the same target directory, the same profile.
    let mut suite = Command::new(std::env::current_exe()?.with_file_name("conformance"));
    let mut process = suite.args(&flags).stdout(Stdio::piped()).spawn()?;
    for line in BufReader::new(process.stdout.take().expect("piped")).lines() {
        report.line(&line?)?;
    }
    let status = process.wait()?;
    println!("report: {}", fs::canonicalize(&path)?.display());
    match status.code() {
        Some(0 | SOME_COULD_NOT_RUN) => Ok(()),
        _ => Err(format!("the suite ended with {status}").into()),
    }
}

/// What goes to standard output and into a file.
struct Report {
    file: File,
}

impl Report {
    fn line(&mut self, line: &str) -> io::Result<()> {
        println!("{line}");
        writeln!(self.file, "{line}")
    }
}

/// The commit, where this is a clone, and whether something was changed since.
fn revision() -> String {
    let git = |arguments: &[&str]| said("git", arguments);
    let Ok(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return env!("CARGO_PKG_VERSION").to_owned();
    };
    match git(&["status", "--porcelain"]) {
        Ok(changes) if changes.is_empty() => commit,
        _ => format!("{commit} with changes"),
    }
}

fn host() -> String {
    let kernel = said("uname", &["-srm"]).unwrap_or_else(|error| error.to_string());
    match said("sw_vers", &["-productVersion"]) {
        Ok(version) => format!("macOS {version}, {kernel}"),
        Err(_) => kernel,
    }
}

fn said(program: &str, arguments: &[impl AsRef<OsStr>]) -> Result<String, Box<dyn Error>> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace::root());
    Ok(command::text(&mut command)?.trim().to_owned())
}
