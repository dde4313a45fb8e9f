//! The backends that the suite tests, and what may differ between them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use capsa::backend::{BackendCapabilities, BackendReport};
use capsa::internal::BuilderForTests as _;
use capsa::{Accelerator, LinuxBootConfig, LinuxVmBuilder};

use super::capabilities;
use capsa_fixtures::host;
use capsa_stand_ins as stand_in;

/// A backend under test, and how its VMs are built.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The name of the subject.
    pub name: &'static str,
    /// The name of the backend.
    pub backend: &'static str,
    /// What may differ from other backends.
    pub traits: BackendTraits,
    /// Whether it can boot the nano guest.
    pub runs_nano: bool,
    /// Whether it can boot Linux on this host, or why not.
    pub runs_linux: Result<(), String>,
    build: fn(LinuxVmBuilder) -> LinuxVmBuilder,
}

/// Behaviour that may differ between backends.
#[derive(Debug, Clone, Copy)]
pub struct BackendTraits {
    /// The memory of the nano guest in MiB.
    pub nano_memory_mb: u32,
    /// The accelerator of the nano guest, which needs no hardware. On a KVM without hardware its boot
    /// takes seconds.
    pub nano_accelerator: Accelerator,
    /// Parts of the error when the kernel is invalid.
    pub bad_kernel: &'static [&'static str],
    /// The stop report after another process has sent SIGTERM to the hypervisor.
    pub sigterm: SigtermResult,
    /// Whether helper processes serve shares, and not the hypervisor.
    pub share_helpers: bool,
    /// Whether the hypervisor quits within the limit of a stop when it is asked to. vfkit
    /// waits five seconds for its guest.
    pub quits_in_time: bool,
    /// Whether a path may contain a comma.
    pub commas: bool,
    /// The prefix of the lines that the hypervisor itself writes to the guest's console, if any.
    pub vmm_line_prefix: Option<&'static str>,
}

impl BackendTraits {
    /// Console output without the lines of the hypervisor.
    pub fn guest_output(&self, output: &str) -> String {
        let Some(mark) = self.vmm_line_prefix else { return output.to_owned() };
        let mut own = String::new();
        let mut rest = output;
        // Such a line may begin in the middle of a line of the guest.
        while let Some((before, line)) = rest.split_once(mark) {
            own += before;
            rest = line.split_once('\n').map_or("", |(_, behind)| behind);
        }
        own + rest
    }
}

/// The stop report after SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigtermResult {
    /// The hypervisor reports that it quits: `HypervisorLost`.
    Lost,
    /// The hypervisor reports the same as after a power-off of the guest.
    PowerOff,
}

const QEMU: BackendTraits = BackendTraits {
    nano_memory_mb: 32,
    nano_accelerator: Accelerator::Emulation,
    bad_kernel: &["qemu exited with status 1", "kernel"],
    sigterm: SigtermResult::Lost,
    share_helpers: true,
    quits_in_time: true,
    commas: true,
    vmm_line_prefix: None,
};

const CLOUD_HYPERVISOR: BackendTraits = BackendTraits {
    nano_memory_mb: 64,
    nano_accelerator: Accelerator::Kvm,
    // The failed operation, then the chain of causes.
    bad_kernel: &["boot the guest", ": "],
    sigterm: SigtermResult::PowerOff,
    ..QEMU
};

const VFKIT: BackendTraits = BackendTraits {
    nano_memory_mb: 64,
    nano_accelerator: Accelerator::Auto,
    bad_kernel: &["vfkit exited with status 1", "The virtual machine failed to start"],
    // vfkit presses the power button.
    sigterm: SigtermResult::PowerOff,
    share_helpers: false,
    quits_in_time: false,
    commas: false,
    vmm_line_prefix: Some("[GIN] "),
};

const CLH: &str = "cloud-hypervisor";
const CHV_STAND_IN: &str = "cloud-hypervisor-stand-in";
const VFKIT_STAND_IN: &str = "vfkit-stand-in";

