//! A machine in emulation that has a working `/dev/kvm`, with the host's own files in it: what was
//! built on the host runs there unchanged, on hypervisors that need KVM.
//!
//! QEMU's emulated CPU has AMD's virtualisation, so `kvm_amd` works inside, 10 to 30 times slower
//! than hardware. The host's root is shared read-only and covered by an overlay in memory: programs
//! inside find every path as on the host and may write anywhere, and the host does not change.
//! There is no network, so what is run must have been made before.
//!
//! QEMU 10.0.2 makes a mistake there now and then, about once in a million entries into a guest: it
//! walks the machine's page tables as the guest's, or the other way round (seen with the kernel's
//! trace points of KVM). That guest is lost: its virtual CPU fails, or it hangs. A scenario that writes
//! 64 KiB byte by byte meets it in one of ten runs, one that boots Linux hardly ever.
//!
//! Everything goes through Capsa's public API: this is Capsa testing Capsa.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capsa::blocking::{VmConsole, VmHandle};
use capsa::{
    Accelerator, Capsa, LinuxBootConfig, MountMode, ShareMechanism, StopReport, VirtioFsConfig,
};
use tempfile::TempDir;

use capsa_fixtures::guest::{self, Unavailable, Variant};
use capsa_fixtures::host;

/// Puts the host's root in place, then becomes the host's shell.
const ENTER: &str = include_str!("enter");
/// Where the host's root is before that.
const HOST: &str = "/host";
/// What [`ENTER`] prints at its end.
const ENTERED: &str = "capsa-lab: entered\r\n";
/// What stands before the exit status of a program.
const ENDED: &str = "capsa-lab: ended ";
/// From spawn to prompt in emulation, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The machine.
#[derive(Debug)]
pub struct Lab {
    vm: VmHandle,
    console: VmConsole,
    /// Scripts, which are in the machine at the same path as here.
    scripts: TempDir,
    ran: usize,
}

/// Why something in the lab went wrong. That a program there failed is no such error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest that it boots cannot be had.
    #[error(transparent)]
    Guest(#[from] Unavailable),
    /// The machine, or its console.
    #[error("the lab machine does not do as told")]
    Machine(#[from] capsa::Error),
    /// A script cannot be written.
    #[error("cannot write a script for the lab machine")]
    Script(#[from] io::Error),
    /// There is no virtiofsd to share the host's root with.
    #[error("virtiofsd is not installed")]
    NoVirtiofsd,
    /// A program's last line is not what was to be printed there.
    #[error("the lab machine's shell said {0:?} where an exit status was to be")]
    NoStatus(String),
}

impl Lab {
    /// Boots it to its shell.
    ///
    /// # Errors
    /// When its guest cannot be made, or it does not come up.
    pub fn boot() -> Result<Self, Error> {
        let guest = guest::linux(Variant::Lab)?;
        let scripts = tempfile::Builder::new().prefix("capsa-lab.").tempdir()?;
        let vm = Capsa::vm(LinuxBootConfig::new(guest.kernel).initrd(guest.initrd))
            .backend("qemu")
            .accelerator(Accelerator::Emulation)
            .cpus(2)
            .memory_mb(4096)
            .no_network()
            .console_enabled()
            .program("virtiofsd", virtiofsd(scripts.path())?)
            // Nobody writes to the host's files meanwhile, or the lab cannot be relied on anyway.
            .share_with_mechanism(
                "/",
                HOST,
                MountMode::ReadOnly,
                ShareMechanism::VirtioFs(VirtioFsConfig {
                    tag: None,
                    cache: Some("always".into()),
                }),
            )
            .cmdline_args(["quiet", "loglevel=3", "mitigations=off"])
            .build_blocking()?;
        vm.start()?;
        let mut console = vm.console()?;
        console.login_timeout("root", None, PATIENCE)?;
        Ok(Self { vm, console, scripts, ran: 0 })
    }

    /// Puts the host's root in place of the guest's, writable and without a trace.
    ///
    /// # Errors
    /// When a mount fails: the error has what the shell said.
    pub fn enter(&mut self) -> Result<(), Error> {
        let script = self.scripts.path().join("enter");
        fs::write(&script, ENTER)?;
        self.console.write_line(&format!("exec sh {HOST}{}", script.display()))?;
        self.console.wait_for_timeout(ENTERED, PATIENCE)?;
        Ok(())
    }

    /// Runs a program of the host's there and returns its exit status. `environment` is all it has.
    /// `on_line` gets each line of its output, standard error included, as it comes.
    ///
    /// # Errors
    /// When the machine ends meanwhile, or the program is silent for longer than `patience`.
    pub fn run<E: AsRef<OsStr>>(
        &mut self,
        program: &[E],
        environment: &[(OsString, OsString)],
        patience: Duration,
        mut on_line: impl FnMut(&str),
    ) -> Result<i32, Error> {
        self.ran += 1;
        let script = self.scripts.path().join(format!("run-{}", self.ran));
        fs::write(&script, command_script(program, environment))?;
        self.console.write_line(&format!("sh {}", script.display()))?;
        loop {
            let line = self.console.wait_for_timeout("\n", patience)?;
            let line = line.trim_end_matches(['\r', '\n']);
            // Behind output that did not end its line, it does not begin one.
            let Some((before, status)) = line.split_once(ENDED) else {
                on_line(line);
                continue;
            };
            if !before.is_empty() {
                on_line(before);
            }
            return status.parse().map_err(|_| Error::NoStatus(line.to_owned()));
        }
    }

    /// Powers it off.
    ///
    /// # Errors
    /// When that fails.
    pub fn shut_down(self) -> Result<Option<StopReport>, Error> {
        self.vm.stop()?;
        Ok(self.vm.stop_report())
    }

    /// The machine.
    pub fn vm(&self) -> &VmHandle {
        &self.vm
    }
}

/// Writes a virtiofsd to `dir` that hides where one file system ends and the next begins: an overlay
/// looks into the root's file system alone.
fn virtiofsd(dir: &Path) -> Result<PathBuf, Error> {
    let real = host::find_program("virtiofsd").ok_or(Error::NoVirtiofsd)?;
    let path = dir.join("virtiofsd");
    let real = quoted(real.as_os_str());
    let script = [b"#!/bin/sh\nexec ", &real[..], b" --no-announce-submounts \"$@\"\n"].concat();
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// A script that runs `program` with this environment and says how it ended.
fn command_script<E: AsRef<OsStr>>(program: &[E], environment: &[(OsString, OsString)]) -> Vec<u8> {
    let mut script = b"env -i".to_vec();
    for (key, value) in environment {
        script.push(b' ');
        script.extend(quoted(&[key.as_os_str(), value].join(OsStr::new("="))));
    }
    for word in program {
        script.push(b' ');
        script.extend(quoted(word.as_ref()));
    }
    script.extend(b" </dev/null 2>&1\necho \"");
    script.extend(ENDED.as_bytes());
    script.extend(b"$?\"\n");
    script
}

/// A word for the shell, whatever is in it.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            byte => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_command_reaches_the_program_as_it_was_given() {
        let environment =
            [("A".into(), "it's $HOME".into()), ("PATH".into(), "/bin:/usr/bin".into())];
        let program =
            ["sh", "-c", "printf '%s|' \"$A\" \"$HOME\" \"$@\"; exit 7", "sh", "a b", "'\"\n"];
        let script = command_script(&program, &environment);
        let said = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        assert_eq!(said, format!("it's $HOME||a b|'\"\n|{ENDED}7\n"));
    }
}
