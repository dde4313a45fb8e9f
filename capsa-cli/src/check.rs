//! What is wrong with a machine, all of it in one go: for `capsa run` before it starts one, and for
//! `capsa config check`, which starts none.
//!
//! The library checks the machine. Here is what it does not know of: the files that a run writes, the
//! sockets it listens on, and who logs in.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};

use capsa::{CmdlineArg, Error, KernelCmdline, LinuxVmBuilder, VsockDirection};
use nix::unistd::{AccessFlags, access};

use crate::config::{self, ConfigFile};
use crate::failure::{CONFIG, Failure};
use crate::files;
use crate::settings::Settings;

const NO_KERNEL: &str = "no kernel is named";

/// One thing that is wrong with a field.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    field: String,
    reason: String,
    hint: String,
}

/// Checks a config file as a run of it would, and names the backend that would run it; `None` where
/// none can be used on this host.
pub(crate) fn file(path: &Path) -> Result<Option<&'static str>, Failure> {
    let ConfigFile { settings, mistakes, is_broken } = config::read(path)?;
    let builder = settings.builder();
    // Of a file that is no TOML nobody knows what it was to say.
    let (backend, refused) = match builder.plan() {
        _ if is_broken => (None, None),
        Ok(plan) => (Some(plan.backend), None),
        Err(Error::NoBackendAvailable { .. }) => (None, wrong_everywhere(&builder)),
        Err(error) => (None, Some(error)),
    };
    let mut problems = if is_broken { Vec::new() } else { problems(&settings, true) };
    if mistakes.is_some() {
        // A key that is misspelt is not missing.
        problems.retain(|problem| problem.reason != NO_KERNEL);
    }
    let others = failure(&settings, refused.as_ref(), problems);
    match Failure::of_file(path, mistakes, others) {
        Some(failure) => Err(failure),
        None => Ok(backend),
    }
}

/// What no hypervisor could live with, where there is none to ask.
fn wrong_everywhere(builder: &LinuxVmBuilder) -> Option<Error> {
    let refused = builder.clone().backend("qemu").plan().err()?;
    refused.violations().iter().any(|violation| violation.backend.is_none()).then_some(refused)
}

/// Everything that is wrong with a machine: what the library refuses, and these problems. `None` when
/// nothing is.
pub(crate) fn failure(
    settings: &Settings,
    refused: Option<&Error>,
    problems: Vec<Problem>,
) -> Option<Failure> {
    let name = |field: &str| (settings.name_of(field), settings.span_of(field));
    // A kernel that is not named, and an argument that cannot be one, are among the problems.
    let said = |field: &str| match field {
        "kernel" => settings.kernel.is_none(),
        "cmdline" => problems.iter().any(|problem| problem.field.starts_with("cmdline[")),
        _ => false,
    };
    let failure = match refused {
        Some(error) => Failure::from_build(error, name, said),
        None if problems.is_empty() => return None,
        None => Failure::new(CONFIG, "cannot run this machine: the configuration is invalid"),
    };
    Some(problems.into_iter().fold(failure, |failure, Problem { field, reason, hint }| {
        let (name, span) = name(&field);
        failure.problem_in(span, format!("{name}: {reason}"), hint)
    }))
}

/// What is wrong beside what the library refuses. `logs_in` says that a command is to be run.
pub(crate) fn problems(settings: &Settings, logs_in: bool) -> Vec<Problem> {
    let mut pass = Pass { settings, out: Vec::new() };
    if settings.kernel.is_none() {
        let hint = "add --kernel FILE, or [boot] kernel = \"FILE\" to the config file";
        pass.refuse("kernel", NO_KERNEL, hint);
    }
    pass.arguments();
    pass.written_files();
    pass.sockets();
    if logs_in {
        pass.password();
    }
    pass.out
}

struct Pass<'s> {
    settings: &'s Settings,
    out: Vec<Problem>,
}

