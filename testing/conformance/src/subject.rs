//! The backends that are held to the suite, and what may differ between them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use capsa::{Accelerator, BackendCapabilities, BackendReport, LinuxBootConfig, LinuxVmBuilder};

use super::claims;
use capsa_fixtures::host;
use capsa_stand_ins as stand_in;

/// A backend to be held to the suite, and how its machines are built.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its name in the suite.
    pub name: &'static str,
    /// The name of its backend.
    pub backend: &'static str,
    /// What is true of it and need not be of others.
    pub nature: Nature,
    /// It runs the nano guest.
    pub runs_nano: bool,
    /// It runs Linux, or why not.
    pub runs_linux: Result<(), String>,
    build: fn(LinuxVmBuilder) -> LinuxVmBuilder,
}

/// What is true of one backend, and of another not, and right on both.
#[derive(Debug, Clone, Copy)]
pub struct Nature {
    /// The memory in MiB that the nano guest gets.
    pub nano_memory_mb: u32,
    /// What the nano guest runs on. It needs no hardware, and where that is only pretended it would
    /// take seconds.
    pub nano_accelerator: Accelerator,
    /// What a start says of a kernel that is none.
    pub bad_kernel: &'static [&'static str],
    /// What the report says when somebody else sends the hypervisor SIGTERM.
    pub sigterm: Sigterm,
    /// The addresses that NAT may give to the guest, and the one at which it reaches the host's
    /// loopback. `None`: any, and the host's own addresses are reached at the gateway.
    pub nat: Option<(&'static [&'static str], &'static str)>,
    /// Shares are served by processes of their own, and not by the hypervisor.
    pub share_helpers: bool,
    /// A path may hold a comma.
    pub commas: bool,
    /// What a line of the hypervisor's own on the guest's console begins with, where there are some.
    pub own_lines: Option<&'static str>,
}

impl Nature {
    /// What the guest alone said.
    pub fn guests_own(&self, said: &str) -> String {
        let Some(mark) = self.own_lines else { return said.to_owned() };
        let mut own = String::new();
        let mut rest = said;
        // Such a line may begin in the middle of one of the guest's.
        while let Some((before, line)) = rest.split_once(mark) {
            own += before;
            rest = line.split_once('\n').map_or("", |(_, behind)| behind);
        }
        own + rest
    }
}

/// What SIGTERM from outside looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sigterm {
    /// The hypervisor says that it was told to quit: it is lost.
    Lost,
    /// The hypervisor says no more than for a guest that powered off.
    PowerOff,
}

const QEMU: Nature = Nature {
    nano_memory_mb: 32,
    nano_accelerator: Accelerator::Emulation,
    bad_kernel: &["qemu exited with status 1", "kernel"],
    sigterm: Sigterm::Lost,
    nat: Some((&["10.0.2.15"], "10.0.2.2")),
    share_helpers: true,
    commas: true,
    own_lines: None,
};

const CLOUD_HYPERVISOR: Nature = Nature {
    nano_memory_mb: 64,
    nano_accelerator: Accelerator::Kvm,
    // What was tried, then the chain of causes.
    bad_kernel: &["boot the guest", ": "],
    sigterm: Sigterm::PowerOff,
    // passt gives the second where the host itself has no way out.
    nat: Some((&["10.0.2.15", "169.254.2.1"], "10.0.2.2")),
    ..QEMU
};

const VFKIT: Nature = Nature {
    nano_memory_mb: 64,
    nano_accelerator: Accelerator::Auto,
    bad_kernel: &["vfkit exited with status 1", "The virtual machine failed to start"],
    // The guest was asked, and did.
    sigterm: Sigterm::PowerOff,
    nat: None,
    share_helpers: false,
    commas: false,
    own_lines: Some("[GIN] "),
};

const CLH: &str = "cloud-hypervisor";
const CLH_STAND_IN: &str = "cloud-hypervisor-stand-in";
const VFKIT_STAND_IN: &str = "vfkit-stand-in";

