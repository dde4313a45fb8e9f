//! `run … -- COMMAND`: logs in on the console, runs one command, and hands on what it prints.
//!
//! A guest that comes up with a shell of root, as an initramfs does, is asked for nothing. The
//! command gets the words as they were given, in a subshell of its own, with `/dev/null` as its
//! standard input.
//!
//! What it prints goes to standard output as it comes: a command that is cut off has shown what it
//! did, and one whose reader has gone is interrupted. For a program that wants one JSON document
//! in the end, it is kept.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use capsa::embed::{Ended, ReaderId, Vm, WaitId};
use capsa::{Error, VmStatus};

use crate::failure::{CONFIG, Failure};
use crate::files;
use crate::flags::{Command, usage};
use crate::stdio::output::Output;

/// How much of a command's output a JSON document takes: 16 MiB.
const KEPT: usize = 16 << 20;

/// What to run, and as whom.
#[derive(Debug)]
pub(crate) struct JobPlan {
    line: String,
    user: String,
    password: Option<String>,
}

impl JobPlan {
    /// A command of these words.
    pub(crate) fn new(
        words: &[std::ffi::OsString],
        user: Option<&str>,
        password_file: Option<&PathBuf>,
    ) -> Result<Self, Failure> {
        let wrong = |what: &str| usage(what, Some(Command::Run));
        let words: Option<Vec<&str>> = words.iter().map(|word| word.to_str()).collect();
        let words = words.ok_or_else(|| wrong("the command behind -- is not UTF-8"))?;
        if words.is_empty() {
            return Err(wrong("no command stands behind --"));
        }
        let password = password_file.map(|path| {
            files::first_line(path).map_err(|error| {
                let what = format!("cannot read the password from {}: {error}", path.display());
                Failure::new(CONFIG, what)
            })
        });
        Ok(Self {
            // In a subshell, so that an `exit` leaves the shell that tells its status.
            line: format!("( {} )", shell_words::join(words)),
            user: user.unwrap_or("root").to_owned(),
            password: password.transpose()?,
        })
    }
}

/// How a job ended.
#[derive(Debug)]
pub(crate) enum JobEnd {
    Ran(u8),
    /// Nobody reads what it prints any more.
    Unheard,
    Failed(String),
}

/// What a job came to.
#[derive(Debug)]
pub(crate) struct JobReport {
    pub(crate) end: JobEnd,
    /// The output, where it was kept.
    pub(crate) output: Option<Vec<u8>>,
    /// That is not all of it.
    pub(crate) truncated: bool,
}

/// A job under way.
#[derive(Debug)]
pub(crate) struct Job {
    plan: JobPlan,
    reader: ReaderId,
    stage: Stage,
    sink: Sink,
    truncated: bool,
}

#[derive(Debug)]
enum Stage {
    /// The machine does not run yet.
    Waiting,
    Login(WaitId),
    Run(WaitId),
    Over(JobEnd),
}

/// Where the output goes.
#[derive(Debug)]
enum Sink {
    Stdout(Output),
    Kept(Vec<u8>),
}

/// What a job came to, for those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    LoggedIn,
    Spoke,
    Over,
}

impl Job {
    /// A job whose output goes to standard output, or is `kept`.
    pub(crate) fn new(plan: JobPlan, kept: bool, vm: &mut Vm) -> io::Result<Self> {
        let sink = if kept { Sink::Kept(Vec::new()) } else { Sink::Stdout(Output::new()?) };
        let reader = vm.add_reader();
        Ok(Self { plan, reader, stage: Stage::Waiting, sink, truncated: false })
    }

    /// Standard output, where that is where the command's goes.
    pub(crate) fn output(&self) -> Option<&Output> {
        match &self.sink {
            Sink::Stdout(output) => Some(output),
            Sink::Kept(_) => None,
        }
    }

    /// Standard output takes some more.
    pub(crate) fn on_writable(&mut self) {
        if let Sink::Stdout(output) = &mut self.sink {
            output.on_writable();
        }
    }

    /// Hands on what the command has printed, where there is room. Otherwise the command waits.
    pub(crate) fn refill(&mut self, vm: &mut Vm) -> Option<Step> {
        let Stage::Run(run) = self.stage else { return None };
        if let Sink::Stdout(output) = &self.sink {
            if output.is_broken() {
                vm.cancel(run);
                self.stage = Stage::Over(JobEnd::Unheard);
                return Some(Step::Over);
            }
            if !output.is_empty() {
                return None;
            }
        }
        let bytes = vm.take_output(run);
        (!bytes.is_empty()).then(|| {
            self.put(bytes);
            Step::Spoke
        })
    }

