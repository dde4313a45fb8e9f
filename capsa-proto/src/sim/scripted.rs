//! [`ScriptedGuest`]: what a guest is to do, written down by a test.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::GuestSim;
use super::scripted_sim::ScriptedSim;

/// A guest that does as it was told.
///
/// First its acts, in the order in which they were added: it says things, pauses, waits for lines
/// to be typed. Then it is at its shell if it has one, and answers what it was told to answer.
/// Where it is never told of an end it stays, and powers off when it is asked to.
///
/// ```
/// use capsa_proto::fake::{GuestReply, ScriptedGuest};
/// use core::time::Duration;
///
/// let guest = ScriptedGuest::new()
///     .print("[    0.000000] Linux version 6.1.0\r\n")
///     .pause(Duration::from_millis(5))
///     .login("root", Some("secret"))
///     .shell("# ")
///     .on("uname -r", GuestReply::output("6.1.0\n"))
///     .on("test -e /etc/shadow", GuestReply::status(1))
///     .on("sync", GuestReply::output("").after(Duration::from_millis(20)))
///     .on("echo c > /proc/sysrq-trigger", GuestReply::panic("sysrq triggered crash"))
///     .on("sleep infinity", GuestReply::blocks());
/// # let _ = guest;
/// ```
#[derive(Debug, Clone, Default)]
pub struct ScriptedGuest {
    pub(super) acts: Vec<Act>,
    pub(super) shell: Option<String>,
    pub(super) answers: BTreeMap<String, GuestReply>,
    pub(super) deaf: bool,
    pub(super) off_after: Duration,
    start_error: Option<String>,
}

/// What a guest does once.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Say(Vec<u8>),
    Pause(Duration),
    Hear(String),
    Login { name: String, password: Option<String> },
    Finish(Finish),
}

/// An end, or a silence without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finish {
    PowerOff,
    Reboot,
    Panic(String),
    Exit(i32),
    Killed(i32),
    Hang,
}

/// What a guest does about a line it reads.
#[derive(Debug, Clone, Default)]
pub struct GuestReply {
    pub(super) after: Duration,
    pub(super) said: Vec<u8>,
    pub(super) lasting: Duration,
    pub(super) status: i32,
    pub(super) finish: Option<Finish>,
}

impl GuestReply {
    /// Says this. At a shell, it is the command's output, of status 0, and each `\n` becomes the
    /// terminal's `\r\n`.
    pub fn output(text: impl AsRef<[u8]>) -> Self {
        Self { said: text.as_ref().to_owned(), ..Self::default() }
    }

    /// Says nothing. The command at the shell has this exit status.
    pub fn status(status: i32) -> Self {
        Self { status, ..Self::default() }
    }

    /// The guest powers off.
    pub fn power_off() -> Self {
        Self::finish(Finish::PowerOff)
    }

    /// The guest resets. Where a reboot does not end the machine it does everything once more.
    pub fn reboot() -> Self {
        Self::finish(Finish::Reboot)
    }

    /// The guest's kernel panics, with these words on the console.
    pub fn panic(why: impl Into<String>) -> Self {
        Self::finish(Finish::Panic(why.into()))
    }

    /// The hypervisor exits with this status. That is no end a guest brings about.
    pub fn exit(status: i32) -> Self {
        Self::finish(Finish::Exit(status))
    }

    /// The hypervisor is killed by this signal.
    pub fn killed(signal: i32) -> Self {
        Self::finish(Finish::Killed(signal))
    }

    /// The command never ends, unless Ctrl-C ends it.
    pub fn blocks() -> Self {
        Self { after: Duration::MAX, ..Self::default() }
    }

    /// The guest hangs: it says nothing more, and hears neither what is typed nor its power
    /// button.
    pub fn hang() -> Self {
        Self::finish(Finish::Hang)
    }

    fn finish(finish: Finish) -> Self {
        Self { finish: Some(finish), ..Self::default() }
    }

    /// Does so after this long.
    #[must_use]
    pub fn after(mut self, pause: Duration) -> Self {
        self.after = pause;
        self
    }

    /// Goes on for this long after what it said, unless Ctrl-C ends it.
    #[must_use]
    pub fn runs_for(mut self, time: Duration) -> Self {
        self.lasting = time;
        self
    }

