//! What to install, given what was found: no program is run here and no file read.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Archive, Need};

/// Systems whose package manager we can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Debian, Ubuntu and what is made from them.
    Debian,
    /// Fedora and its like.
    Fedora,
    /// Arch Linux and its like.
    Arch,
    /// macOS, with Homebrew.
    MacOs,
    /// Anything else.
    Other,
}

impl System {
    /// The system that `/etc/os-release` describes.
    pub fn of_os_release(text: &str) -> Self {
        let ids: Vec<_> = ["ID", "ID_LIKE"]
            .iter()
            .filter_map(|key| os_release(text, key))
            .flat_map(str::split_whitespace)
            .collect();
        let is = |names: &[&str]| ids.iter().any(|id| names.contains(id));
        if is(&["debian", "ubuntu"]) {
            Self::Debian
        } else if is(&["fedora", "rhel"]) {
            Self::Fedora
        } else if is(&["arch"]) {
            Self::Arch
        } else {
            Self::Other
        }
    }
}

/// What the plan depends on.
#[derive(Clone, Debug)]
pub struct Found {
    /// The system.
    pub system: System,
    /// Whether we may install packages.
    pub root: bool,
    /// Whether the distribution has a virtiofsd that is new enough.
    pub packaged_virtiofsd: bool,
    /// Whether the distribution has a passt that speaks vhost-user.
    pub packaged_passt: bool,
    /// What is not there.
    pub missing: Vec<Need>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Install these packages with apt-get.
    Apt(&'static [&'static str]),
    /// Run Cargo with these arguments.
    Cargo(&'static [&'static str]),
    /// Build passt from another release's source.
    BuildPasst,
}

impl Step {
    fn packages(&self) -> &'static [&'static str] {
        match self {
            Self::Apt(packages) => packages,
            Self::Cargo(_) | Self::BuildPasst => &[],
        }
    }
}

/// All there is to do, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Plans to meet what is missing.
    ///
    /// # Errors
    /// Where we are not root or the system is not Debian-like: the text to show instead.
    pub fn new(found: &Found) -> Result<Self, String> {
        if found.missing.is_empty() {
            return Ok(Self::default());
        }
        if found.system != System::Debian || !found.root {
            return Err(by_hand(found));
        }
        Ok(Self { steps: debian_steps(found) })
    }
}

/// One installation a need, so that backports, where one needs them, are not used for the rest.
fn debian_steps(found: &Found) -> Vec<Step> {
    let mut steps = Vec::new();
    for need in &found.missing {
        match need {
            // Both by name, so that apt takes them from the same place.
            Need::Qemu if cfg!(target_arch = "aarch64") => {
                steps.push(Step::Apt(&["qemu-system-arm", "qemu-utils"]));
            }
            Need::Qemu => steps.push(Step::Apt(&["qemu-system-x86", "qemu-utils"])),
            Need::GuestTools => steps.push(Step::Apt(&["e2fsprogs", "qemu-utils"])),
            Need::DebianTools => steps.push(Step::Apt(&["mmdebstrap"])),
            Need::Virtiofsd if found.packaged_virtiofsd => steps.push(Step::Apt(&["virtiofsd"])),
            Need::Virtiofsd => {
                steps.push(Step::Apt(&["libcap-ng-dev", "libseccomp-dev"]));
                steps.push(Step::Cargo(&["install", "virtiofsd", "--locked"]));
            }
            Need::Passt if found.packaged_passt => steps.push(Step::Apt(&["passt"])),
            Need::Passt => {
                steps.push(Step::Apt(&["gcc", "libc6-dev", "make", "xz-utils"]));
                steps.push(Step::BuildPasst);
            }
            Need::VhostDeviceVsock => steps.push(Step::Cargo(VHOST_DEVICE_VSOCK)),
            Need::Shells => steps.push(Step::Apt(&["bash", "zsh", "fish"])),
        }
    }
    steps
}

/// In no release of a distribution yet. Pinned: its command line changes between versions.
const VHOST_DEVICE_VSOCK: &[&str] =
    &["install", "vhost-device-vsock", "--version", "0.3.0", "--locked"];