/// The helper programs: leaf, subjects, program, and the environment variable with its path.
const HELPERS: &[(&str, &[&str], &str, &str)] = &[
    ("virtio_fs", &["qemu", CLH, CHV_STAND_IN], "virtiofsd", "CAPSA_VIRTIOFSD"),
    ("vsock", &["qemu", CHV_STAND_IN], "vhost-device-vsock", "CAPSA_VHOST_DEVICE_VSOCK"),
    // The stand-in searches for these programs itself, without an environment variable.
    ("virtio_fs", &[VFKIT_STAND_IN], "virtiofsd", ""),
    ("vsock", &[VFKIT_STAND_IN], "vhost-device-vsock", ""),
];

/// Creates a subject.
pub type Find = fn() -> Result<Subject, String>;

/// Every subject.
pub const SUBJECTS: &[(&str, Find)] = &[
    ("qemu", Subject::qemu),
    (CLH, Subject::cloud_hypervisor),
    (CHV_STAND_IN, Subject::cloud_hypervisor_stand_in),
    ("vfkit", Subject::vfkit),
    (VFKIT_STAND_IN, Subject::vfkit_stand_in),
];

impl Subject {
    /// QEMU: the nano guest in emulation, Linux with the best accelerator of the host.
    ///
    /// # Errors
    ///
    /// Why this host cannot run it.
    pub fn qemu() -> Result<Self, String> {
        let program = format!("qemu-system-{}", std::env::consts::ARCH);
        installed(&program, "CAPSA_QEMU")?;
        Ok(Self {
            name: "qemu",
            backend: "qemu",
            traits: QEMU,
            runs_nano: cfg!(target_arch = "x86_64"),
            runs_linux: Ok(()),
            build: |builder| builder,
        })
    }

    /// The real cloud-hypervisor: the nano guest, and Linux if KVM has hardware support.
    ///
    /// # Errors
    ///
    /// Why this host cannot run it.
    pub fn cloud_hypervisor() -> Result<Self, String> {
        installed("cloud-hypervisor", "CAPSA_CLOUD_HYPERVISOR")?;
        let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        kvm.map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
        Ok(Self {
            name: CLH,
            backend: CLH,
            traits: CLOUD_HYPERVISOR,
            runs_nano: cfg!(target_arch = "x86_64"),
            runs_linux: match host::kvm_has_hardware() {
                true => Ok(()),
                false => Err("KVM has no hardware support on this host, and Linux needs it".into()),
            },
            build: |builder| builder.accelerator(Accelerator::Kvm),
        })
    }

    /// The stand-in for cloud-hypervisor, whose guests QEMU emulates.
    ///
    /// # Errors
    ///
    /// Why this host cannot run it.
    pub fn cloud_hypervisor_stand_in() -> Result<Self, String> {
        let qemu = Self::qemu()?;
        Ok(Self {
            name: CHV_STAND_IN,
            backend: CLH,
            traits: BackendTraits { nano_accelerator: Accelerator::Auto, ..CLOUD_HYPERVISOR },
            build: |builder| {
                builder.program("cloud-hypervisor", stand_in::CLOUD_HYPERVISOR).trust_backend()
            },
            ..qemu
        })
    }

    /// The real vfkit, with Linux guests: it cannot boot the nano guest.
    ///
    /// # Errors
    ///
    /// Why this host cannot run it.
    pub fn vfkit() -> Result<Self, String> {
        let report = backends().iter().find(|report| report.name == "vfkit");
        let report = report.expect("the backend is listed");
        if let Some(reason) = report.availability.blockers.first() {
            return Err(reason.what.clone());
        }
        Ok(Self {
            name: "vfkit",
            backend: "vfkit",
            traits: VFKIT,
            runs_nano: false,
            runs_linux: Ok(()),
            build: |builder| builder,
        })
    }

