//! What a scenario is played on: a subject, a guest for it, and a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use capsa::{Capsa, LinuxBootConfig, LinuxVmBuilder};
use tempfile::TempDir;

use super::machine::{Machine, Speech};
use super::{Needs, Subject};
use capsa_fixtures::guest::{self, LinuxGuest, Variant};
use capsa_fixtures::nano::Nano;
use capsa_fixtures::{command, host};

/// A subject, a guest for it, and a directory that goes with them.
#[derive(Debug)]
pub struct Stage<'a> {
    /// Who is held to the scenario.
    pub subject: &'a Subject,
    guest: Guest,
    dir: TempDir,
}

#[derive(Debug)]
enum Guest {
    Nano,
    Linux(LinuxGuest),
}

impl<'a> Stage<'a> {
    /// A stage with the guest that is needed.
    ///
    /// # Errors
    ///
    /// Why there can be none here.
    pub(super) fn new(subject: &'a Subject, needs: Needs) -> Result<Self, String> {
        let linux = |variant| {
            subject.runs_linux.clone()?;
            guest::linux(variant).map(Guest::Linux).map_err(|why| why.to_string())
        };
        let guest = match needs {
            Needs::Any if subject.runs_nano => Guest::Nano,
            Needs::Any | Needs::Linux => linux(Variant::Cloud)?,
            Needs::Linux9p => linux(Variant::Generic)?,
        };
        let dir = tempfile::tempdir().map_err(|error| format!("no directory: {error}"))?;
        Ok(Self { subject, guest, dir })
    }

    /// A machine with the guest: a console, no network, little memory.
    pub fn builder(&self) -> LinuxVmBuilder {
        self.build(Nano::default())
    }

    /// The same with a guest that does not heed the power button, once [`Machine::deafen`] was
    /// called.
    pub fn deaf_builder(&self) -> LinuxVmBuilder {
        self.build(Nano { power_button: false })
    }

    fn build(&self, nano: Nano) -> LinuxVmBuilder {
        let (config, memory) = match &self.guest {
            Guest::Nano => {
                let kernel = nano.write_to(self.dir()).expect("the nano guest can be written");
                (self.subject.boots(kernel, self.dir()), self.subject.nature.nano_memory_mb)
            }
            Guest::Linux(guest) => (LinuxBootConfig::new(&guest.kernel).initrd(&guest.initrd), 256),
        };
        let builder = self.subject.builds(Capsa::vm(config)).memory_mb(memory);
        let builder = builder.no_network().console_enabled();
        match &self.guest {
            Guest::Nano => builder.accelerator(self.subject.nature.nano_accelerator),
            Guest::Linux(_) => builder.cmdline_args(["quiet", "mitigations=off"]),
        }
    }

    /// Builds it; nothing runs yet.
    ///
    /// # Panics
    ///
    /// When it cannot be built.
    #[track_caller]
    pub fn machine(&self, builder: LinuxVmBuilder) -> Machine {
        let vm = builder.build_blocking().unwrap_or_else(|error| panic!("no machine: {error}"));
        Machine::new(vm, self.speech())
    }

    /// Builds and starts it, and waits until its guest listens.
    ///
    /// # Panics
    ///
    /// When that fails.
    #[track_caller]
    pub fn boot(&self, builder: LinuxVmBuilder) -> Machine {
        let mut machine = self.machine(builder);
        machine.start();
        machine.listens();
        machine
    }

    /// How one speaks with its guest.
    pub fn speech(&self) -> Speech {
        match self.guest {
            Guest::Nano => Speech::Nano,
            Guest::Linux(_) => Speech::Shell,
        }
    }

    /// The Linux guest.
    ///
    /// # Panics
    ///
    /// When the scenario did not ask for one.
    pub fn linux(&self) -> &LinuxGuest {
        match &self.guest {
            Guest::Linux(guest) => guest,
            Guest::Nano => panic!("this scenario did not ask for Linux"),
        }
    }

    /// A directory that goes with the stage.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A copy of a file, there.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.at(name);
        fs::copy(from, &to).expect("an image can be copied");
        to
    }

    /// A raw image of 4 MiB there that begins with its own name, so that one is told from another.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn raw_image(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        let mut content = name.as_bytes().to_vec();
        content.resize(4 << 20, 0);
        fs::write(&path, content).expect("an image can be written");
        path
    }
}

/// Runs `qemu-img`, which made the guests' disks.
///
/// # Panics
///
/// When it fails.
pub fn qemu_img<'a>(arguments: impl IntoIterator<Item = &'a std::ffi::OsStr>) {
    let program = host::find_program("qemu-img").expect("qemu-img made the guest's disks");
    command::output(Command::new(program).args(arguments)).expect("qemu-img");
}
