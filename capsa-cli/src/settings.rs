//! What a machine shall be, as flags or a config file say it, and how one overrides the other.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use capsa::{
    Accelerator, Capsa, ConsoleMode, DiskImage, LinuxBootConfig, LinuxVmBuilder, NetworkMode,
    RebootPolicy, SharedDir,
};

use crate::failure::Failure;
use crate::flags::{Given, usage};
use crate::spans::SourceSpans;
use crate::values::{self, VsockRelay};

/// Where a disk or share was named in a config file; nowhere when a flag named it.
pub(crate) type Origin = Option<String>;

/// What was said about a machine. What was not is `None` or empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) disks: Vec<(Origin, DiskImage)>,
    pub(crate) shares: Vec<(Origin, SharedDir)>,
    pub(crate) console: Option<ConsoleMode>,
    pub(crate) cpus: Option<u32>,
    pub(crate) memory_mb: Option<u32>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) grace: Option<Duration>,
    pub(crate) network: Option<NetworkMode>,
    pub(crate) vsock: Vec<VsockRelay>,
    pub(crate) cmdline: Vec<String>,
    pub(crate) cmdline_override: Option<String>,
    pub(crate) backend: Option<String>,
    pub(crate) accelerator: Option<Accelerator>,
    pub(crate) on_reboot: Option<RebootPolicy>,
    pub(crate) name: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) record: Option<PathBuf>,
    /// Where a config file says all this.
    pub(crate) spans: SourceSpans,
}

impl Settings {
    /// What the flags of `run` say.
    pub(crate) fn from_flags(given: &Given) -> Result<Self, Failure> {
        let path = |name| match given.one_os(name) {
            Some(path) if path.is_empty() => {
                Err(usage(format!("{name} \"\": it names no file"), Some(given.command)))
            }
            path => Ok(path.map(PathBuf::from)),
        };
        let text = |text: &str| Ok::<_, Infallible>(text.to_owned());
        let disks = given.all("--disk", values::disk)?;
        let shares = given.all("--share", values::share)?;
        Ok(Self {
            kernel: path("--kernel")?,
            initrd: path("--initrd")?,
            disks: disks.into_iter().map(|disk| (None, disk)).collect(),
            shares: shares.into_iter().map(|share| (None, share)).collect(),
            console: given.one("--console", values::console)?,
            cpus: given.one("--cpus", values::number)?,
            memory_mb: given.one("--memory", values::memory_mb)?,
            timeout: given.one("--timeout", values::duration)?,
            grace: given.one("--grace", values::duration)?,
            network: given.one("--network", values::network)?,
            vsock: given.all("--vsock", values::vsock)?,
            cmdline: given.all("--cmdline", text)?,
            cmdline_override: given.one("--cmdline-override", text)?,
            backend: given.one("--backend", text)?,
            accelerator: given.one("--accel", values::accelerator)?,
            on_reboot: given.one("--on-reboot", values::on_reboot)?,
            name: given.one("--name", values::name)?,
            user: given.one("--user", values::user)?,
            password_file: path("--password-file")?,
            log: path("--log")?,
            record: path("--record")?,
            spans: SourceSpans::default(),
        })
    }

    /// These settings with `over` on top: its single values win, its lists are added. A disk with
    /// the same file and a share at the same place in the guest are replaced.
    pub(crate) fn overridden_by(mut self, over: Self) -> Self {
        self.forget_spans_of(&over);
        for new in over.disks {
            let same = |old: &&mut (Origin, DiskImage)| {
                std::path::absolute(&old.1.path).ok() == std::path::absolute(&new.1.path).ok()
            };
            match self.disks.iter_mut().filter(|old| old.0.is_some()).find(same) {
                Some(old) => *old = new,
                None => self.disks.push(new),
            }
        }
        for new in over.shares {
            let same = |old: &&mut (Origin, SharedDir)| old.1.guest_path == new.1.guest_path;
            match self.shares.iter_mut().filter(|old| old.0.is_some()).find(same) {
                Some(old) => *old = new,
                None => self.shares.push(new),
            }
        }
        if over.cmdline_override.is_some() {
            self.cmdline.clear();
        }
        self.cmdline.extend(over.cmdline);
        self.vsock.extend(over.vsock);
        Self {
            kernel: over.kernel.or(self.kernel),
            initrd: over.initrd.or(self.initrd),
            disks: self.disks,
            shares: self.shares,
            console: over.console.or(self.console),
            cpus: over.cpus.or(self.cpus),
            memory_mb: over.memory_mb.or(self.memory_mb),
            timeout: over.timeout.or(self.timeout),
            grace: over.grace.or(self.grace),
            network: over.network.or(self.network),
            vsock: self.vsock,
            cmdline: self.cmdline,
            cmdline_override: over.cmdline_override.or(self.cmdline_override),
            backend: over.backend.or(self.backend),
            accelerator: over.accelerator.or(self.accelerator),
            on_reboot: over.on_reboot.or(self.on_reboot),
            name: over.name.or(self.name),
            user: over.user.or(self.user),
            password_file: over.password_file.or(self.password_file),
            log: over.log.or(self.log),
            record: over.record.or(self.record),
            spans: self.spans,
        }
    }