/// What a person does where we may not: into the home directory, which is in many a `PATH`.
const BUILD_PASST: &str = "git clone https://passt.top/passt && make -C passt && \
                           make -C passt install prefix=$HOME/.local";

fn apt_get(packages: &[&str]) -> String {
    format!("sudo apt-get install --no-install-recommends {}", packages.join(" "))
}

/// What to tell a person whose machine we leave alone.
fn by_hand(found: &Found) -> String {
    let packages = |of: fn(Need) -> &'static [&'static str]| {
        let mut all: Vec<_> = found.missing.iter().flat_map(|need| of(*need)).copied().collect();
        all.sort_unstable();
        all.dedup();
        all.join(" ")
    };
    let spelled = |step: &Step| match step {
        Step::Apt(packages) => apt_get(packages),
        Step::Cargo(arguments) => format!("cargo {}", arguments.join(" ")),
        Step::BuildPasst => BUILD_PASST.to_owned(),
    };
    // Fedora and Arch call these alike.
    let packaged = |install: &str| {
        let packages = packages(|need| match need {
            Need::Qemu => &["qemu-img", "qemu-system-x86"],
            Need::GuestTools => &["e2fsprogs", "qemu-img"],
            Need::DebianTools => &["mmdebstrap"],
            Need::Virtiofsd => &["virtiofsd"],
            Need::Passt => &["passt"],
            Need::VhostDeviceVsock => &[],
            Need::Shells => &["bash", "fish", "zsh"],
        });
        let mut commands = Vec::new();
        if !packages.is_empty() {
            commands.push(format!("{install} {packages}"));
        }
        if found.missing.contains(&Need::VhostDeviceVsock) {
            commands.push(spelled(&Step::Cargo(VHOST_DEVICE_VSOCK)));
        }
        commands
    };
    let commands = match found.system {
        System::Debian => {
            let (apt, rest): (Vec<_>, Vec<_>) =
                debian_steps(found).into_iter().partition(|step| matches!(step, Step::Apt(_)));
            // A person installs once; `debian_steps` does not, for its own reason.
            let together = apt.iter().flat_map(Step::packages).copied().collect::<BTreeSet<_>>();
            let together: Vec<_> = together.into_iter().collect();
            let together = (!together.is_empty()).then(|| apt_get(&together));
            together.into_iter().chain(rest.iter().map(spelled)).collect()
        }
        System::Fedora => packaged("sudo dnf install"),
        System::Arch => packaged("sudo pacman -S --needed"),
        // Guests are made on Linux; there is no virtiofsd here, and vfkit needs none.
        System::MacOs => {
            vec!["brew install qemu".into(), "brew tap cfergeau/crc && brew install vfkit".into()]
        }
        System::Other => {
            let programs = packages(Need::programs);
            return format!(
                "these programs are missing, and this system's package manager is not known: \
                 {programs}"
            );
        }
    };
    let why = if found.system == System::Debian { "we are not root" } else { "not Debian-like" };
    let lines: String = commands.iter().map(|command| format!("\n  {command}")).collect();
    format!(
        "something is missing, and not installed, as {why}; run this, then the same again:{lines}"
    )
}

/// What in the output of `apt-get install -s` must not happen, if anything does.
pub fn harm_in(simulation: &str) -> Option<String> {
    let removed: Vec<_> = simulation
        .lines()
        .filter_map(|line| line.strip_prefix("Remv ")?.split_whitespace().next())
        .collect();
    if !removed.is_empty() {
        return Some(format!("removes {}", removed.join(" ")));
    }
    let mut lines = simulation.lines();
    lines.find(|line| line.starts_with("The following packages will be DOWNGRADED"))?;
    let downgraded: Vec<_> =
        lines.take_while(|line| line.starts_with(' ')).map(str::trim).collect();
    Some(format!("downgrades {}", downgraded.join(" ")))
}

