//! [`ScriptedGuest`]: a simulated guest that follows the steps of a test.

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

/// A simulated guest that follows the steps of a test.
///
/// First the guest runs its steps in the order in which they were added: it prints text, pauses,
/// expects lines of input. Then it shows its shell prompt, if it has a shell, and replies to the
/// lines that [`ScriptedGuest::on`] defines. A guest without a step that ends it keeps running, and
/// powers off when its power button is pressed.
///
/// ```
/// # use capsa_proto::sim::{GuestReply, ScriptedGuest};
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
    pub(super) steps: Vec<GuestStep>,
    pub(super) shell: Option<String>,
    pub(super) replies: BTreeMap<String, GuestReply>,
    pub(super) ignores_power_button: bool,
    pub(super) power_off_delay: Duration,
    start_error: Option<String>,
}

/// One step of a scripted guest.
#[derive(Debug, Clone)]
pub(super) enum GuestStep {
    Print(Vec<u8>),
    Pause(Duration),
    ExpectLine(String),
    Login { name: String, password: Option<String> },
    End(GuestEnd),
}

/// How a guest ends, or stops responding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GuestEnd {
    PowerOff,
    Reboot,
    Panic(String),
    Exit(i32),
    Killed(i32),
    Hang,
}

/// What a scripted guest does when it reads a line.
#[derive(Debug, Clone, Default)]
pub struct GuestReply {
    pub(super) delay: Duration,
    pub(super) output: Vec<u8>,
    pub(super) run_time: Duration,
    pub(super) status: i32,
    pub(super) end: Option<GuestEnd>,
}

impl GuestReply {
    /// Prints this text. At a shell it is the output of a command with exit status 0, and each `\n`
    /// becomes the terminal's `\r\n`.
    pub fn output(text: impl AsRef<[u8]>) -> Self {
        Self { output: text.as_ref().to_owned(), ..Self::default() }
    }

    /// Prints nothing; the command has this exit status.
    pub fn status(status: i32) -> Self {
        Self { status, ..Self::default() }
    }

    /// The guest powers off.
    pub fn power_off() -> Self {
        Self::end(GuestEnd::PowerOff)
    }

    /// The guest resets. If the VM's reboot policy restarts it, the guest repeats all its steps.
    pub fn reboot() -> Self {
        Self::end(GuestEnd::Reboot)
    }

    /// The guest kernel panics and prints this message.
    pub fn panic(message: impl Into<String>) -> Self {
        Self::end(GuestEnd::Panic(message.into()))
    }

    /// The hypervisor process exits with this status, which is a hypervisor failure and not an end
    /// that the guest causes.
    pub fn exit(status: i32) -> Self {
        Self::end(GuestEnd::Exit(status))
    }

    /// The hypervisor process is killed by this signal.
    pub fn killed(signal: i32) -> Self {
        Self::end(GuestEnd::Killed(signal))
    }

    /// The command runs until it is interrupted.
    pub fn blocks() -> Self {
        Self { delay: Duration::MAX, ..Self::default() }
    }

    /// The guest hangs: it prints nothing more, and ignores input and its power button.
    pub fn hang() -> Self {
        Self::end(GuestEnd::Hang)
    }

    fn end(end: GuestEnd) -> Self {
        Self { end: Some(end), ..Self::default() }
    }

    /// Waits this long before it does anything.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The command keeps running for this long after its output, or until it is interrupted.
    #[must_use]
    pub fn runs_for(mut self, time: Duration) -> Self {
        self.run_time = time;
        self
    }