    /// The console's mode. What needs one has one, where nothing else is said.
    pub(crate) fn console(&self) -> ConsoleMode {
        let needs_one = self.log.is_some() || self.record.is_some();
        let otherwise = if needs_one { ConsoleMode::Enabled } else { ConsoleMode::Disabled };
        self.console.unwrap_or(otherwise)
    }

    /// The builder of such a machine.
    pub(crate) fn builder(&self) -> LinuxVmBuilder {
        let config = LinuxBootConfig {
            // Nothing that boots, so that all else is looked at; that none is named is said elsewhere.
            kernel: self.kernel.clone().unwrap_or_else(|| "/".into()),
            initrd: self.initrd.clone(),
            disks: self.disks.iter().map(|(_, disk)| disk.clone()).collect(),
        };
        let mut builder = Capsa::vm(config)
            .shares(self.shares.iter().map(|(_, share)| share.clone()))
            .console(self.console())
            .network(self.network.unwrap_or_default())
            .accelerator(self.accelerator.unwrap_or_default())
            .on_reboot(self.on_reboot.unwrap_or_default())
            .cmdline_args(self.cmdline.iter().map(String::as_str));
        if let Some(cpus) = self.cpus {
            builder = builder.cpus(cpus);
        }
        if let Some(memory_mb) = self.memory_mb {
            builder = builder.memory_mb(memory_mb);
        }
        if let Some(timeout) = self.timeout {
            builder = builder.timeout(timeout);
        }
        if let Some(grace) = self.grace {
            builder = builder.grace(grace);
        }
        for relay in &self.vsock {
            builder = builder.vsock_port(relay.port, relay.direction);
        }
        if let Some(text) = &self.cmdline_override {
            builder = builder.cmdline_override(text);
        }
        if let Some(name) = &self.backend {
            builder = builder.backend(name);
        }
        builder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa::MountMode;

    fn flags(line: &str) -> Settings {
        let words = shell_words::split(&format!("run {line}")).unwrap();
        let given = Given::parse(words.into_iter().map(Into::into).collect()).unwrap();
        Settings::from_flags(&given).unwrap()
    }

    #[test]
    fn a_flag_wins_over_the_file_and_lists_are_added() {
        let file = Settings {
            kernel: Some("/file/kernel".into()),
            cpus: Some(1),
            memory_mb: Some(1),
            cmdline: vec!["quiet".into()],
            disks: vec![(Some("disk".into()), DiskImage::new("/d"))],
            shares: vec![
                (Some("shares.a".into()), SharedDir::new("/a", "/a", MountMode::ReadWrite)),
                (Some("shares.b".into()), SharedDir::new("/b", "/b", MountMode::ReadWrite)),
            ],
            ..Settings::default()
        };
        let flags = flags(
            "--memory 2G --disk /e --disk /d:ephemeral --share /other:/b --share /c:/c \
             --cmdline loglevel=3",
        );
        let all = file.overridden_by(flags);
        assert_eq!(all.kernel.as_deref(), Some("/file/kernel".as_ref()));
        assert_eq!((all.cpus, all.memory_mb), (Some(1), Some(2048)));
        assert_eq!(all.cmdline, ["quiet", "loglevel=3"]);
        let disks: Vec<_> = all.disks.iter().map(|(_, disk)| disk.clone()).collect();
        assert_eq!(disks, [DiskImage::new("/d").ephemeral(), DiskImage::new("/e")]);
        let guests: Vec<_> = all.shares.iter().map(|(_, s)| s.guest_path.as_str()).collect();
        assert_eq!(guests, ["/a", "/b", "/c"]);
        assert_eq!(all.shares[1].1, SharedDir::new("/other", "/b", MountMode::ReadOnly));
        assert_eq!(all.name_of("shares[0].host"), "shares.a.host");
        // The second of the file's was replaced by the first of the flags'.
        assert_eq!(all.name_of("shares[2].host"), "--share 2");
        assert_eq!(all.name_of("disks[0].path"), "--disk 1");
        assert_eq!(all.name_of("disks[7]"), "disks[7]");
        assert_eq!(all.name_of("kernel"), "kernel");
    }

    #[test]
    fn the_same_flag_twice_is_left_to_the_check() {
        assert_eq!(Settings::default().overridden_by(flags("--disk /d --disk /d")).disks.len(), 2);
    }

    #[test]
    fn an_override_replaces_the_files_arguments_but_not_those_given_with_it() {
        let file = || Settings { cmdline: vec!["quiet".into()], ..Settings::default() };
        let all = file().overridden_by(flags("--cmdline-override 'a b'"));
        assert!(all.cmdline.is_empty());
        let all = file().overridden_by(flags("--cmdline-override 'a b' --cmdline c"));
        assert_eq!((all.cmdline.len(), all.cmdline_override.as_deref()), (1, Some("a b")));
    }
}