/// Whether the output of `virtiofsd --version` is of one that is new enough. The one in C that
/// came with QEMU until 7.2 says `virtiofsd version 7.2…` and never is.
pub fn virtiofsd_suffices(version: &str) -> bool {
    version.strip_prefix("virtiofsd ").is_some_and(is_1_11)
}

/// Whether the output of `apt-cache policy virtiofsd` offers one that is new enough.
pub fn candidate_suffices(policy: &str) -> bool {
    let mut lines = policy.lines();
    lines.find_map(|line| line.trim().strip_prefix("Candidate: ")).is_some_and(is_1_11)
}

/// Whether what `passt --help` says is of one that speaks vhost-user.
pub fn passt_suffices(help: &[u8]) -> bool {
    String::from_utf8_lossy(help).contains("--vhost-user")
}

/// Whether the output of `apt-cache policy passt` offers one that speaks vhost-user: of November
/// 2024 or later, by the date that Debian has in its version.
pub fn passt_candidate_suffices(policy: &str) -> bool {
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    let date = candidate.and_then(|version| version.split_once("~git"));
    let date = date.map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
    date.flatten().is_some_and(|date| date.len() == 8 && date >= "20241127")
}

fn is_1_11(version: &str) -> bool {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (1, 11),
        _ => false,
    }
}

/// The release's archive among `REPO_URI RELEASE COMPONENT` lines of `apt-get indextargets`.
pub fn main_archive(targets: &str, os_release_text: &str) -> Option<Archive> {
    let codename = os_release(os_release_text, "VERSION_CODENAME")?;
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (uri, release, component) = (words.next()?, words.next()?, words.next()?);
        (release == codename && component == "main")
            .then(|| Archive { uri: uri.to_owned(), codename: codename.to_owned() })
    })
}

/// A source list of one line for the backports of the archive's release.
pub fn backports_source(archive: &Archive, exists: impl Fn(&Path) -> bool) -> String {
    source_line("deb", &archive.uri, &format!("{}-backports", archive.codename), exists)
}

/// A source list of one line for the main component of `suite`; `kind` is `deb` or `deb-src`.
pub fn source_line(kind: &str, uri: &str, suite: &str, exists: impl Fn(&Path) -> bool) -> String {
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let signed =
        if exists(Path::new(keyring)) { format!("[signed-by={keyring}] ") } else { String::new() };
    format!("{kind} {signed}{uri} {suite} main\n")
}

