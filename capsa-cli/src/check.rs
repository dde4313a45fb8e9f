//! Finds all errors of a configuration at once, for `capsa run` and `capsa config check`.
//!
//! The library validates the VM. This module checks what only the command has: the files that a run
//! writes, the sockets that it listens on, and the password file.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};

use capsa::backend::Violation;
use capsa::network::PolicyRules;
use capsa::vsock::VsockDirection;
use capsa::{CmdlineArg, Error, KernelCmdline, LinuxVmBuilder};
use nix::unistd::{AccessFlags, access};

use crate::config::{self, ConfigFile};
use crate::failure::{CONFIG, CliError};
use crate::files;
use crate::settings::Settings;

const KERNEL_NOT_SET: &str = "required, but not set";

/// One error, and the field that has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    field: String,
    reason: String,
    hint: String,
}

/// Checks a config file as a run of it would. Returns the backend that would run it, or `None` if
/// none is available on this host.
pub(crate) fn file(path: &Path) -> Result<Option<&'static str>, CliError> {
    let ConfigFile { settings, mistakes, is_broken } = config::read(path)?;
    let password = files::password(&settings);
    let unreadable = password.as_ref().and_then(|read| read.as_ref().err());
    let (backend, failure) = whole(path, &settings, mistakes, is_broken, unreadable);
    failure.map_or(Ok(backend), Err)
}

/// Checks a config file with `mistakes`, and the VM that it and the flags describe, all at once. Returns the
/// backend that would run it, and the failure.
pub(crate) fn whole(
    path: &Path,
    settings: &Settings,
    mistakes: Option<CliError>,
    is_broken: bool,
    unreadable_password: Option<&io::Error>,
) -> (Option<&'static str>, Option<CliError>) {
    let builder = settings.builder();
    // A file that is not TOML has no settings to check.
    let (backend, error) = match builder.plan() {
        _ if is_broken => (None, None),
        Ok(plan) => (Some(plan.backend()), None),
        Err(Error::NoBackendAvailable { .. }) => (None, error_of_any_backend(&builder)),
        Err(error) => (None, Some(error)),
    };
    let mut problems = match is_broken {
        true => Vec::new(),
        false => problems(settings, unreadable_password),
    };
    if mistakes.is_some() {
        // The kernel's key may be misspelt.
        problems.retain(|problem| problem.reason != KERNEL_NOT_SET);
    }
    let others = failure(settings, error.as_ref(), problems);
    (backend, CliError::of_file(path, mistakes, others))
}

/// The violations that do not depend on the backend, for a host without one.
fn error_of_any_backend(builder: &LinuxVmBuilder) -> Option<Error> {
    let error = builder.clone().backend("qemu").plan().err()?;
    error.violations().iter().any(|violation| violation.backend.is_none()).then_some(error)
}

/// A failure with the library's error and these problems; `None` if there is neither.
pub(crate) fn failure(
    settings: &Settings,
    error: Option<&Error>,
    problems: Vec<Problem>,
) -> Option<CliError> {
    let name = |field: &str| (settings.name_of(field), settings.span_of(field));
    // These are among the problems, so the library's violations of the same fields are left out.
    let is_reported = |field: &str| match field {
        "kernel" => settings.kernel.is_none(),
        "cmdline" => problems.iter().any(|problem| problem.field.starts_with("cmdline[")),
        _ => false,
    };
    let failure = match error {
        Some(error) => CliError::from_build(error, name, is_reported),
        None if problems.is_empty() => return None,
        None => CliError::new(CONFIG, "cannot run this VM: invalid configuration"),
    };
    Some(problems.into_iter().fold(failure, |failure, Problem { field, reason, hint }| {
        let (name, span) = name(&field);
        failure.problem_in(span, format!("{name}: {reason}"), hint)
    }))
}

/// The problems that the library does not check, and why the password file could not be read.
pub(crate) fn problems(
    settings: &Settings,
    unreadable_password: Option<&io::Error>,
) -> Vec<Problem> {
    let mut checker = Checker { settings, problems: Vec::new() };
    if settings.kernel.is_none() {
        let hint = "add --kernel FILE, or [boot] kernel = \"FILE\" in the config file";
        checker.add("kernel", KERNEL_NOT_SET, hint);
    }
    checker.arguments();
    checker.written_files();
    checker.sockets();
    checker.unused_rules();
    if let Some(error) = unreadable_password {
        checker.password(error);
    }
    checker.problems
}

/// The rules of a network's policy, without the rest of the VM; `None` if the network has no policy.
pub(crate) fn policy_rules(settings: &Settings) -> Result<Option<PolicyRules>, Vec<Problem>> {
    let mut checker = Checker { settings, problems: Vec::new() };
    let rules = settings.network.policy_rules().unwrap_or_else(|violations| {
        for Violation { field, reason, remedy, .. } in violations {
            checker.add(&field, reason, remedy);
        }
        None
    });
    checker.unused_rules();
    if checker.problems.is_empty() { Ok(rules) } else { Err(checker.problems) }
}