    /// Says this before what it does otherwise.
    #[must_use]
    pub fn with_output(mut self, text: impl AsRef<[u8]>) -> Self {
        self.said = text.as_ref().to_owned();
        self
    }

    /// The command has this exit status.
    #[must_use]
    pub fn with_status(mut self, status: i32) -> Self {
        self.status = status;
        self
    }
}

impl ScriptedGuest {
    /// A guest that says nothing, hears nothing but its power button, and never ends by itself.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says this, byte by byte as it stands.
    #[must_use]
    pub fn print(self, text: impl AsRef<[u8]>) -> Self {
        self.act(Act::Say(text.as_ref().to_owned()))
    }

    /// Waits this long.
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        self.act(Act::Pause(pause))
    }

    /// Waits until this line is typed, and echoes what is. Other lines are passed over. Enter, as a
    /// carriage return or a newline, ends a line.
    #[must_use]
    pub fn expect_line(self, line: impl Into<String>) -> Self {
        self.act(Act::Hear(line.into()))
    }

    /// Asks for a name and, where there is one, the password, until both are right.
    #[must_use]
    pub fn login(self, name: impl Into<String>, password: Option<&str>) -> Self {
        self.act(Act::Login { name: name.into(), password: password.map(ToOwned::to_owned) })
    }

    /// Shows this prompt after all other acts, and reads commands. It echoes them, and knows those
    /// that have an answer: [`ScriptedGuest::on`].
    #[must_use]
    pub fn shell(mut self, prompt: impl Into<String>) -> Self {
        self.shell = Some(prompt.into());
        self
    }

    /// Does this when it reads that line after its acts: a command where there is a shell, any line
    /// otherwise.
    #[must_use]
    pub fn on(mut self, line: impl Into<String>, answer: GuestReply) -> Self {
        self.answers.insert(line.into(), answer);
        self
    }

    /// Powers off by itself here.
    #[must_use]
    pub fn power_off(self) -> Self {
        self.act(Act::Finish(Finish::PowerOff))
    }

    /// Resets here. Where a reboot does not end the machine it begins once more.
    #[must_use]
    pub fn reboot(self) -> Self {
        self.act(Act::Finish(Finish::Reboot))
    }

    /// Panics here, with these words.
    #[must_use]
    pub fn panic(self, why: impl Into<String>) -> Self {
        self.act(Act::Finish(Finish::Panic(why.into())))
    }

    /// The hypervisor exits here with this status.
    #[must_use]
    pub fn exit(self, status: i32) -> Self {
        self.act(Act::Finish(Finish::Exit(status)))
    }

    /// The hypervisor is killed here by this signal.
    #[must_use]
    pub fn killed(self, signal: i32) -> Self {
        self.act(Act::Finish(Finish::Killed(signal)))
    }

    /// Hangs here: nothing more is said, and nothing heard, the power button included.
    #[must_use]
    pub fn hang(self) -> Self {
        self.act(Act::Finish(Finish::Hang))
    }

    /// Ignores its power button.
    #[must_use]
    pub fn ignore_power_button(mut self) -> Self {
        self.deaf = true;
        self
    }

    /// Powers off this long after its power button was pressed; at once unless said.
    #[must_use]
    pub fn power_off_delay(mut self, pause: Duration) -> Self {
        self.off_after = pause;
        self
    }

    /// The machine cannot be started, for this reason.
    #[must_use]
    pub fn fail_to_start(mut self, why: impl Into<String>) -> Self {
        self.start_error = Some(why.into());
        self
    }

    pub(super) fn start_error(&self) -> Option<&str> {
        self.start_error.as_deref()
    }

    /// A play of it.
    pub fn simulate(&self) -> Box<dyn GuestSim> {
        Box::new(ScriptedSim::new(Arc::new(self.clone())))
    }

    fn act(mut self, act: Act) -> Self {
        self.acts.push(act);
        self
    }

    /// What it does at its shell about this command.
    pub(super) fn answer(&self, command: &str) -> Option<GuestReply> {
        match (self.answers.get(command), &self.shell) {
            (Some(answer), _) => Some(answer.clone()),
            (None, Some(_)) if command.trim().is_empty() => Some(GuestReply::default()),
            (None, Some(_)) => {
                let said = format!("sh: {command}: not found\n");
                Some(GuestReply::output(said).with_status(127))
            }
            (None, None) => None,
        }
    }
}
