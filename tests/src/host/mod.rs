//! What the tests need of the machine they run on: finds what is missing and, where this is a
//! Debian-like system and we are root, installs it.
//!
//! Everywhere else nothing is touched, and the error says which commands would do it. What to
//! do is decided in [`plan`], which is pure; this file looks and acts.
//!
//! It never removes or downgrades a package: an installation is simulated first, and one that
//! would is made from the release's backports instead, or refused.

pub mod apt;
pub mod passt;
pub mod plan;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::command::{self, Failed};
use plan::{Found, Plan, Step, System};

/// Something the tests need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// The emulator and `qemu-img`.
    Qemu,
    /// What [`guest::linux`](crate::guest::linux()) uses: `mkfs.ext4`, `qemu-img`.
    GuestTools,
    /// What [`guest::debian`](crate::guest::debian()) uses besides: `mmdebstrap`.
    DebianTools,
    /// The virtio-fs server, 1.11 or later: the first whose `--readonly` can be relied on.
    Virtiofsd,
    /// NAT for hypervisors that have none; one that speaks vhost-user. See [`passt`].
    Passt,
    /// The vsock device for a hypervisor that speaks vhost-user, where the host's kernel has none.
    VhostDeviceVsock,
    /// The shells that the command has completions for.
    Shells,
}

impl Need {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Qemu,
        Self::GuestTools,
        Self::DebianTools,
        Self::Virtiofsd,
        Self::Passt,
        Self::VhostDeviceVsock,
        Self::Shells,
    ];

    /// The programs that make it up.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Qemu if cfg!(target_arch = "aarch64") => &["qemu-system-aarch64", "qemu-img"],
            Self::Qemu => &["qemu-system-x86_64", "qemu-img"],
            Self::GuestTools => &["mkfs.ext4", "qemu-img"],
            Self::DebianTools => &["mmdebstrap"],
            Self::Virtiofsd => &["virtiofsd"],
            Self::Passt => &["passt"],
            Self::VhostDeviceVsock => &["vhost-device-vsock"],
            Self::Shells => &["bash", "zsh", "fish"],
        }
    }

    fn is_met(self) -> bool {
        match self {
            Self::Virtiofsd => find_program("virtiofsd").is_some_and(|path| {
                command::text(Command::new(path).arg("--version"))
                    .is_ok_and(|text| plan::virtiofsd_suffices(&text))
            }),
            Self::Passt => passt::find().is_some(),
            need => need.programs().iter().all(|program| find_program(program).is_some()),
        }
    }
}

