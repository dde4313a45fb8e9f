//! Random commands in a guest, with random limits and dropped futures: the soak of the console.
//!
//! The laws, checked after each command:
//!
//! - no call outlives its time limit by more than [`OVERRUN_MAX`];
//! - a command that ends has its expected output and status;
//! - a command that is given up leaves a console on which the next command works.
//!
//! Each command has a seed of its own, one more than that of the command before: a failure is repeated
//! with `--seed` of its report, alone or after the commands before it.

mod commands;
mod shells;

use std::fmt::Write;
use std::time::{Duration, Instant};

use capsa::blocking::VmHandle;
use capsa::console::CommandOutput;
use capsa::{Error, LinuxVmBuilder, VmConsole};
use fastrand::Rng;
use futures_lite::future::block_on;

use capsa_fixtures::guest::{self, LOGIN_SHELLS, Unavailable, Variant};

use crate::drop_futures::poll_for;
use crate::vm;
use commands::{Expected, SoakCommand};
pub use shells::give_up;

/// How long a call may outlive its time limit.
pub const OVERRUN_MAX: Duration = Duration::from_secs(2);

/// The time limit of a boot and of a command that ends, for emulation on a loaded host.
const PATIENCE: Duration = Duration::from_secs(120);

/// The time limit of the command that shows whether the console still works. A command that ignores
/// the first signals is killed after a second and a half.
const RECOVERY: Duration = Duration::from_secs(10);

/// A guest for the soak, and its login shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoakGuest {
    /// The Linux guest: busybox.
    Busybox,
    /// Debian with systemd and bash.
    Debian,
    /// The Linux guest with shells, with this login shell.
    Shell(&'static str),
}

impl SoakGuest {
    /// The guest of this name: `busybox`, `debian` or a login shell.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "busybox" => Some(Self::Busybox),
            "debian" => Some(Self::Debian),
            _ => LOGIN_SHELLS.into_iter().find(|shell| *shell == name).map(Self::Shell),
        }
    }

    /// Boots the guest and logs in.
    ///
    /// # Errors
    ///
    /// When the guest cannot be built, or does not boot.
    ///
    /// # Panics
    ///
    /// When the VM cannot be built or has no shell.
    pub fn boot(self) -> Result<Session, Unavailable> {
        let (builder, user, password, guest): (LinuxVmBuilder, _, _, Box<dyn Send>) = match self {
            Self::Busybox => {
                let guest = guest::linux(Variant::Cloud)?;
                (vm::linux(&guest), "root", None, Box::new(guest))
            }
            Self::Shell(shell) => {
                let guest = guest::linux(Variant::Shells)?;
                (vm::linux(&guest).memory_mb(512), shell, None, Box::new(guest))
            }
            Self::Debian => {
                let guest = guest::debian()?;
                (vm::debian(&guest), "root", Some("capsa"), Box::new(guest))
            }
        };
        let vm = builder.build_blocking().expect("a VM of the guest");
        vm.start().expect("a VM that starts");
        let mut console = block_on(vm.as_async().console()).expect("a console");
        block_on(console.login_timeout(user, password, PATIENCE)).expect("a login");
        Ok(Session { console, vm, _guest: guest })
    }
}

/// A guest that runs, with a shell on its console.
pub struct Session {
    /// The console.
    pub console: VmConsole,
    /// The VM.
    pub vm: VmHandle,
    _guest: Box<dyn Send>,
}

/// What a soak has shown.
#[derive(Clone, Debug, Default)]
pub struct SoakReport {
    /// Commands that ended.
    pub ended: u32,
    /// Commands that were given up: by their time limit, by a dropped future, by a dropped
    /// `RunningCommand`.
    pub given_up: [u32; 3],
    /// How long the call that outlived its time limit most did so.
    pub longest_overrun: Duration,
    /// How long the longest command after one that was given up took.
    pub longest_recovery: Duration,
    /// How often the console was lost, and the guest booted again.
    pub lost_consoles: u32,
    /// One line for each broken law.
    pub failures: Vec<String>,
}

impl SoakReport {
    /// The figures in a line.
    pub fn summary(&self) -> String {
        let [limits, futures, running] = self.given_up;
        format!(
            "{} ended, {limits} timed out, {futures} futures and {running} running commands dropped; \
             longest overrun {:.2?}, longest recovery {:.2?}, {} lost consoles, {} failures",
            self.ended,
            self.longest_overrun,
            self.longest_recovery,
            self.lost_consoles,
            self.failures.len()
        )
    }
}