    /// Prints this text first.
    #[must_use]
    pub fn with_output(mut self, text: impl AsRef<[u8]>) -> Self {
        self.output = text.as_ref().to_owned();
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
    /// A guest that prints nothing, ignores input, and powers off when its power button is pressed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prints these bytes unchanged.
    #[must_use]
    pub fn print(self, text: impl AsRef<[u8]>) -> Self {
        self.step(GuestStep::Print(text.as_ref().to_owned()))
    }

    /// Waits this long.
    #[must_use]
    pub fn pause(self, pause: Duration) -> Self {
        self.step(GuestStep::Pause(pause))
    }

    /// Waits for this line of input. The guest echoes every line and ignores other lines. A carriage
    /// return or a newline ends a line.
    #[must_use]
    pub fn expect_line(self, line: impl Into<String>) -> Self {
        self.step(GuestStep::ExpectLine(line.into()))
    }

    /// Prompts for a user name and, if `password` is given, a password, until both are right.
    #[must_use]
    pub fn login(self, name: impl Into<String>, password: Option<&str>) -> Self {
        self.step(GuestStep::Login { name: name.into(), password: password.map(ToOwned::to_owned) })
    }

    /// After all steps, shows this prompt and runs commands: the guest echoes each command and looks
    /// up its reply, see [`ScriptedGuest::on`]. Other commands are not found (exit status 127).
    #[must_use]
    pub fn shell(mut self, prompt: impl Into<String>) -> Self {
        self.shell = Some(prompt.into());
        self
    }

    /// Defines the reply to a line that the guest reads after its steps: to a command if it has a
    /// [shell](ScriptedGuest::shell), otherwise to any line.
    #[must_use]
    pub fn on(mut self, line: impl Into<String>, reply: GuestReply) -> Self {
        self.replies.insert(line.into(), reply);
        self
    }

    /// The guest powers off at this step.
    #[must_use]
    pub fn power_off(self) -> Self {
        self.step(GuestStep::End(GuestEnd::PowerOff))
    }

    /// The guest resets at this step. If the VM's reboot policy restarts it, the guest repeats all its
    /// steps.
    #[must_use]
    pub fn reboot(self) -> Self {
        self.step(GuestStep::End(GuestEnd::Reboot))
    }

    /// The guest kernel panics at this step and prints this message.
    #[must_use]
    pub fn panic(self, message: impl Into<String>) -> Self {
        self.step(GuestStep::End(GuestEnd::Panic(message.into())))
    }

    /// The hypervisor process exits with this status at this step.
    #[must_use]
    pub fn exit(self, status: i32) -> Self {
        self.step(GuestStep::End(GuestEnd::Exit(status)))
    }

    /// The hypervisor process is killed by this signal at this step.
    #[must_use]
    pub fn killed(self, signal: i32) -> Self {
        self.step(GuestStep::End(GuestEnd::Killed(signal)))
    }

    /// The guest hangs at this step: it prints nothing more, and ignores input and its power button.
    #[must_use]
    pub fn hang(self) -> Self {
        self.step(GuestStep::End(GuestEnd::Hang))
    }

    /// The guest ignores its power button.
    #[must_use]
    pub fn ignore_power_button(mut self) -> Self {
        self.ignores_power_button = true;
        self
    }

    /// How long the guest takes to power off after its power button was pressed. Default: zero.
    #[must_use]
    pub fn power_off_delay(mut self, delay: Duration) -> Self {
        self.power_off_delay = delay;
        self
    }

    /// The start of the VM fails with this error.
    #[must_use]
    pub fn fail_to_start(mut self, error: impl Into<String>) -> Self {
        self.start_error = Some(error.into());
        self
    }

    pub(super) fn start_error(&self) -> Option<&str> {
        self.start_error.as_deref()
    }

    /// A new simulation of this guest.
    pub fn simulate(&self) -> Box<dyn GuestSim> {
        Box::new(ScriptedSim::new(Arc::new(self.clone())))
    }

    fn step(mut self, step: GuestStep) -> Self {
        self.steps.push(step);
        self
    }

    /// The reply to this line: the defined one or, at a shell, "not found".
    pub(super) fn reply_to(&self, line: &str) -> Option<GuestReply> {
        match (self.replies.get(line), &self.shell) {
            (Some(reply), _) => Some(reply.clone()),
            (None, Some(_)) if line.trim().is_empty() => Some(GuestReply::default()),
            (None, Some(_)) => {
                let output = format!("sh: {line}: not found\n");
                Some(GuestReply::output(output).with_status(127))
            }
            (None, None) => None,
        }
    }
}
