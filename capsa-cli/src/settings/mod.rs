//! What flags and the config file set: the description of a VM, and the options of the command.
//!
//! The table of settings is in [`table`]. Flags are applied to the settings of the config file, so that a single
//! value overrides the file's and a list grows.

mod agent;
mod names;
mod network;
mod policy;
mod sections;
mod setting;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use capsa::agent::AgentMode;
use capsa::disk_errors::DiskErrorPolicy;
use capsa::vsock::VsockDirection;
use capsa::{
    Accelerator, Capsa, ConsoleMode, DiskImage, LinuxBootConfig, LinuxVmBuilder, MountMode,
    RebootPolicy, SharedDir, VmDisk,
};
use tracing::level_filters::LevelFilter;

use crate::spans::SourceSpans;
use crate::values::VsockRelay;

pub(crate) use agent::CommandRoute;
pub(crate) use network::{ForwardSetting, GuestNetwork, ServiceSetting};
pub(crate) use sections::SECTIONS;
pub(crate) use setting::{Section, Setting, Shape, ValueKind};
pub(crate) use table::{SETTINGS, flags_of};

/// The table of the config file that describes a disk or share; `None` for one from a flag.
pub(crate) type Origin = Option<String>;

/// Everything that flags and the config file set. What is not set is `None`, empty or false.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) disks: Vec<(Origin, VmDisk)>,
    pub(crate) shares: Vec<(Origin, SharedDir)>,
    pub(crate) console: Option<ConsoleMode>,
    /// Whether the console is a virtio console.
    pub(crate) virtio_console: bool,
    pub(crate) cpus: Option<u32>,
    pub(crate) memory_mb: Option<u32>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) grace: Option<Duration>,
    pub(crate) network: GuestNetwork,
    pub(crate) vsock: Vec<VsockRelay>,
    pub(crate) cmdline: Vec<String>,
    pub(crate) cmdline_override: Option<String>,
    pub(crate) backend: Option<String>,
    pub(crate) accelerator: Option<Accelerator>,
    pub(crate) on_reboot: Option<RebootPolicy>,
    pub(crate) on_disk_error: Option<DiskErrorPolicy>,
    pub(crate) agent: Option<AgentMode>,
    pub(crate) name: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) record: Option<PathBuf>,
    /// What only flags set.
    pub(crate) options: FlagOptions,
    /// Where the config file sets the rest.
    pub(crate) spans: SourceSpans,
}

/// What only flags set.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FlagOptions {
    pub(crate) config: Option<PathBuf>,
    pub(crate) progress: ProgressMode,
    pub(crate) log_level: Option<LevelFilter>,
    pub(crate) dry_run: bool,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
    pub(crate) kill: bool,
    pub(crate) all: bool,
    pub(crate) read_only: bool,
    pub(crate) tty: bool,
    pub(crate) via: Option<CommandRoute>,
    pub(crate) man: bool,
}

/// How a run reports its progress on standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ProgressMode {
    /// A status line on a terminal, until the guest prints.
    #[default]
    Auto,
    /// JSON lines.
    Json,
    /// Not at all.
    None,
}

impl Settings {
    /// Adds a disk of a flag. It replaces the config file's disk with the same path.
    fn add_disk(&mut self, new: VmDisk) {
        let path = |disk: &VmDisk| std::path::absolute(&disk.image.path).ok();
        let same =
            |(origin, old): &&mut (Origin, VmDisk)| origin.is_some() && path(old) == path(&new);
        match self.disks.iter_mut().find(same) {
            Some(old) => *old = (None, new),
            None => self.disks.push((None, new)),
        }
    }

    /// Adds a share of a flag. It replaces the config file's share with the same path in the guest.
    fn add_share(&mut self, new: SharedDir) {
        let same = |(origin, old): &&mut (Origin, SharedDir)| {
            origin.is_some() && old.guest_path == new.guest_path
        };
        match self.shares.iter_mut().find(same) {
            Some(old) => *old = (None, new),
            None => self.shares.push((None, new)),
        }
    }

    /// Adds a disk of the config file, whose keys are set next.
    fn begin_disk(&mut self, origin: String) {
        self.disks.push((Some(origin), DiskImage::new("").into()));
    }

    fn begin_share(&mut self, origin: String) {
        self.shares.push((Some(origin), SharedDir::new("", "", MountMode::default())));
    }

    fn begin_vsock(&mut self) {
        let (direction, socket) = (VsockDirection::ToGuest, PathBuf::new());
        self.vsock.push(VsockRelay { direction, port: 0, socket });
    }

    /// Removes the last disk, share or vsock port of the config file, which is incomplete.
    pub(crate) fn remove_last(&mut self, section: &Section) {
        match section.name {
            "disk" | "disks" => drop(self.disks.pop()),
            "shares" => drop(self.shares.pop()),
            "vsock" => drop(self.vsock.pop()),
            "network.forward" => drop(self.network.forwards.pop()),
            "network.allow" => drop(self.network.allow.pop()),
            "network.service" => drop(self.network.services.pop()),
            _ => {}
        }
    }

    fn last_disk(&mut self) -> &mut VmDisk {
        &mut self.disks.last_mut().expect("begin_disk adds one").1
    }

