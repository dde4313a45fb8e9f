//! `run … -- COMMAND`: logs in on the console, runs one command and keeps its output and status.
//!
//! A guest that comes up with a shell of root, as an initramfs does, is asked for nothing. The
//! command gets the words as they were given, in a subshell of its own, with `/dev/null` as its
//! standard input.

use std::path::PathBuf;
use std::time::Duration;

use capsa::embed::{Ended, ReaderId, Vm, WaitId};
use capsa::{Error, VmStatus};

use crate::failure::{CONFIG, Failure};
use crate::files;
use crate::flags::{Command, usage};

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
    Ran { output: Vec<u8>, status: u8, truncated: bool },
    Failed(String),
}

/// A job under way.
#[derive(Debug)]
pub(crate) struct Job {
    plan: JobPlan,
    reader: ReaderId,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The machine does not run yet.
    Waiting,
    Login(WaitId),
    Run(WaitId),
    Over(JobEnd),
}

/// What a job came to, for those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    LoggedIn,
    Over,
}

impl Job {
    pub(crate) fn new(plan: JobPlan, vm: &mut Vm) -> Self {
        Self { plan, reader: vm.add_reader(), stage: Stage::Waiting }
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
                    let begun = vm.run_command(self.reader, &self.plan.line, None, None);
                    self.go(begun, Stage::Run).or(Some(Step::LoggedIn))
                }
                Ended::Script(Err(error)) => self.fail(format!("cannot log in: {error}")),
                Ended::Expect(_) => None,
            },
            Stage::Run(run) if run == wait => match vm.take_ended(wait)? {
                Ended::Script(Ok(reply)) => {
                    let status = reply.status.and_then(|status| u8::try_from(status).ok());
                    let Some(status) = status else {
                        return self.fail("the guest told no status of the command".into());
                    };
                    let (output, truncated) = (reply.output, reply.truncated);
                    self.stage = Stage::Over(JobEnd::Ran { output, status, truncated });
                    Some(Step::Over)
                }
                Ended::Script(Err(error)) => self.fail(format!("cannot run the command: {error}")),
                Ended::Expect(_) => None,
            },
            _ => None,
        }
    }

    /// How it ended. A machine that is over ends it too.
    pub(crate) fn into_end(self) -> JobEnd {
        match self.stage {
            Stage::Over(end) => end,
            Stage::Waiting | Stage::Login(_) => {
                JobEnd::Failed("the machine ended before the command was run".into())
            }
            Stage::Run(_) => JobEnd::Failed("the machine ended before the command did".into()),
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