/// What a subject needs another program for: the leaf, the subjects, the program, and the variable
/// that may name it.
const HELPERS: &[(&str, &[&str], &str, &str)] = &[
    ("virtio_fs", &["qemu", CLH, CLH_STAND_IN], "virtiofsd", "CAPSA_VIRTIOFSD"),
    ("network_modes.nat", &[CLH, CLH_STAND_IN], "passt", "CAPSA_PASST"),
    ("vsock", &["qemu", CLH_STAND_IN], "vhost-device-vsock", "CAPSA_VHOST_DEVICE_VSOCK"),
    // Where the stand-in finds them, and nobody may say otherwise.
    ("virtio_fs", &[VFKIT_STAND_IN], "virtiofsd", ""),
    ("vsock", &[VFKIT_STAND_IN], "vhost-device-vsock", ""),
];

/// A way to get a subject, by its name.
pub type Find = fn() -> Result<Subject, String>;

/// Every subject.
pub const SUBJECTS: &[(&str, Find)] = &[
    ("qemu", Subject::qemu),
    (CLH, Subject::cloud_hypervisor),
    (CLH_STAND_IN, Subject::cloud_hypervisor_stand_in),
    ("vfkit", Subject::vfkit),
    (VFKIT_STAND_IN, Subject::vfkit_stand_in),
];

impl Subject {
    /// QEMU: the nano guest in emulation, Linux with what this host has.
    ///
    /// # Errors
    ///
    /// Why it cannot run here.
    pub fn qemu() -> Result<Self, String> {
        let program = format!("qemu-system-{}", std::env::consts::ARCH);
        installed(&program, "CAPSA_QEMU")?;
        Ok(Self {
            name: "qemu",
            backend: "qemu",
            nature: QEMU,
            runs_nano: cfg!(target_arch = "x86_64"),
            runs_linux: Ok(()),
            build: |builder| builder,
        })
    }

    /// The real cloud-hypervisor: the nano guest, and Linux where KVM has hardware behind it.
    ///
    /// # Errors
    ///
    /// Why it cannot run here.
    pub fn cloud_hypervisor() -> Result<Self, String> {
        installed("cloud-hypervisor", "CAPSA_CLOUD_HYPERVISOR")?;
        let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        kvm.map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
        Ok(Self {
            name: CLH,
            backend: CLH,
            nature: CLOUD_HYPERVISOR,
            runs_nano: cfg!(target_arch = "x86_64"),
            runs_linux: match host::kvm_has_hardware() {
                true => Ok(()),
                false => Err("KVM has no hardware behind it here, and Linux needs that".into()),
            },
            build: |builder| builder.accelerator(Accelerator::Kvm),
        })
    }

    /// Our stand-in for cloud-hypervisor, whose guests QEMU emulates.
    ///
    /// # Errors
    ///
    /// Why it cannot run here.
    pub fn cloud_hypervisor_stand_in() -> Result<Self, String> {
        let qemu = Self::qemu()?;
        Ok(Self {
            name: CLH_STAND_IN,
            backend: CLH,
            nature: Nature { nano_accelerator: Accelerator::Auto, ..CLOUD_HYPERVISOR },
            build: |builder| {
                builder.program("cloud-hypervisor", stand_in::CLOUD_HYPERVISOR).trust_backend()
            },
            ..qemu
        })
    }

    /// The real vfkit, with Linux guests: the nano guest is a kernel of a kind that it does not boot.
    ///
    /// # Errors
    ///
    /// Why it cannot run here.
    pub fn vfkit() -> Result<Self, String> {
        let report = backends().iter().find(|report| report.name == "vfkit");
        let report = report.expect("there is such a backend");
        if let Some(reason) = report.availability.blockers.first() {
            return Err(reason.what.clone());
        }
        Ok(Self {
            name: "vfkit",
            backend: "vfkit",
            nature: VFKIT,
            runs_nano: false,
            runs_linux: Ok(()),
            build: |builder| builder,
        })
    }