struct Checker<'s> {
    settings: &'s Settings,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn add(&mut self, field: &str, reason: impl Into<String>, hint: impl Into<String>) {
        let (reason, hint) = (reason.into(), hint.into());
        self.problems.push(Problem { field: field.into(), reason, hint });
    }

    fn arguments(&mut self) {
        for (n, text) in self.settings.cmdline.iter().enumerate() {
            let mut cmdline = KernelCmdline::new();
            cmdline.arg(CmdlineArg::from(text.as_str()));
            if let Err(error) = cmdline.check() {
                let hint = "write one argument per entry, e.g. quiet or key=value; a value may contain spaces";
                self.add(&format!("cmdline[{n}]"), format!("{text:?}: {error}"), hint);
            }
        }
    }

    /// No other setting may use a file that is written.
    fn written_files(&mut self) {
        let settings = self.settings;
        let mut used: Vec<(String, &Path)> = Vec::new();
        let once = [
            ("the kernel", settings.kernel.as_deref()),
            ("the initrd", settings.initrd.as_deref()),
            ("the password file", settings.password_file.as_deref()),
            ("the config file", settings.spans.file()),
        ];
        used.extend(once.into_iter().filter_map(|(what, path)| Some((what.into(), path?))));
        let disks = settings.disks.iter().enumerate();
        used.extend(
            disks.map(|(n, (_, disk))| (format!("disk {}", n + 1), disk.image.path.as_path())),
        );
        let written = [("log", &settings.log), ("record", &settings.record)];
        for (field, path) in written {
            let Some(path) = path else { continue };
            let shown = path.display();
            if let Some((what, _)) = used.iter().find(|(_, other)| is_same_file(path, other)) {
                let reason = format!("{shown} is the same file as {what}");
                self.add(field, reason, "use another path: this file would be overwritten");
            } else if path.is_dir() {
                self.add(field, format!("{shown} is a directory"), "give the path of a file");
            } else if let Some(parent) = parent_of(path).filter(|parent| !parent.exists()) {
                let reason = format!("cannot create {shown}: its directory does not exist");
                self.add(field, reason, format!("create it: mkdir -p {}", parent.display()));
            } else if !may_write(path) {
                let reason = format!("no permission to write {shown}");
                self.add(field, reason, "use a file that this user can write or create");
            }
            used.push((format!("the {field}"), path));
        }
        // The library checks their directories.
        let network = &settings.network;
        for (field, path) in [("network_pcap", &network.pcap), ("network_log", &network.log)] {
            if let Some(path) = path
                && let Some((what, _)) = used.iter().find(|(_, other)| is_same_file(path, other))
            {
                let reason = format!("{} is the same file as {what}", path.display());
                self.add(field, reason, "use another path: this file would be overwritten");
            }
        }
    }

    fn unused_rules(&mut self) {
        for field in self.settings.network.unused_rules() {
            let reason = "the network has no policy, so this rule or limit would have no effect";
            let hint = "use --network policy, or mode = \"policy\" in the config file, which refuses what \
                        no rule allows; or remove it";
            self.add(field, reason, hint);
        }
    }

    fn sockets(&mut self) {
        let relays = &self.settings.vsock;
        for (n, relay) in relays.iter().enumerate() {
            let (port, socket, shown) = (relay.port, &relay.socket, relay.socket.display());
            let field = format!("vsock_ports[{n}]");
            let listens = relay.direction == VsockDirection::ToGuest;
            let is_ours = |other: &crate::values::VsockRelay| {
                other.direction == VsockDirection::ToGuest && is_same_file(socket, &other.socket)
            };
            if SocketAddr::from_pathname(socket).is_err() {
                let bytes = socket.as_os_str().len();
                let reason =
                    format!("port {port}: the path has {bytes} bytes, too long for a socket");
                self.add(&field, reason, "use a shorter path, e.g. /tmp/agent.sock");
            } else if listens && relays[..n].iter().any(is_ours) {
                let reason = format!("port {port}: {shown} is used for another port");
                self.add(&field, reason, "use one socket per port");
            } else if listens && UnixStream::connect(socket).is_ok() {
                let reason = format!("port {port}: another process listens on {shown}");
                self.add(&field, reason, "stop that process, or use another path");
            } else if listens && fs::symlink_metadata(socket).is_ok_and(|f| !is_socket(&f)) {
                let reason = format!("port {port}: {shown} exists and is not a socket");
                self.add(&field, reason, "use a path that does not exist yet");
            } else if let Some(parent) = parent_of(socket).filter(|parent| !parent.exists()) {
                let reason = format!("port {port}: the directory of {shown} does not exist");
                self.add(&field, reason, format!("create it: mkdir -p {}", parent.display()));
            }
        }
    }

    fn password(&mut self, error: &io::Error) {
        let Some(path) = &self.settings.password_file else { return };
        let reason = format!("cannot read the password from {}: {error}", path.display());
        let hint = "use a file whose first line is the password; omit the password file for a user \
                    without a password";
        self.add("password_file", reason, hint);
    }
}