/// Runs `count` commands in the guest, the first with this seed. `progress` gets each failure, and the
/// figures now and then. A guest whose console is lost is booted again.
///
/// # Errors
///
/// When the guest cannot be built again.
///
/// # Panics
///
/// When the guest does not boot.
pub fn soak(
    guest: SoakGuest,
    mut session: Session,
    seed: u64,
    count: u64,
    progress: impl Fn(&str),
) -> Result<SoakReport, Unavailable> {
    let mut report = SoakReport::default();
    for n in 0..count {
        let seed = seed + n;
        if let Err(failure) =
            one_command(&mut session.console, &mut Rng::with_seed(seed), &mut report)
        {
            let failure = format!("seed {seed}: {failure}");
            progress(&failure);
            report.failures.push(failure);
            // Whether only this command failed.
            if let Err(failure) = recovers(&mut session.console, seed, &mut report) {
                progress(&format!("lost console after seed {seed}: {failure}"));
                report.lost_consoles += 1;
                drop(session);
                session = guest.boot()?;
            }
        }
        if (n + 1) % 100 == 0 {
            progress(&format!("{} commands: {}", n + 1, report.summary()));
        }
    }
    Ok(report)
}

/// Runs one random command, and one more if it was given up.
fn one_command(
    console: &mut VmConsole,
    rng: &mut Rng,
    report: &mut SoakReport,
) -> Result<(), String> {
    let command = commands::random(rng);
    let is_endless = command.expected == Expected::Endless;
    let early = Duration::from_millis(rng.u64(..if is_endless { 1500 } else { 300 }));
    let limit = if is_endless || rng.u8(..5) == 0 { early } else { PATIENCE };
    let way = if limit == PATIENCE { 0 } else { rng.usize(..3) };
    let began = Instant::now();
    let ended = match way {
        0 => Some(block_on(console.run(&command.text, Some(limit)))),
        1 => block_on(poll_for(limit, console.run(&command.text, None))),
        _ => match console.spawn(&command.text, None) {
            Ok(running) => block_on(poll_for(limit, running.wait())),
            Err(error) => Some(Err(error)),
        },
    };
    let overrun = began.elapsed().saturating_sub(limit);
    report.longest_overrun = report.longest_overrun.max(overrun);
    let shown = describe(&command, way, limit);
    if overrun > OVERRUN_MAX {
        return Err(format!("{shown}: outlived its limit by {overrun:.2?}"));
    }
    match ended {
        Some(Ok(CommandOutput { output, status, truncated, .. })) => {
            report.ended += 1;
            let status = status.unwrap_or(-1);
            if !command.expected.allows(&output, status) || truncated {
                let output = shorten(&String::from_utf8_lossy(&output));
                return Err(format!("{shown}: status {status}, output {output:?}"));
            }
            return Ok(());
        }
        Some(Err(Error::Timeout { .. })) if limit != PATIENCE => {}
        Some(Err(error)) => return Err(format!("{shown}: {}", explain(&error))),
        None => {}
    }
    report.given_up[way] += 1;
    recovers(console, rng.u64(..), report).map_err(|failure| format!("{shown}: then {failure}"))
}

/// Runs a command that must work.
fn recovers(console: &mut VmConsole, id: u64, report: &mut SoakReport) -> Result<(), String> {
    let began = Instant::now();
    let outcome = expect_echo(console, id, RECOVERY);
    report.longest_recovery = report.longest_recovery.max(began.elapsed());
    outcome
}

/// Runs `echo ok ID`, which must print that within the limit.
fn expect_echo(console: &mut VmConsole, id: u64, limit: Duration) -> Result<(), String> {
    match block_on(console.run(&format!("echo ok {id}"), Some(limit))) {
        Ok(reply) if reply.success() && reply.text() == format!("ok {id}\n") => Ok(()),
        Ok(reply) => Err(format!("echo ok: {reply:?}")),
        Err(error) => Err(format!("echo ok: {}", explain(&error))),
    }
}

/// The error with the end of the console's output.
fn explain(error: &Error) -> String {
    let tail = error.tail().unwrap_or_default();
    let cut = tail.char_indices().rev().nth(399).map_or(0, |(at, _)| at);
    format!("{} (the console's end: {:?})", shorten(&error.to_string()), &tail[cut..])
}

/// How a command is given up.
const WAYS: [&str; 3] = ["limit", "future dropped after", "running command dropped after"];

fn describe(command: &SoakCommand, way: usize, limit: Duration) -> String {
    let mut text = format!("{:?}", shorten(&command.text));
    let _ = write!(text, " ({} {limit:?})", WAYS[way]);
    if let Expected::Result(output, status) = &command.expected {
        let output = shorten(&String::from_utf8_lossy(output));
        let _ = write!(text, ", expected status {status}, output {output:?}");
    }
    text
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}