    fn last_share(&mut self) -> &mut SharedDir {
        &mut self.shares.last_mut().expect("begin_share adds one").1
    }

    fn last_vsock(&mut self) -> &mut VsockRelay {
        self.vsock.last_mut().expect("begin_vsock adds one")
    }

    /// The console's mode. A log, a recording or `--virtio-console` enables a console if no mode is set.
    pub(crate) fn console(&self) -> ConsoleMode {
        let needs_console = self.log.is_some() || self.record.is_some() || self.virtio_console;
        let default = if needs_console { ConsoleMode::Enabled } else { ConsoleMode::Disabled };
        self.console.unwrap_or(default)
    }

    /// The builder of this VM.
    pub(crate) fn builder(&self) -> LinuxVmBuilder {
        // Without a kernel this path stands in for it, so that the library checks the rest. The
        // missing kernel is reported by `check`.
        let kernel = self.kernel.clone().unwrap_or_else(|| "/".into());
        let mut config = LinuxBootConfig::new(kernel);
        config.initrd.clone_from(&self.initrd);
        config.disks = self.disks.iter().map(|(_, disk)| disk.clone()).collect();
        let mut builder = Capsa::vm(config)
            .shares(self.shares.iter().map(|(_, share)| share.clone()))
            .console(self.console())
            .accelerator(self.accelerator.unwrap_or_default())
            .on_reboot(self.on_reboot.unwrap_or_default())
            .on_disk_error(self.on_disk_error.unwrap_or_default())
            .agent(self.agent.unwrap_or_default())
            .cmdline_args(self.cmdline.iter().map(String::as_str));
        builder = self.network.describe(builder, self.name.as_deref());
        if self.virtio_console {
            builder = builder.virtio_console();
        }
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
    use crate::flags::Arguments;

    /// These settings with the flags of a command line applied.
    fn with_flags(mut file: Settings, line: &str) -> Settings {
        let words = shell_words::split(&format!("run {line}")).unwrap();
        let arguments = Arguments::parse(words.into_iter().map(Into::into).collect()).unwrap();
        arguments.apply(&mut file).unwrap();
        file
    }

    #[test]
    fn flags_override_values_and_extend_lists() {
        let file = Settings {
            kernel: Some("/file/kernel".into()),
            cpus: Some(1),
            memory_mb: Some(1),
            cmdline: vec!["quiet".into()],
            disks: vec![(Some("disk".into()), DiskImage::new("/d").into())],
            shares: vec![
                (Some("shares.a".into()), SharedDir::new("/a", "/a", MountMode::ReadWrite)),
                (Some("shares.b".into()), SharedDir::new("/b", "/b", MountMode::ReadWrite)),
            ],
            ..Settings::default()
        };
        let flags = "--memory 2G --disk /e --disk /d:ephemeral --share /other:/b --share /c:/c \
                     --cmdline loglevel=3";
        let all = with_flags(file, flags);
        assert_eq!(all.kernel.as_deref(), Some("/file/kernel".as_ref()));
        assert_eq!((all.cpus, all.memory_mb), (Some(1), Some(2048)));
        assert_eq!(all.cmdline, ["quiet", "loglevel=3"]);
        let disks: Vec<_> = all.disks.iter().map(|(_, disk)| disk.clone()).collect();
        assert_eq!(disks, [DiskImage::new("/d").ephemeral(), DiskImage::new("/e").into()]);
        let guests: Vec<_> = all.shares.iter().map(|(_, s)| s.guest_path.as_str()).collect();
        assert_eq!(guests, ["/a", "/b", "/c"]);
        assert_eq!(all.shares[1].1, SharedDir::new("/other", "/b", MountMode::ReadOnly));
        assert_eq!(all.name_of("shares[0].host"), "shares.a.host");
        // The first share flag replaced the second share of the file.
        assert_eq!(all.name_of("shares[2].host"), "--share 2");
        assert_eq!(all.name_of("disks[0].path"), "--disk 1");
        assert_eq!(all.name_of("disks[7]"), "disks[7]");
        assert_eq!(all.name_of("kernel"), "kernel");
    }

    #[test]
    fn network_field_from_a_flag_has_its_name() {
        let flags = "--allow-private --allow-host-port 1 --forward 80:80 --network-pcap /p";
        let all = with_flags(Settings::default(), flags);
        assert_eq!(all.name_of("allow_private"), "--allow-private");
        assert_eq!(all.name_of("allow_host_ports"), "--allow-host-port");
        assert_eq!(all.name_of("forwards"), "--forward");
        assert_eq!(all.name_of("network_pcap"), "--network-pcap");
    }

    #[test]
    fn same_disk_flag_twice_adds_two_disks() {
        assert_eq!(with_flags(Settings::default(), "--disk /d --disk /d").disks.len(), 2);
    }

    #[test]
    fn cmdline_override_drops_only_the_files_arguments() {
        let file = || Settings { cmdline: vec!["quiet".into()], ..Settings::default() };
        let all = with_flags(file(), "--cmdline-override 'a b'");
        assert!(all.cmdline.is_empty());
        let all = with_flags(file(), "--cmdline c --cmdline-override 'a b'");
        assert_eq!((all.cmdline.len(), all.cmdline_override.as_deref()), (1, Some("a b")));
    }
}
