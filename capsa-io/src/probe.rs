//! Asks programs about themselves: finds them, runs them with a deadline, keeps their answers.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use capsa_proto::backend::{Probe, ProbePlan, ProbeReport, ProbeResult};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, access};

use crate::process;
use crate::sys::{self, StandardStreams};

/// How long a program may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of an answer is kept.
const ANSWER: u64 = 1 << 20;

/// Programs that were named to be used instead of a search, by what people call them.
pub type Programs = BTreeMap<String, PathBuf>;

/// Asks every question. Blocks until all are answered: milliseconds, or seconds where a program
/// hangs. A program that was asked before and has not changed since is not run again.
pub fn ask(plan: &ProbePlan, named: &Programs) -> ProbeReport {
    let mut report = ProbeReport::default();
    for probe in &plan.probes {
        report.insert(probe.key, run_probe(probe, named.get(probe.program)));
    }
    report
}

fn run_probe(probe: &Probe, named: Option<&PathBuf>) -> ProbeResult {
    let (program, tried) = match named {
        Some(named) => (by_name(named), vec![named.display().to_string()]),
        None => find(probe),
    };
    let Some(program) = program else { return ProbeResult::NotFound { tried } };
    let Some(name) = program.to_str().map(ToOwned::to_owned) else {
        let reason = "its path is not UTF-8".into();
        return ProbeResult::Failed { program: program.display().to_string(), reason };
    };
    match cached(&program, &probe.args) {
        Ok(output) => ProbeResult::Output { program: name, output },
        Err(error) => ProbeResult::Failed { program: name, reason: error.to_string() },
    }
}

/// The program a question is for, and what was tried. A variable that names one is believed, or
/// nothing is found.
fn find(probe: &Probe) -> (Option<PathBuf>, Vec<String>) {
    if let Some(named) = std::env::var_os(probe.env).filter(|v| !v.is_empty()) {
        let tried = vec![format!("{}={}", probe.env, named.display())];
        return (by_name(Path::new(&named)), tried);
    }
    let found = probe.candidates.iter().find_map(|candidate| by_name(Path::new(candidate)));
    (found, probe.candidates.clone())
}

/// A path as it is; a bare name from `PATH`.
fn by_name(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 { executable(name.to_owned()) } else { in_path(name) }
}

fn in_path(name: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find_map(|dir| executable(dir.join(name)))
}

fn executable(path: PathBuf) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    (path.is_file() && access(&path, AccessFlags::X_OK).is_ok()).then_some(path)
}

/// What identifies an answer: the program as it lies on disk, and what it was asked.
type Asked = (PathBuf, Option<SystemTime>, u64, Vec<&'static str>);

fn cached(program: &Path, args: &[&'static str]) -> io::Result<String> {
    static ANSWERS: LazyLock<Mutex<HashMap<Asked, String>>> = LazyLock::new(Mutex::default);
    let metadata = program.metadata()?;
    let asked = (program.to_owned(), metadata.modified().ok(), metadata.len(), args.to_vec());
    let lock = || ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = lock().get(&asked) {
        return Ok(known.clone());
    }
    let output = run(program, args, PATIENCE)?;
    lock().insert(asked, output.clone());
    Ok(output)
}

fn run(program: &Path, args: &[&str], patience: Duration) -> io::Result<String> {
    let _streams = StandardStreams::take()?;
    let mut command = process::command(&program.display().to_string());
    sys::prepare_exec(command.process_group(0));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let stdout = child.stdout.take().expect("stdout was asked for");
    let stderr = child.stderr.take().expect("stderr was asked for");
    let read = read_both((stdout, &mut out), (stderr, &mut err), patience);
    if let Err(error) = read {
        let _ = sys::signal_group(child.id(), Signal::SIGKILL);
        let _ = child.wait();
        return Err(error);
    }
    // Both outputs are closed; whoever closes them and stays is not waited for.
    let status = wait(&mut child, patience)?;
    out.extend_from_slice(&err);
    let text = String::from_utf8_lossy(&out).into_owned();
    if status.is_none_or(|status| status.success()) {
        Ok(text)
    } else {
        let status = status.unwrap_or_default();
        let words = text.trim().lines().next_back().unwrap_or("it said nothing").to_owned();
        Err(io::Error::other(format!("{status}: {words}")))
    }
}

/// How it ended; `None` where the embedding program has taken that away from us, by ignoring the
/// ends of its children or by waiting for all of them.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    let mut ended = child.try_wait();
    while matches!(ended, Ok(None)) {
        if Instant::now() >= deadline {
            let _ = sys::signal_group(child.id(), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(1));
        ended = child.try_wait();
    }
    match ended {
        Err(error) if error.raw_os_error() == Some(Errno::ECHILD as i32) => Ok(None),
        ended => ended,
    }
}

/// Reads both ends until they close, or until patience ends, however much comes.
fn read_both<A: Read + AsFd, B: Read + AsFd>(
    a: (A, &mut Vec<u8>),
    b: (B, &mut Vec<u8>),
    patience: Duration,
) -> io::Result<()> {
    let begin = Instant::now();
    let deadline = begin + patience;
    let (mut a, mut b) = ((Some(a.0), a.1), (Some(b.0), b.1));
    while a.0.is_some() || b.0.is_some() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let text = format!("no answer within {:?}", deadline.duration_since(begin));
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let (ready_a, ready_b) = {
            let mut fds = Vec::with_capacity(2);
            fds.extend(a.0.as_ref().map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN)));
            fds.extend(b.0.as_ref().map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN)));
            let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            match poll(&mut fds, PollTimeout::from(millis)) {
                // A signal of the embedding program says nothing about this one.
                Err(Errno::EINTR) => continue,
                polled => polled?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            let mut ready = ready.into_iter();
            (
                a.0.is_some() && ready.next().unwrap_or(false),
                b.0.is_some() && ready.next().unwrap_or(false),
            )
        };
        if ready_a {
            read_some(&mut a.0, a.1)?;
        }
        if ready_b {
            read_some(&mut b.0, b.1)?;
        }
    }
    Ok(())
}

