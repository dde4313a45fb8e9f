//! The lab: an emulated host with a working `/dev/kvm` and the files of the real host. Programs that
//! were built on the real host run there unchanged, with hypervisors that need KVM.
//!
//! QEMU's emulated CPU has AMD's virtualization, so `kvm_amd` works in the lab, 10 to 30 times slower
//! than hardware. The root of the real host is shared read-only below an overlay in memory: programs
//! in the lab find the same paths and may write everywhere, and the real host does not change. There is
//! no network, so the programs and guests must exist before.
//!
//! QEMU 10.0.2 has an error here, about once in a million guest entries: it walks the page tables of
//! the lab as those of the guest, or the reverse (seen with the kernel's trace points of KVM). That
//! guest is lost: its vCPU fails, or it hangs. A scenario that writes 64 KiB byte by byte hits the
//! error in one of ten runs, a boot of Linux hardly ever.
//!
//! The lab is a VM of Capsa and uses its public API.

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

use capsa_fixtures::guest::{self, LinuxGuest, Unavailable, Variant};
use capsa_fixtures::host;

/// The script that changes to the root of the real host and executes its shell.
const ENTER: &str = include_str!("enter");
/// The mount point of the real host's root before that.
const HOST: &str = "/host";
/// The line that [`ENTER`] prints at its end.
const ENTERED: &str = "capsa-lab: entered\r\n";
/// The text before the exit status of a program.
const ENDED: &str = "capsa-lab: ended ";
/// The time limit of the boot in emulation, on a loaded host.
const PATIENCE: Duration = Duration::from_secs(180);

/// The running lab.
#[derive(Debug)]
pub struct Lab {
    vm: VmHandle,
    console: VmConsole,
    /// The directory of scripts, with the same path in the lab.
    scripts: TempDir,
    ran: usize,
    /// Its lock is held while the lab runs.
    _guest: LinuxGuest,
}

/// An error of the lab itself. A program that fails there is not one.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The guest of the lab is not available.
    #[error(transparent)]
    Guest(#[from] Unavailable),
    /// The VM or its console.
    #[error("the VM of the lab failed")]
    Vm(#[from] capsa::Error),
    /// A script cannot be written.
    #[error("cannot write a script for the lab")]
    Script(#[from] io::Error),
    /// virtiofsd is not installed.
    #[error("virtiofsd is not installed")]
    NoVirtiofsd,
    /// The last line of a program has no exit status.
    #[error("expected an exit status from the shell of the lab, got {0:?}")]
    NoStatus(String),
}

impl Lab {
    /// Boots the lab to its shell.
    ///
    /// # Errors
    ///
    /// When its guest is not available, or the boot fails.
    pub fn boot() -> Result<Self, LabError> {
        let guest = guest::linux(Variant::Lab)?;
        let scripts = tempfile::Builder::new().prefix("capsa-lab.").tempdir()?;
        let vm = Capsa::vm(LinuxBootConfig::new(&guest.kernel).initrd(&guest.initrd))
            .backend("qemu")
            .accelerator(Accelerator::Emulation)
            .cpus(2)
            .memory_mb(4096)
            .no_network()
            .console_enabled()
            .program("virtiofsd", virtiofsd(scripts.path())?)
            // Nothing should write to the host's files meanwhile; the overlay would not see it.
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
        Ok(Self { vm, console, scripts, ran: 0, _guest: guest })
    }

    /// Changes to the root of the real host, with an overlay for writes.
    ///
    /// # Errors
    ///
    /// When a mount fails. The error contains the console output.
    pub fn enter(&mut self) -> Result<(), LabError> {
        let script = self.scripts.path().join("enter");
        fs::write(&script, ENTER)?;
        self.console.write_line(&format!("exec sh {HOST}{}", script.display()))?;
        self.console.wait_for_timeout(ENTERED, PATIENCE)?;
        Ok(())
    }

    /// Runs a program with exactly this environment and returns its exit status. Calls `on_line` for each
    /// line of its output and standard error.
    ///
    /// # Errors
    ///
    /// When the lab ends, or the program prints nothing for longer than `silence_limit`.
    pub fn run<E: AsRef<OsStr>>(
        &mut self,
        program: &[E],
        environment: &[(OsString, OsString)],
        silence_limit: Duration,
        mut on_line: impl FnMut(&str),
    ) -> Result<i32, LabError> {
        self.ran += 1;
        let script = self.scripts.path().join(format!("run-{}", self.ran));
        fs::write(&script, command_script(program, environment))?;
        self.console.write_line(&format!("sh {}", script.display()))?;
        loop {
            let line = self.console.wait_for_timeout("\n", silence_limit)?;
            let line = line.trim_end_matches(['\r', '\n']);
            // After an incomplete line, the status does not begin a line.
            let Some((before, status)) = line.split_once(ENDED) else {
                on_line(line);
                continue;
            };
            if !before.is_empty() {
                on_line(before);
            }
            return status.parse().map_err(|_| LabError::NoStatus(line.to_owned()));
        }
    }

    /// Powers the lab off.
    ///
    /// # Errors
    ///
    /// When that fails.
    pub fn shut_down(self) -> Result<Option<StopReport>, LabError> {
        self.vm.stop()?;
        Ok(self.vm.stop_report())
    }

    /// The VM of the lab.
    pub fn vm(&self) -> &VmHandle {
        &self.vm
    }
}

/// Writes a wrapper of virtiofsd to `dir` that does not announce submounts: an overlay covers only the
/// file system of the root.
fn virtiofsd(dir: &Path) -> Result<PathBuf, LabError> {
    let real = host::find_program("virtiofsd").ok_or(LabError::NoVirtiofsd)?;
    let path = dir.join("virtiofsd");
    let real = quoted(real.as_os_str());
    let script = [b"#!/bin/sh\nexec ", &real[..], b" --no-announce-submounts \"$@\"\n"].concat();
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// A script that runs `program` with this environment and prints its exit status.
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

/// Quotes a word for the shell.
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
    fn command_script_keeps_arguments_unchanged() {
        let environment =
            [("A".into(), "it's $HOME".into()), ("PATH".into(), "/bin:/usr/bin".into())];
        let program =
            ["sh", "-c", "printf '%s|' \"$A\" \"$HOME\" \"$@\"; exit 7", "sh", "a b", "'\"\n"];
        let script = command_script(&program, &environment);
        let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output, format!("it's $HOME||a b|'\"\n|{ENDED}7\n"));
    }
}