/// Whether a file can be written, or created if it does not exist.
fn may_write(path: &Path) -> bool {
    let at = if path.exists() { path } else { parent_of(path).unwrap_or(Path::new(".")) };
    access(at, AccessFlags::W_OK).is_ok()
}

fn is_socket(found: &fs::Metadata) -> bool {
    found.file_type().is_socket()
}

/// The parent directory; `None` for a path in the working directory.
fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty())
}

/// Whether two paths lead to the same file through any links, or would once it is created. Character
/// devices and pipes do not count, because they hold no data.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => {
            let has_data =
                |found: &fs::Metadata| found.is_file() || found.file_type().is_block_device();
            has_data(&one) && (one.dev(), one.ino()) == (other.dev(), other.ino())
        }
        (Err(_), Err(_)) => match (creation_path(one), creation_path(other)) {
            (Some(one), Some(other)) => one == other,
            _ => false,
        },
        _ => false,
    }
}

/// Where a file that does not exist would be created. Follows up to 8 dangling links.
fn creation_path(path: &Path) -> Option<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..8 {
        let parent = parent_of(&path).unwrap_or(Path::new("."));
        let target = parent.canonicalize().ok()?.join(path.file_name()?);
        match fs::read_link(&target) {
            Ok(next) => path = target.parent()?.join(next),
            Err(_) => return Some(target),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use capsa::DiskImage;

    use crate::values::{self, VsockRelay};

    fn fields(settings: &Settings) -> Vec<(String, String)> {
        let problems = problems(settings, None).into_iter();
        problems.map(|problem| (problem.field, problem.reason)).collect()
    }

    #[test]
    fn written_files_must_differ_from_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["kernel", "disk", "secret"] {
            fs::write(at(name), "x").unwrap();
        }
        symlink(at("kernel"), at("soft")).unwrap();
        symlink("new", at("dangling")).unwrap();
        fs::hard_link(at("disk"), at("hard")).unwrap();
        let settings = |log: &str, record: &str| Settings {
            kernel: Some(at("kernel")),
            disks: vec![(None, DiskImage::new(at("disk")).into())],
            password_file: Some(at("secret")),
            log: Some(dir.path().join(log)),
            record: Some(dir.path().join(record)),
            ..Settings::default()
        };
        for (log, record, want) in [
            ("soft", "b", Some(("log", "same file as the kernel"))),
            ("a", "hard", Some(("record", "same file as disk 1"))),
            ("secret", "b", Some(("log", "the password file"))),
            ("new", "new", Some(("record", "the log"))),
            ("new", "dangling", Some(("record", "the log"))),
            ("a", "none/b", Some(("record", "its directory does not exist"))),
            (".", "b", Some(("log", "is a directory"))),
            ("/dev/null", "/dev/null", None),
            ("a", "b", None),
        ] {
            let found = fields(&settings(log, record));
            match want {
                None => assert_eq!(found, [], "{log} {record}"),
                Some((field, words)) => {
                    assert_eq!(found.len(), 1, "{log} {record}: {found:?}");
                    assert!(found[0].0 == field && found[0].1.contains(words), "{found:?}");
                }
            }
        }
    }

    #[test]
    fn unusable_vsock_sockets_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "x").unwrap();
        let _used = UnixListener::bind(at("used")).unwrap();
        drop(UnixListener::bind(at("stale")).unwrap());
        let relay = |text: &str, name: &str| VsockRelay {
            socket: at(name),
            ..values::vsock(&format!("{text}:x")).unwrap()
        };
        let long = "s".repeat(120);
        for (relays, want) in [
            (vec![relay("listen:1", "new"), relay("listen:2", "new")], Some("another port")),
            (vec![relay("listen:1", "used")], Some("another process listens")),
            (vec![relay("listen:1", "file")], Some("not a socket")),
            (vec![relay("listen:1", "none/new")], Some("the directory of")),
            (vec![relay("connect:1", &long)], Some("too long")),
            (vec![relay("listen:1", "stale"), relay("connect:1", "used")], None),
        ] {
            let settings =
                Settings { kernel: Some("/k".into()), vsock: relays, ..Settings::default() };
            let found = fields(&settings);
            assert_eq!(found.len(), usize::from(want.is_some()), "{found:?}");
            assert!(
                found.iter().zip(want).all(|(found, want)| found.1.contains(want)),
                "{found:?}"
            );
        }
    }

    #[test]
    fn cmdline_entry_with_two_arguments_is_rejected() {
        let cmdline = ["quiet", "a b", "x=a b"].map(String::from).to_vec();
        let settings = Settings { kernel: Some("/k".into()), cmdline, ..Settings::default() };
        let found = fields(&settings);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0 == "cmdline[1]" && found[0].1.starts_with("\"a b\": "), "{found:?}");
    }
}