fn read_some(from: &mut Option<impl Read>, into: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 8192];
    let Some(end) = from else { return Ok(()) };
    match end.read(&mut chunk)? {
        0 => *from = None,
        n if (into.len() + n) as u64 <= ANSWER => into.extend_from_slice(&chunk[..n]),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(candidate: &str, args: Vec<&'static str>) -> Probe {
        let env = "CAPSA_TEST_NO_SUCH_VARIABLE";
        Probe { key: "q", program: "q", env, candidates: vec![candidate.into()], args }
    }

    #[test]
    fn a_program_answers_on_both_of_its_outputs() {
        let answer = run_probe(&probe("sh", vec!["-c", "echo version 1.2.3; echo more >&2"]), None);
        let ProbeResult::Output { program, output } = answer else { panic!("{answer:?}") };
        assert!(program.ends_with("/sh"), "{program}");
        assert_eq!(output, "version 1.2.3\nmore\n");
    }

    #[test]
    fn a_failure_carries_the_last_words() {
        let answer =
            run_probe(&probe("sh", vec!["-c", "echo cannot load library >&2; exit 127"]), None);
        let ProbeResult::Failed { reason, .. } = answer else { panic!("{answer:?}") };
        assert!(reason.contains("127") && reason.contains("cannot load library"), "{reason}");
    }

    #[test]
    fn a_program_that_never_stops_talking_is_not_listened_to_for_ever() {
        let patience = Duration::from_millis(100);
        for script in ["while :; do echo yes; done", "exec sleep 1000 >&- 2>&-", "sleep 1000 & :"] {
            let error = run(Path::new("/bin/sh"), &["-c", script], patience).unwrap_err();
            assert!(error.to_string().contains("100ms") || script.contains("exec"), "{error}");
        }
    }

    #[test]
    fn a_program_that_was_named_is_the_one_or_there_is_none() {
        let probe = probe("sh", vec!["-c", "echo version 1.2.3"]);
        let named = |path: &str| run_probe(&probe, Some(&PathBuf::from(path)));
        assert!(
            matches!(named("/bin/sh"), ProbeResult::Output { program, .. } if program == "/bin/sh")
        );
        assert_eq!(named("/none/sh"), ProbeResult::NotFound { tried: vec!["/none/sh".into()] });
    }

    #[test]
    fn a_program_whose_path_no_plan_can_carry_is_not_used() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"sh\xff"));
        std::os::unix::fs::symlink("/bin/sh", &odd).unwrap();
        let answer = run_probe(&probe("sh", vec!["-c", "echo version 1.2.3"]), Some(&odd));
        let ProbeResult::Failed { reason, .. } = answer else { panic!("{answer:?}") };
        assert!(reason.contains("UTF-8"), "{reason}");
    }

    #[test]
    fn a_missing_program_lists_what_was_tried() {
        let answer = run_probe(&probe("no-such-program-here", vec![]), None);
        assert_eq!(answer, ProbeResult::NotFound { tried: vec!["no-such-program-here".into()] });
    }
}