/// A value of `/etc/os-release`, without its quotes.
fn os_release<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(key)?.strip_prefix('=');
    text.lines().find_map(value).map(|value| value.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(system: System, root: bool, missing: &[Need]) -> Found {
        Found {
            system,
            root,
            packaged_virtiofsd: false,
            packaged_passt: false,
            missing: missing.to_vec(),
        }
    }

    #[test]
    fn nothing_missing_plans_nothing_anywhere() {
        for system in [System::Debian, System::MacOs, System::Other] {
            assert_eq!(Plan::new(&found(system, false, &[])), Ok(Plan::default()));
        }
    }

    #[test]
    fn root_on_debian_builds_virtiofsd_after_its_libraries() {
        let plan = Plan::new(&found(System::Debian, true, &[Need::Virtiofsd])).unwrap();
        let [Step::Apt(libraries), Step::Cargo(cargo)] = &plan.steps[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(*libraries, ["libcap-ng-dev", "libseccomp-dev"]);
        assert_eq!(*cargo, ["install", "virtiofsd", "--locked"]);
    }

    #[test]
    fn packaged_virtiofsd_is_preferred_to_building_one() {
        let mut found = found(System::Debian, true, &[Need::Virtiofsd]);
        found.packaged_virtiofsd = true;
        assert_eq!(Plan::new(&found).unwrap().steps, [Step::Apt(&["virtiofsd"])]);
    }

    #[test]
    fn packaged_passt_is_taken_where_it_is_new_enough() {
        let mut found = found(System::Debian, true, &[Need::Passt]);
        assert_eq!(Plan::new(&found).unwrap().steps.last(), Some(&Step::BuildPasst));
        found.packaged_passt = true;
        assert_eq!(Plan::new(&found).unwrap().steps, [Step::Apt(&["passt"])]);
        for (version, enough) in [
            ("0.0~git20250503.587980c-2", true),
            ("0.0~git20241127.c0fbc7e-1", true),
            ("0.0~git20230309.7c7625d-1", false),
            ("(none)", false),
        ] {
            let policy = format!("passt:\n  Installed: (none)\n  Candidate: {version}\n");
            assert_eq!(passt_candidate_suffices(&policy), enough, "{version}");
        }
    }

    #[test]
    fn elsewhere_the_commands_are_named_and_nothing_is_planned() {
        for (system, command) in [
            (
                System::Debian,
                "sudo apt-get install --no-install-recommends bash e2fsprogs fish gcc",
            ),
            (System::Debian, " qemu-utils xz-utils zsh\n  cargo install virtiofsd --locked\n"),
            (System::Debian, "git clone https://passt.top/passt"),
            (System::Fedora, "sudo dnf install bash e2fsprogs fish mmdebstrap passt qemu-img"),
            (System::Fedora, "cargo install vhost-device-vsock --version 0.3.0 --locked"),
            (System::Arch, "sudo pacman -S --needed bash e2fsprogs fish mmdebstrap passt qemu-img"),
            (System::MacOs, "brew tap cfergeau/crc && brew install vfkit"),
            (System::Other, "mkfs.ext4"),
        ] {
            let text = Plan::new(&found(system, false, &Need::ALL)).unwrap_err();
            assert!(text.contains(command), "{text}");
        }
        assert!(Plan::new(&found(System::Fedora, true, &[Need::Qemu])).is_err());
    }

    #[test]
    fn removal_and_downgrade_are_harm() {
        let clean = "Inst qemu-system-x86 (1:10.0.2 Debian:13 [amd64])\nConf qemu-system-x86\n";
        assert_eq!(harm_in(clean), None);
        let removes = "Remv qemu-utils [1:10.0.2+ds-2~bpo12+1]\nInst qemu-system-x86 (1:7.2)\n";
        assert_eq!(harm_in(removes).as_deref(), Some("removes qemu-utils"));
        let downgrades = "The following packages will be DOWNGRADED:\n  qemu-utils\n0 upgraded\n";
        assert_eq!(harm_in(downgrades).as_deref(), Some("downgrades qemu-utils"));
    }

    #[test]
    fn virtiofsd_is_new_enough_from_1_11() {
        for (version, enough) in [
            ("virtiofsd 1.11.0", true),
            ("virtiofsd 1.13.3\n", true),
            ("virtiofsd 2.0.0", true),
            ("virtiofsd 1.8.0", false),
            ("virtiofsd version 7.2.22 (Debian)\nCopyright", false),
            ("", false),
        ] {
            assert_eq!(virtiofsd_suffices(version), enough, "{version}");
        }
        assert!(candidate_suffices("virtiofsd:\n  Installed: (none)\n  Candidate: 1.13.2-1\n"));
        assert!(!candidate_suffices("virtiofsd:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!candidate_suffices(""));
    }

    #[test]
    fn backports_come_from_the_mirror_that_is_configured() {
        let targets = "http://mirror/debian/ bookworm-updates main\n\
                       http://mirror/security/ bookworm-security main\n\
                       http://mirror/debian/ bookworm main\n";
        let archive = main_archive(targets, "ID=debian\nVERSION_CODENAME=bookworm\n").unwrap();
        let source = backports_source(&archive, |_| false);
        assert_eq!(source, "deb http://mirror/debian/ bookworm-backports main\n");
        assert_eq!(main_archive(targets, "VERSION_CODENAME=trixie"), None);
    }

    #[test]
    fn derivatives_are_told_by_what_they_are_like() {
        for (text, system) in [
            ("ID=debian\n", System::Debian),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", System::Debian),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", System::Fedora),
            ("ID=arch\n", System::Arch),
            ("ID=nixos\n", System::Other),
            ("", System::Other),
        ] {
            assert_eq!(System::of_os_release(text), system, "{text}");
        }
    }
}