    /// Our stand-in for vfkit, whose guests QEMU emulates.
    ///
    /// # Errors
    ///
    /// Why it cannot run here.
    pub fn vfkit_stand_in() -> Result<Self, String> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err("it is an Intel Mac, emulated on Linux".into());
        }
        Ok(Self {
            name: VFKIT_STAND_IN,
            backend: "vfkit",
            nature: VFKIT,
            build: |builder| builder.program("vfkit", stand_in::VFKIT).trust_backend(),
            ..Self::qemu()?
        })
    }

    /// The subject of this name.
    ///
    /// # Errors
    ///
    /// Why it cannot run here, or that there is none.
    pub fn named(name: &str) -> Result<Self, String> {
        match SUBJECTS.iter().find(|(known, _)| *known == name) {
            Some((_, find)) => find(),
            None => {
                let names: Vec<_> = SUBJECTS.iter().map(|(name, _)| *name).collect();
                Err(format!("there is no subject {name:?}; there are {}", names.join(", ")))
            }
        }
    }

    /// The same without the nano guest.
    #[must_use]
    pub fn with_linux_alone(self) -> Self {
        Self { runs_nano: false, ..self }
    }

    /// Has `builder` build for this subject.
    pub fn builds(&self, builder: LinuxVmBuilder) -> LinuxVmBuilder {
        (self.build)(builder.backend(self.backend))
    }

    /// A machine of this kernel, with an initrd in `dir` that is nothing where its backend does not
    /// go without.
    ///
    /// # Panics
    ///
    /// When the initrd cannot be written.
    pub fn boots(&self, kernel: PathBuf, dir: &Path) -> LinuxBootConfig {
        let config = LinuxBootConfig::new(kernel);
        if self.claims(claims::WITHOUT_INITRD) {
            return config;
        }
        let initrd = dir.join("initrd");
        std::fs::write(&initrd, "nothing").expect("an initrd can be written");
        config.initrd(initrd)
    }

    /// What its backend says that it can do.
    ///
    /// # Panics
    ///
    /// When there is no such backend.
    pub fn capabilities(&self) -> &'static BackendCapabilities {
        let report = backends().iter().find(|report| report.name == self.backend);
        &report.expect("every subject's backend is listed").capabilities
    }

    /// Whether its backend claims this leaf of the capability table.
    pub fn claims(&self, leaf: &str) -> bool {
        claims::leaves(self.capabilities()).get(leaf).is_some_and(|claimed| *claimed)
    }

    /// What this machine lacks for a leaf that is claimed: a program beside the hypervisor, or one
    /// that will do. A program that is there and that the backend does not find is no excuse.
    pub fn lacks(&self, leaf: &str) -> Option<String> {
        if leaf == "vsock" && !cfg!(target_os = "linux") {
            return Some(
                "the guest's side of it is a program of this host, which is no Linux".into(),
            );
        }
        let (_, _, program, variable) = HELPERS
            .iter()
            .find(|(helped, subjects, ..)| *helped == leaf && subjects.contains(&self.name))?;
        if let Err(why) = installed(program, variable) {
            return Some(why);
        }
        let error = claims::ask(leaf, self).err()?;
        let unfit = error.violations().iter().find(|violation| {
            violation.reason.contains(program) && !violation.reason.contains("not found")
        })?;
        Some(unfit.to_string())
    }
}

/// Every backend's table. Asked once: programs are run for it.
pub fn backends() -> &'static [BackendReport] {
    static BACKENDS: OnceLock<Vec<BackendReport>> = OnceLock::new();
    BACKENDS.get_or_init(capsa::backends)
}

/// That a program is where `variable` says, or anywhere it is looked for.
fn installed(program: &str, variable: &str) -> Result<(), String> {
    match std::env::var_os(variable) {
        Some(path) if Path::new(&path).is_file() => Ok(()),
        Some(path) => Err(format!("{variable} names {}, which is no file", path.display())),
        None if host::find_program(program).is_some() => Ok(()),
        None => Err(format!("{program} is neither installed nor named by {variable}")),
    }
}