/// What is needed is not there, and was not put there.
#[derive(Debug, thiserror::Error)]
pub enum Unmet {
    /// We may not, or do not know how to, install here. The text says what to run.
    #[error("{0}")]
    ByHand(String),
    /// A step of the installation failed.
    #[error("cannot install what the tests need")]
    Step(#[from] Failed),
    /// A source list for it could not be written.
    #[error("cannot write a temporary apt source list")]
    Sources(#[source] io::Error),
    /// Packages of another suite are wanted, and apt does not say where the release comes from.
    #[error("apt has no list of this machine's release; try `apt-get update`")]
    NoArchive,
    /// apt would remove or downgrade something, from backports too.
    #[error("installing {packages} would change other packages: {harm}")]
    Harmful {
        /// What was to be installed.
        packages: String,
        /// What apt said it would do.
        harm: String,
    },
    /// Files on the way to a program cannot be written.
    #[error("cannot write what is built")]
    Files(#[source] io::Error),
    /// Every step succeeded, and a program is still missing.
    #[error("{program} is still not there after the installation")]
    StillMissing {
        /// Which.
        program: &'static str,
    },
}

/// Makes sure that all of `needs` are met.
///
/// # Errors
/// When something is missing and could not be installed. Where that is for us not being root or
/// for the kind of system, nothing has been done, and the text lists the commands that would.
pub fn ensure(needs: &[Need]) -> Result<(), Unmet> {
    let missing: Vec<_> = needs.iter().copied().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let system = system();
    let root = is_root();
    if matches!(system, System::Debian) && root {
        // A third party's source that does not answer must not stop us; what is missing
        // because of it, the installation will say.
        if let Err(error) = command::output(apt_get().arg("update")) {
            tracing::warn!(%error, "package lists may be old");
        }
    }
    let found = Found {
        system,
        root,
        packaged_virtiofsd: plan::candidate_suffices(&policy("virtiofsd")),
        packaged_passt: plan::passt_candidate_suffices(&policy("passt")),
        missing,
    };
    for step in Plan::new(&found).map_err(Unmet::ByHand)?.steps {
        match step {
            Step::Apt(packages) => install(packages)?,
            Step::Cargo(arguments) => {
                command::output(Command::new(cargo()).args(arguments))?;
            }
            Step::BuildPasst => passt::build()?,
        }
    }
    match found.missing.iter().find(|need| !need.is_met()) {
        None => Ok(()),
        Some(need) => Err(Unmet::StillMissing { program: need.programs()[0] }),
    }
}

/// Installs packages without harm to others, from backports where the release itself would do
/// harm. A machine whose qemu-utils came from backports is one: there the release's
/// qemu-system-x86 would remove it.
fn install(packages: &[&'static str]) -> Result<(), Unmet> {
    let attempt = |options: &[OsString]| {
        let mut simulation = apt_get();
        simulation.args(options).args(["install", "-s", "--no-install-recommends"]).args(packages);
        let simulated = command::text(&mut simulation);
        let harm = match &simulated {
            Ok(text) => plan::harm_in(text),
            Err(failed) => Some(failed.to_string()),
        };
        if let Some(harm) = harm {
            return Ok(Some(harm));
        }
        let mut install = apt_get();
        install.args(options).args(["install", "-y", "--no-install-recommends"]).args(packages);
        command::output(&mut install).map(|_| None)
    };
    let Some(harm) = attempt(&[])? else { return Ok(()) };
    let refused = |harm| Unmet::Harmful { packages: packages.join(" "), harm };
    let Some(archive) = main_archive() else { return Err(refused(harm)) };
    tracing::info!(%harm, "installing from backports instead");
    let sources = sources_with_backports(&archive).map_err(Unmet::Sources)?;
    let mut options = vec![
        OsString::from("-o"),
        format!("Dir::Etc::sourceparts={}", sources.path().display()).into(),
        "-o".into(),
        "Dir::Etc::sourcelist=/dev/null".into(),
    ];
    command::output(apt_get().args(&options).arg("update"))?;
    options.extend(["-t".into(), format!("{}-backports", archive.codename).into()]);
    match attempt(&options)? {
        None => Ok(()),
        Some(harm) => Err(refused(harm)),
    }
}

/// A directory with this machine's own source lists and one for the release's backports, so
/// that `/etc/apt` itself is not touched.
fn sources_with_backports(archive: &Archive) -> io::Result<TempDir> {
    let dir = tempfile::tempdir()?;
    let listed = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    for path in listed.map(|entry| entry.path()).chain(["/etc/apt/sources.list".into()]) {
        let kind = path.extension().and_then(|kind| kind.to_str());
        if let (Some("list" | "sources"), Some(name)) = (kind, path.file_name())
            && path.exists()
        {
            fs::copy(&path, dir.path().join(name))?;
        }
    }
    fs::write(dir.path().join("backports.list"), plan::backports_source(archive, Path::exists))?;
    Ok(dir)
}

/// Where apt gets this machine's release from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The mirror.
    pub uri: String,
    /// The release, as `trixie`.
    pub codename: String,
}

/// The archive of this machine's release as apt has it configured; `None` without apt or
/// package lists.
pub fn main_archive() -> Option<Archive> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let listing = command::text(&mut targets).ok()?;
    plan::main_archive(&listing, &fs::read_to_string("/etc/os-release").ok()?)
}

/// Finds a program on the `PATH`, where only root's `PATH` reaches, where distributions hide
/// virtiofsd, or where Cargo installs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/libexec", "/usr/lib"].map(PathBuf::from);
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let directories = std::env::split_paths(&path).chain(more);
    let directories = directories.chain(cargo_home.map(|home| home.join("bin")));
    directories.map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Whether we are root. Asks `id`, since the standard library does not tell.
pub fn is_root() -> bool {
    command::text(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn system() -> System {
    if cfg!(target_os = "macos") {
        return System::MacOs;
    }
    System::of_os_release(&fs::read_to_string("/etc/os-release").unwrap_or_default())
}

/// Whether `/dev/kvm` is more than its interface. Elsewhere than on x86-64 it always is.
pub fn kvm_has_hardware() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    !cfg!(target_arch = "x86_64")
        || cpu.split_whitespace().any(|flag| ["svm", "vmx"].contains(&flag))
}

/// What apt would install of a package; nothing without apt.
fn policy(package: &str) -> String {
    command::text(Command::new("apt-cache").args(["policy", package])).unwrap_or_default()
}

fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.arg("-q").env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    apt
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