    /// Begins as soon as the machine runs.
    pub(crate) fn on_status(&mut self, vm: &mut Vm) -> Option<Step> {
        if !matches!(self.stage, Stage::Waiting) || vm.status() != VmStatus::Running {
            return None;
        }
        let JobPlan { user, password, .. } = &self.plan;
        let begun = vm.login(self.reader, user, password.as_deref(), None::<Duration>);
        self.go(begun, Stage::Login)
    }

    /// Goes on when a conversation is over.
    pub(crate) fn on_ended(&mut self, vm: &mut Vm, wait: WaitId) -> Option<Step> {
        match self.stage {
            Stage::Login(login) if login == wait => match vm.take_ended(wait)? {
                Ended::Script(Ok(_)) => {
                    let begun = vm.stream_command(self.reader, &self.plan.line, None);
                    self.go(begun, Stage::Run).or(Some(Step::LoggedIn))
                }
                Ended::Script(Err(error)) => self.fail(format!("cannot log in: {error}")),
                Ended::Expect(_) => None,
            },
            Stage::Run(run) if run == wait => {
                // All that came before a failure.
                let rest = vm.take_output(wait);
                self.put(rest);
                match vm.take_ended(wait)? {
                    Ended::Script(Ok(reply)) => {
                        self.put(reply.output);
                        self.truncated |= reply.truncated;
                        let status = reply.status.and_then(|status| u8::try_from(status).ok());
                        let Some(status) = status else {
                            return self.fail("the guest told no status of the command".into());
                        };
                        self.stage = Stage::Over(JobEnd::Ran(status));
                        Some(Step::Over)
                    }
                    Ended::Script(Err(error)) => {
                        self.fail(format!("cannot run the command: {error}"))
                    }
                    Ended::Expect(_) => None,
                }
            }
            _ => None,
        }
    }

    /// How it ended. A machine that is over ends it too.
    pub(crate) fn into_report(self) -> JobReport {
        let end = match self.stage {
            Stage::Over(end) => end,
            Stage::Waiting | Stage::Login(_) => {
                JobEnd::Failed("the machine ended before the command was run".into())
            }
            Stage::Run(_) => JobEnd::Failed("the machine ended before the command did".into()),
        };
        let output = match self.sink {
            Sink::Kept(bytes) => Some(bytes),
            Sink::Stdout(_) => None,
        };
        JobReport { end, output, truncated: self.truncated }
    }

    fn put(&mut self, bytes: Vec<u8>) {
        match &mut self.sink {
            Sink::Stdout(output) => output.put(bytes),
            Sink::Kept(kept) => {
                let room = KEPT.saturating_sub(kept.len()).min(bytes.len());
                kept.extend_from_slice(&bytes[..room]);
                self.truncated |= room < bytes.len();
            }
        }
    }

    fn go(&mut self, begun: Result<WaitId, Error>, stage: fn(WaitId) -> Stage) -> Option<Step> {
        match begun {
            Ok(wait) => {
                self.stage = stage(wait);
                None
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn fail(&mut self, why: String) -> Option<Step> {
        self.stage = Stage::Over(JobEnd::Failed(why));
        Some(Step::Over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        let words = ["sh", "-c", "echo 'a b'; exit 7", ""].map(Into::into);
        let plan = JobPlan::new(&words, None, None).unwrap();
        let line = plan.line.strip_prefix("( ").unwrap().strip_suffix(" )").unwrap();
        assert_eq!(shell_words::split(line).unwrap(), words.map(|w| w.into_string().unwrap()));
        assert_eq!(plan.user, "root");
    }

    #[test]
    fn no_words_and_no_text_are_refused() {
        use std::os::unix::ffi::OsStringExt;
        let raw = std::ffi::OsString::from_vec(b"\xff".to_vec());
        for words in [vec![], vec![raw]] {
            assert_eq!(JobPlan::new(&words, None, None).unwrap_err().code, 2);
        }
    }

    #[test]
    fn a_password_is_a_files_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "secret\nmore").unwrap();
        let plan = JobPlan::new(&["id".into()], Some("user"), Some(&file)).unwrap();
        assert_eq!((plan.user.as_str(), plan.password.as_deref()), ("user", Some("secret")));
        let missing = dir.path().join("none");
        assert_eq!(JobPlan::new(&["id".into()], None, Some(&missing)).unwrap_err().code, CONFIG);
    }
}
