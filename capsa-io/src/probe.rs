//! Probes programs: finds them, runs them with a time limit, caches their output.

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
use crate::sys::{self, ReservedNumbers};

/// How long a probed program may run.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The largest number of output bytes that are kept.
const MAX_OUTPUT: u64 = 1 << 20;

/// Paths of programs that replace the search, by the name of the program.
pub type Programs = BTreeMap<String, PathBuf>;

/// Runs all probes. Blocks until they are done: milliseconds, or seconds if a program hangs. A
/// program that was probed before and has not changed since is not run again.
pub fn ask(plan: &ProbePlan, named: &Programs) -> ProbeReport {
    let mut report = ProbeReport::default();
    for probe in &plan.probes {
        let result = run_probe(probe, named.get(probe.program));
        match &result {
            ProbeResult::NotFound { tried } => tracing::debug!(?tried, "program not found"),
            ProbeResult::Failed { program, reason, .. } => {
                tracing::debug!(program, args = ?probe.args, "probe failed: {reason}");
            }
            ProbeResult::Output { program, output } => {
                let bytes = output.len();
                tracing::debug!(program, args = ?probe.args, bytes, "probe");
            }
        }
        report.insert(probe.key, result);
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
        let program = program.display().to_string();
        return ProbeResult::Failed { program, reason, remedy: None };
    };
    match cached(&program, &probe.args) {
        Ok(output) => ProbeResult::Output { program: name, output },
        Err(error) => ProbeResult::Failed {
            program: name,
            reason: error.to_string(),
            remedy: limit_remedy(&error),
        },
    }
}

/// The remedy for a program that could not be started because of a limit of this host.
fn limit_remedy(error: &io::Error) -> Option<&'static str> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::EAGAIN => Some("raise the limit of processes (ulimit -u), or end other processes"),
        Errno::EMFILE => Some("raise the limit of open files: ulimit -n 1024"),
        Errno::ENFILE => Some("close files of other processes: the system has too many open files"),
        Errno::ENOMEM => Some("end other processes: the system has too little memory"),
        _ => None,
    }
}

/// The program of a probe, and the candidates that were tried. If the environment variable is set,
/// no other candidate is tried.
fn find(probe: &Probe) -> (Option<PathBuf>, Vec<String>) {
    if let Some(named) = std::env::var_os(probe.env).filter(|v| !v.is_empty()) {
        let tried = vec![format!("{}={}", probe.env, named.display())];
        return (by_name(Path::new(&named)), tried);
    }
    let found = probe.candidates.iter().find_map(|candidate| by_name(Path::new(candidate)));
    (found, probe.candidates.clone())
}

/// A path is used as it is; a bare name is looked up in `PATH`.
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