impl Pass<'_> {
    fn refuse(&mut self, field: &str, reason: impl Into<String>, hint: impl Into<String>) {
        let (reason, hint) = (reason.into(), hint.into());
        self.out.push(Problem { field: field.into(), reason, hint });
    }

    fn arguments(&mut self) {
        for (n, text) in self.settings.cmdline.iter().enumerate() {
            let mut alone = KernelCmdline::new();
            alone.arg(CmdlineArg::from(text.as_str()));
            if let Err(error) = alone.check() {
                let hint = "write one argument: quiet, or key=value; a value may have blanks";
                self.refuse(&format!("cmdline[{n}]"), format!("{text:?}: {error}"), hint);
            }
        }
    }

    /// `--log` and `--record` begin by emptying their files, so those must be nobody else's.
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
        used.extend(disks.map(|(n, (_, disk))| (format!("disk {}", n + 1), disk.path.as_path())));
        let written = [("log", &settings.log), ("record", &settings.record)];
        for (field, path) in written {
            let Some(path) = path else { continue };
            let shown = path.display();
            if let Some((what, _)) = used.iter().find(|(_, other)| is_same_file(path, other)) {
                let reason = format!("{shown} is the same file as {what}");
                self.refuse(field, reason, "name another file: this one is written over");
            } else if path.is_dir() {
                self.refuse(field, format!("{shown} is a directory"), "name a file in it");
            } else if let Some(folder) = folder_of(path).filter(|folder| !folder.exists()) {
                let reason = format!("{shown} cannot be made: its folder does not exist");
                self.refuse(field, reason, format!("make it: mkdir -p {}", folder.display()));
            } else if !may_write(path) {
                let reason = format!("{shown} cannot be written");
                self.refuse(field, reason, "name a file that this user may write, or make");
            }
            used.push((format!("the {field}"), path));
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
                    format!("port {port}: a path of {bytes} bytes is too long for a socket");
                self.refuse(&field, reason, "name a shorter one, such as /tmp/agent.sock");
            } else if listens && relays[..n].iter().any(is_ours) {
                let reason = format!("port {port}: {shown} is another port's socket");
                self.refuse(&field, reason, "give each port a socket of its own");
            } else if listens && UnixStream::connect(socket).is_ok() {
                let reason = format!("port {port}: somebody listens on {shown} already");
                self.refuse(&field, reason, "end that one, or name another socket");
            } else if listens && fs::symlink_metadata(socket).is_ok_and(|f| !is_socket(&f)) {
                let reason = format!("port {port}: {shown} is there, and no socket");
                self.refuse(&field, reason, "name another path, where a socket can be made");
            } else if let Some(folder) = folder_of(socket).filter(|folder| !folder.exists()) {
                let reason = format!("port {port}: the folder of {shown} does not exist");
                self.refuse(&field, reason, format!("make it: mkdir -p {}", folder.display()));
            }
        }
    }

    fn password(&mut self) {
        let Some(path) = &self.settings.password_file else { return };
        if let Err(error) = files::first_line(path) {
            let reason = format!("cannot read the password from {}: {error}", path.display());
            let hint = "name a file whose first line is the password; leave it away for a user who \
                        has none";
            self.refuse("password_file", reason, hint);
        }
    }
}

/// Whether a file can be written, or made where it is not.
fn may_write(path: &Path) -> bool {
    let at = if path.exists() { path } else { folder_of(path).unwrap_or(Path::new(".")) };
    access(at, AccessFlags::W_OK).is_ok()
}

fn is_socket(found: &fs::Metadata) -> bool {
    found.file_type().is_socket()
}

/// The folder of a file that is to be made. A name alone is made here.
fn folder_of(path: &Path) -> Option<&Path> {
    path.parent().filter(|folder| !folder.as_os_str().is_empty())
}

/// Whether two paths lead to one file, by whatever links, or would if it were made. Devices and pipes
/// hold nothing that could be written over.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => {
            let holds =
                |found: &fs::Metadata| found.is_file() || found.file_type().is_block_device();
            holds(&one) && (one.dev(), one.ino()) == (other.dev(), other.ino())
        }
        (Err(_), Err(_)) => match (to_be_made(one), to_be_made(other)) {
            (Some(one), Some(other)) => one == other,
            _ => false,
        },
        _ => false,
    }
}

/// Where a file that is not there would be: links to nowhere are followed, a few of them.
fn to_be_made(path: &Path) -> Option<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..8 {
        let folder = folder_of(&path).unwrap_or(Path::new("."));
        let target = folder.canonicalize().ok()?.join(path.file_name()?);
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
        let problems = problems(settings, true).into_iter();
        problems.map(|problem| (problem.field, problem.reason)).collect()
    }

    #[test]
    fn files_that_are_written_are_nobody_elses() {
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
            disks: vec![(None, DiskImage::new(at("disk")))],
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
            ("a", "none/b", Some(("record", "its folder does not exist"))),
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
    fn sockets_that_cannot_be_are_found_before_a_machine_waits_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "x").unwrap();
        let _heard = UnixListener::bind(at("heard")).unwrap();
        drop(UnixListener::bind(at("left")).unwrap());
        let relay = |text: &str, name: &str| VsockRelay {
            socket: at(name),
            ..values::vsock(&format!("{text}:x")).unwrap()
        };
        let long = "s".repeat(120);
        for (relays, want) in [
            (vec![relay("listen:1", "new"), relay("listen:2", "new")], Some("another port's")),
            (vec![relay("listen:1", "heard")], Some("somebody listens")),
            (vec![relay("listen:1", "file")], Some("no socket")),
            (vec![relay("listen:1", "none/new")], Some("folder")),
            (vec![relay("connect:1", &long)], Some("too long")),
            (vec![relay("listen:1", "left"), relay("connect:1", "heard")], None),
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
    fn an_argument_that_is_two_is_named() {
        let cmdline = ["quiet", "a b", "x=a b"].map(String::from).to_vec();
        let settings = Settings { kernel: Some("/k".into()), cmdline, ..Settings::default() };
        let found = fields(&settings);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0 == "cmdline[1]" && found[0].1.starts_with("\"a b\": "), "{found:?}");
    }
}
