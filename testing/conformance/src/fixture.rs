//! What a scenario needs: a subject, a guest for it, and a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use capsa::{Capsa, LinuxBootConfig, LinuxVmBuilder};
use tempfile::TempDir;

use super::vm::{GuestInterface, TestVm};
use super::{GuestKind, Subject};
use capsa_fixtures::guest::{self, LinuxGuest, Variant};
use capsa_fixtures::nano::Nano;
use capsa_fixtures::{command, host};

/// A subject, a guest for it, and a temporary directory.
#[derive(Debug)]
pub struct Fixture<'a> {
    /// The backend under test.
    pub subject: &'a Subject,
    guest: Guest,
    dir: TempDir,
}

#[derive(Debug)]
enum Guest {
    Nano,
    Linux(LinuxGuest),
}

impl<'a> Fixture<'a> {
    /// A fixture with this kind of guest.
    ///
    /// # Errors
    ///
    /// Why this host cannot run the guest.
    pub(super) fn new(subject: &'a Subject, needs: GuestKind) -> Result<Self, String> {
        let linux = |variant| {
            subject.runs_linux.clone()?;
            guest::linux(variant).map(Guest::Linux).map_err(|why| why.to_string())
        };
        let guest = match needs {
            GuestKind::Any if subject.runs_nano => Guest::Nano,
            GuestKind::Any | GuestKind::Linux => linux(Variant::Cloud)?,
            GuestKind::Linux9p => linux(Variant::Generic)?,
        };
        let dir = tempfile::tempdir().map_err(|error| format!("no directory: {error}"))?;
        Ok(Self { subject, guest, dir })
    }

    /// A builder of a VM with the guest: a console, no network, little memory.
    pub fn builder(&self) -> LinuxVmBuilder {
        self.build(Nano::default())
    }

    /// The same with a guest that ignores the power button after
    /// [`TestVm::ignore_power_button`].
    pub fn builder_without_power_button(&self) -> LinuxVmBuilder {
        self.build(Nano { power_button: false })
    }

    fn build(&self, nano: Nano) -> LinuxVmBuilder {
        let (config, memory) = match &self.guest {
            Guest::Nano => {
                let kernel = nano.write_to(self.dir()).expect("the nano guest can be written");
                (self.subject.boot_config(kernel, self.dir()), self.subject.traits.nano_memory_mb)
            }
            Guest::Linux(guest) => (LinuxBootConfig::new(&guest.kernel).initrd(&guest.initrd), 256),
        };
        let builder = self.subject.on_backend(Capsa::vm(config)).memory_mb(memory);
        let builder = builder.no_network().console_enabled();
        match &self.guest {
            Guest::Nano => builder.accelerator(self.subject.traits.nano_accelerator),
            Guest::Linux(_) => builder.cmdline_args(["quiet", "mitigations=off"]),
        }
    }

    /// Builds a VM and does not start it.
    ///
    /// # Panics
    ///
    /// When that fails.
    #[track_caller]
    pub fn vm(&self, builder: LinuxVmBuilder) -> TestVm {
        let vm =
            builder.build_blocking().unwrap_or_else(|error| panic!("cannot build the VM: {error}"));
        TestVm::new(vm, self.interface())
    }

    /// Builds and starts a VM, and waits until its guest accepts input.
    ///
    /// # Panics
    ///
    /// When that fails.
    #[track_caller]
    pub fn boot(&self, builder: LinuxVmBuilder) -> TestVm {
        let mut vm = self.vm(builder);
        vm.start();
        vm.wait_until_ready();
        vm
    }

    /// How a scenario controls the guest.
    pub fn interface(&self) -> GuestInterface {
        match self.guest {
            Guest::Nano => GuestInterface::Nano,
            Guest::Linux(_) => GuestInterface::Shell,
        }
    }

    /// The Linux guest.
    ///
    /// # Panics
    ///
    /// When the scenario does not use Linux.
    pub fn linux(&self) -> &LinuxGuest {
        match &self.guest {
            Guest::Linux(guest) => guest,
            Guest::Nano => panic!("this scenario does not use Linux"),
        }
    }

    /// The temporary directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Copies a file into the temporary directory.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        fs::copy(from, &to).expect("an image can be copied");
        to
    }

    /// Creates a raw image of 4 MiB in the temporary directory. It begins with its own name.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn raw_image(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let mut content = name.as_bytes().to_vec();
        content.resize(4 << 20, 0);
        fs::write(&path, content).expect("an image can be written");
        path
    }
}

/// Runs `qemu-img`.
///
/// # Panics
///
/// When it fails.
pub fn qemu_img<'a>(arguments: impl IntoIterator<Item = &'a std::ffi::OsStr>) {
    let program = host::find_program("qemu-img").expect("qemu-img made the guest's disks");
    command::output(Command::new(program).args(arguments)).expect("qemu-img");
}