    /// The stand-in for vfkit, whose guests QEMU emulates.
    ///
    /// # Errors
    ///
    /// Why this host cannot run it.
    pub fn vfkit_stand_in() -> Result<Self, String> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err("the stand-in runs only on Linux for x86-64".into());
        }
        Ok(Self {
            name: VFKIT_STAND_IN,
            backend: "vfkit",
            traits: VFKIT,
            build: |builder| builder.program("vfkit", stand_in::VFKIT).trust_backend(),
            ..Self::qemu()?
        })
    }

    /// The subject of this name.
    ///
    /// # Errors
    ///
    /// Why this host cannot run it, or that the name is unknown.
    pub fn named(name: &str) -> Result<Self, String> {
        match SUBJECTS.iter().find(|(known, _)| *known == name) {
            Some((_, find)) => find(),
            None => {
                let names: Vec<_> = SUBJECTS.iter().map(|(name, _)| *name).collect();
                Err(format!("unknown subject {name:?}: expected one of {}", names.join(", ")))
            }
        }
    }

    /// The same subject, with Linux in place of the nano guest.
    #[must_use]
    pub fn with_linux_only(self) -> Self {
        Self { runs_nano: false, ..self }
    }

    /// Selects this backend in a builder.
    pub fn on_backend(&self, builder: LinuxVmBuilder) -> LinuxVmBuilder {
        (self.build)(builder.backend(self.backend))
    }

    /// The boot configuration of a kernel. If the backend requires an initrd, writes one to `dir`.
    ///
    /// # Panics
    ///
    /// When the initrd cannot be written.
    pub fn boot_config(&self, kernel: PathBuf, dir: &Path) -> LinuxBootConfig {
        let config = LinuxBootConfig::new(kernel);
        if self.supports(capabilities::WITHOUT_INITRD) {
            return config;
        }
        let initrd = dir.join("initrd");
        std::fs::write(&initrd, "empty").expect("an initrd can be written");
        config.initrd(initrd)
    }

    /// The capabilities of the backend.
    ///
    /// # Panics
    ///
    /// When the backend is unknown.
    pub fn capabilities(&self) -> &'static BackendCapabilities {
        let report = backends().iter().find(|report| report.name == self.backend);
        &report.expect("every subject's backend is listed").capabilities
    }

    /// Whether the backend supports this leaf of the capability table.
    pub fn supports(&self, leaf: &str) -> bool {
        capabilities::leaves(self.capabilities()).get(leaf).is_some_and(|claimed| *claimed)
    }

    /// Why this host cannot test a supported leaf: a helper program is not installed or too old. A
    /// program that is installed and not found by the backend is an error of the backend.
    pub fn missing_program(&self, leaf: &str) -> Option<String> {
        if leaf == "vsock" && !cfg!(target_os = "linux") {
            return Some(
                "the test program of the guest runs only on Linux, and is built for this host"
                    .into(),
            );
        }
        let (_, _, program, variable) = HELPERS
            .iter()
            .find(|(helped, subjects, ..)| *helped == leaf && subjects.contains(&self.name))?;
        if let Err(why) = installed(program, variable) {
            return Some(why);
        }
        let error = capabilities::request(leaf, self).err()?;
        let unsuitable = error.violations().iter().find(|violation| {
            violation.reason.contains(program) && !violation.reason.contains("not found")
        })?;
        Some(unsuitable.to_string())
    }
}

/// The reports of all backends. Created once, because that runs programs.
pub fn backends() -> &'static [BackendReport] {
    static BACKENDS: OnceLock<Vec<BackendReport>> = OnceLock::new();
    BACKENDS.get_or_init(capsa::backend::backends)
}

/// Checks that a program exists at the path in `variable`, or is installed.
fn installed(program: &str, variable: &str) -> Result<(), String> {
    match std::env::var_os(variable) {
        Some(path) if Path::new(&path).is_file() => Ok(()),
        Some(path) => Err(format!("{variable}: {} is not a file", path.display())),
        None if host::find_program(program).is_some() => Ok(()),
        None => Err(format!("{program} is not installed; {variable} may name it")),
    }
}