/// The key of the cache: the program file and the arguments.
type CacheKey = (PathBuf, Option<SystemTime>, u64, Vec<&'static str>);

fn cached(program: &Path, args: &[&'static str]) -> io::Result<String> {
    static CACHE: LazyLock<Mutex<HashMap<CacheKey, String>>> = LazyLock::new(Mutex::default);
    let metadata = program.metadata()?;
    let asked = (program.to_owned(), metadata.modified().ok(), metadata.len(), args.to_vec());
    let lock = || CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = lock().get(&asked) {
        return Ok(known.clone());
    }
    let output = run(program, args, TIME_LIMIT)?;
    lock().insert(asked, output.clone());
    Ok(output)
}

fn run(program: &Path, args: &[&str], time_limit: Duration) -> io::Result<String> {
    let _streams = ReservedNumbers::below(sys::FIRST_NUMBER)?;
    let mut command = process::command(&program.display().to_string());
    sys::prepare_exec(command.process_group(0));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let stdout = child.stdout.take().expect("stdout is piped");
    let stderr = child.stderr.take().expect("stderr is piped");
    let read = read_both((stdout, &mut out), (stderr, &mut err), time_limit);
    if let Err(error) = read {
        let _ = sys::signal_group(child.id(), Signal::SIGKILL);
        let _ = child.wait();
        return Err(error);
    }
    // Both outputs are closed. A program that keeps running after that is killed when the time is
    // over.
    let status = wait(&mut child, time_limit)?;
    out.extend_from_slice(&err);
    let text = String::from_utf8_lossy(&out).into_owned();
    if status.is_none_or(|status| status.success()) {
        Ok(text)
    } else {
        let status = status.unwrap_or_default();
        let last_line = text.trim().lines().next_back().unwrap_or("no output").to_owned();
        Err(io::Error::other(format!("{status}: {last_line}")))
    }
}

/// The exit status; `None` if the embedding program ignores SIGCHLD or reaps all children.
fn wait(child: &mut Child, time_limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + time_limit;
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

/// Reads both outputs until they close or the time limit passes, however much is written.
fn read_both<A: Read + AsFd, B: Read + AsFd>(
    a: (A, &mut Vec<u8>),
    b: (B, &mut Vec<u8>),
    time_limit: Duration,
) -> io::Result<()> {
    let begin = Instant::now();
    let deadline = begin + time_limit;
    let (mut a, mut b) = ((Some(a.0), a.1), (Some(b.0), b.1));
    while a.0.is_some() || b.0.is_some() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let text = format!("timed out after {:?}", deadline.duration_since(begin));
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let (ready_a, ready_b) = {
            let mut fds = Vec::with_capacity(2);
            fds.extend(a.0.as_ref().map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN)));
            fds.extend(b.0.as_ref().map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN)));
            let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            match poll(&mut fds, PollTimeout::from(millis)) {
                // A signal of the embedding program does not matter here.
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
        n if (into.len() + n) as u64 <= MAX_OUTPUT => into.extend_from_slice(&chunk[..n]),
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
    fn probe_reads_both_outputs() {
        let answer = run_probe(&probe("sh", vec!["-c", "echo version 1.2.3; echo more >&2"]), None);
        let ProbeResult::Output { program, output } = answer else { panic!("{answer:?}") };
        assert!(program.ends_with("/sh"), "{program}");
        assert_eq!(output, "version 1.2.3\nmore\n");
    }

    #[test]
    fn probe_failure_contains_last_line() {
        let answer =
            run_probe(&probe("sh", vec!["-c", "echo cannot load library >&2; exit 127"]), None);
        let ProbeResult::Failed { reason, .. } = answer else { panic!("{answer:?}") };
        assert!(reason.contains("127") && reason.contains("cannot load library"), "{reason}");
    }

    #[test]
    fn probe_error_of_a_limit_has_its_remedy() {
        let remedy = |errno: Errno| limit_remedy(&errno.into());
        assert!(remedy(Errno::EAGAIN).unwrap().contains("ulimit -u"));
        assert!(remedy(Errno::EMFILE).unwrap().contains("ulimit -n"));
        assert_eq!(remedy(Errno::ENOENT), None);
        assert_eq!(limit_remedy(&io::Error::other("status 1")), None);
    }

    #[test]
    fn probe_endless_output_times_out() {
        let time_limit = Duration::from_millis(100);
        for script in ["while :; do echo yes; done", "exec sleep 1000 >&- 2>&-", "sleep 1000 & :"] {
            let error = run(Path::new("/bin/sh"), &["-c", script], time_limit).unwrap_err();
            assert!(error.to_string().contains("100ms") || script.contains("exec"), "{error}");
        }
    }

    #[test]
    fn probe_explicit_path_has_no_fallback() {
        let probe = probe("sh", vec!["-c", "echo version 1.2.3"]);
        let named = |path: &str| run_probe(&probe, Some(&PathBuf::from(path)));
        assert!(
            matches!(named("/bin/sh"), ProbeResult::Output { program, .. } if program == "/bin/sh")
        );
        assert_eq!(named("/none/sh"), ProbeResult::NotFound { tried: vec!["/none/sh".into()] });
    }

    #[test]
    fn probe_path_not_utf8_fails() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"sh\xff"));
        std::os::unix::fs::symlink("/bin/sh", &odd).unwrap();
        let answer = run_probe(&probe("sh", vec!["-c", "echo version 1.2.3"]), Some(&odd));
        let ProbeResult::Failed { reason, .. } = answer else { panic!("{answer:?}") };
        assert!(reason.contains("UTF-8"), "{reason}");
    }

    #[test]
    fn probe_not_found_lists_candidates() {
        let answer = run_probe(&probe("no-such-program-here", vec![]), None);
        assert_eq!(answer, ProbeResult::NotFound { tried: vec!["no-such-program-here".into()] });
    }
}
