//! The table of settings: each flag and each key of the config file, once.
//!
//! A row has the flag, the key, the type of the value, the function that stores it, and the help. The
//! parsers of the command line and of the config file, help, the manual page, completions, the JSON
//! Schema and source spans all read these rows. A new setting is one row, and the field that it sets.

use capsa::disk_errors::DiskErrorPolicy;
use capsa::vsock::VsockDirection;
use capsa::{
    Accelerator, ConsoleMode, DiskImage, ImageFormat, MountMode, RebootPolicy, ShareMechanism,
    Virtio9pConfig, VirtioFsConfig,
};
use tracing::level_filters::LevelFilter;

use super::ProgressMode;
use super::agent;
use super::network;
use super::policy;
use super::setting::{Completion, Setting, ValueKind};
use crate::commands::Subcommand;
use crate::values::{self, Bounds};

/// The row that the others are based on: a flag of `capsa run`.
pub(super) const ROW: Setting = Setting {
    flag: "",
    short: None,
    commands: &[Subcommand::Run],
    repeats: false,
    key: "",
    required: false,
    field: "",
    kind: ValueKind::Switch(|_, _| {}),
    placeholder: "",
    completion: Completion::Nothing,
    example: "",
    help: "",
    default: "",
};

/// All settings, in the order of help.
pub(crate) const SETTINGS: &[Setting] = &{
    const PARTS: [&[Setting]; 5] = [DEVICES, network::ROWS, policy::ROWS, agent::ROWS, OTHERS];
    const PEERS: usize = network::ROWS.len() + policy::ROWS.len() + agent::ROWS.len();
    let mut all = [ROW; DEVICES.len() + PEERS + OTHERS.len()];
    let (mut n, mut part, mut begin) = (0, 0, 0);
    while n < all.len() {
        while n - begin == PARTS[part].len() {
            (begin, part) = (n, part + 1);
        }
        all[n] = PARTS[part][n - begin];
        n += 1;
    }
    all
};

/// The VM itself, without its network.
const DEVICES: &[Setting] = &[
    Setting {
        flag: "--config",
        kind: ValueKind::Path(|s, path| s.options.config = Some(path)),
        help: "Read settings from a TOML file, see `capsa help config`. A flag overrides the file; a \
               flag that may be repeated adds to it",
        ..ROW
    },
    Setting {
        key: "guest.os",
        kind: ValueKind::Choice(&[("linux", |_| {})]),
        example: "\"linux\"",
        help: "Operating system of the guest",
        default: "linux",
        ..ROW
    },
    Setting {
        key: "guest.boot",
        kind: ValueKind::Choice(&[("direct", |_| {})]),
        example: "\"direct\"",
        help: "Boot method; direct: the hypervisor loads the kernel",
        default: "direct",
        ..ROW
    },
    Setting {
        flag: "--kernel",
        key: "boot.kernel",
        kind: ValueKind::Path(|s, path| s.kernel = Some(path)),
        example: "\"./bzImage\"",
        help: "Guest kernel: a bzImage or vmlinux; on arm64 an Image",
        ..ROW
    },
    Setting {
        flag: "--initrd",
        key: "boot.initrd",
        kind: ValueKind::Path(|s, path| s.initrd = Some(path)),
        example: "\"./initrd\"",
        help: "Initial RAM disk",
        ..ROW
    },
    Setting {
        flag: "--disk",
        repeats: true,
        field: "disks",
        kind: ValueKind::Text(|s, text| values::disk(text).map(|disk| s.add_disk(disk))),
        placeholder: "FILE[:raw|:qcow2][:ro|:rw][:ephemeral][:allow-mounted][:backing=PATH]…",
        completion: Completion::Files,
        help: "Attach a disk image: the first as /dev/vda, the next as /dev/vdb and so on. With \
               ephemeral, guest writes are discarded and the image does not change. backing allows a \
               backing file of the image, or those in a directory; others are rejected. allow-mounted \
               allows a block device that the host has mounted. Replaces the \
               disk of the config file that has the same path",
        default: "rw",
        ..ROW
    },
    Setting {
        key: "disks.path",
        required: true,
        // The rows of a section are set in this order: the path implies a format, until one is set.
        kind: ValueKind::Path(|s, path| *s.last_disk() = DiskImage::new(path).into()),
        example: "\"./rootfs.qcow2\"",
        help: "Disk image",
        ..ROW
    },
    Setting {
        key: "disks.format",
        kind: ValueKind::Choice(&[
            ("raw", |s| s.last_disk().image.format = ImageFormat::Raw),
            ("qcow2", |s| s.last_disk().image.format = ImageFormat::Qcow2),
        ]),
        example: "\"qcow2\"",
        help: "Image format; must agree with the content of the file",
        default: "from the file name",
        ..ROW
    },
    Setting {
        key: "disks.read-only",
        kind: ValueKind::Switch(|s, on| s.last_disk().read_only = on),
        example: "true",
        help: "Whether guest writes fail",
        default: "false",
        ..ROW
    },
    Setting {
        key: "disks.ephemeral",
        kind: ValueKind::Switch(|s, on| s.last_disk().ephemeral = on),
        example: "true",
        help: "Whether guest writes are discarded when the VM ends",
        default: "false",
        ..ROW
    },
    Setting {
        key: "disks.allow-mounted",
        kind: ValueKind::Switch(|s, on| s.last_disk().allow_mounted = on),
        example: "true",
        help: "Whether guest writes to a block device that the host has mounted are allowed",
        default: "false",
        ..ROW
    },
    Setting {
        key: "disks.backing",
        kind: ValueKind::Paths(|s, path| s.last_disk().backing.push(path)),
        example: "[\"./base.qcow2\"]",
        help: "The backing files that the image may have, also indirectly: files, or directories that \
               contain them",
        default: "none",
        ..ROW
    },
    Setting {
        flag: "--share",
        repeats: true,
        field: "shares",
        kind: ValueKind::Text(|s, text| values::share(text).map(|share| s.add_share(share))),
        placeholder: "HOST:GUEST[:ro|:rw]",
        completion: Completion::Files,
        help: "Share the host directory HOST; the guest mounts it at GUEST. Replaces the share of the \
               config file that has the same GUEST",
        default: "ro",
        ..ROW
    },
    Setting {
        key: "shares.host",
        required: true,
        kind: ValueKind::Path(|s, path| s.last_share().host_path = path),
        example: "\"./workspace\"",
        help: "Host directory",
        ..ROW
    },
    Setting {
        key: "shares.guest",
        required: true,
        kind: ValueKind::String(|s, path| s.last_share().guest_path = path),
        example: "\"/workspace\"",
        help: "Mount point in the guest",
        ..ROW
    },
    Setting {
        key: "shares.mode",
        kind: ValueKind::Choice(&[
            ("ro", |s| s.last_share().mode = MountMode::ReadOnly),
            ("rw", |s| s.last_share().mode = MountMode::ReadWrite),
        ]),
        example: "\"rw\"",
        help: "Whether the guest may write",
        default: "ro",
        ..ROW
    },
    Setting {
        key: "shares.mechanism",
        kind: ValueKind::Choice(&[
            ("auto", |s| s.last_share().mechanism = ShareMechanism::Auto),
            ("virtio-fs", |s| {
                s.last_share().mechanism = ShareMechanism::VirtioFs(VirtioFsConfig::default());
            }),
            ("virtio-9p", |s| {
                s.last_share().mechanism = ShareMechanism::Virtio9p(Virtio9pConfig::default());
            }),
        ]),
        example: "\"virtio-fs\"",
        help: "How the directory is shared; auto: virtio-fs where it is available",
        default: "auto",
        ..ROW
    },
    Setting {
        flag: "--console",
        key: "console.mode",
        kind: ValueKind::Choice(&[
            ("stdio", |s| s.console = Some(ConsoleMode::Stdio)),
            ("enabled", |s| s.console = Some(ConsoleMode::Enabled)),
            ("disabled", |s| s.console = Some(ConsoleMode::Disabled)),
        ]),
        example: "\"enabled\"",
        help: "Guest console. stdio: connected to standard input and output; enabled: for `capsa \
               console`, and its last lines are printed if the VM fails; disabled: none",
        default: "disabled; enabled with -- COMMAND, a log, a recording or a virtio console",
        ..ROW
    },
    Setting {
        flag: "--virtio-console",
        key: "console.virtio",
        kind: ValueKind::Switch(|s, on| s.virtio_console = on),
        example: "true",
        help: "Use a virtio console, hvc0, which is faster than a serial port and loses no output; the \
               guest needs the driver virtio_console",
        default: "false; vfkit has no other console",
        ..ROW
    },
    Setting {
        flag: "--cpus",
        key: "resources.cpus",
        kind: ValueKind::Number(Bounds(1, u32::MAX), |s, cpus| s.cpus = Some(cpus)),
        example: "2",
        help: "Number of vCPUs",
        default: "1",
        ..ROW
    },
    Setting {
        flag: "--memory",
        key: "resources.memory",
        kind: ValueKind::Size(|s, mb| s.memory_mb = Some(mb)),
        example: "\"2G\"",
        help: "Guest memory, e.g. 512M or 2G",
        default: "512M",
        ..ROW
    },
];

/// The rest of `capsa run`, and the flags of the other commands.
const OTHERS: &[Setting] = &[
    Setting {
        flag: "--vsock",
        repeats: true,
        field: "vsock_ports",
        kind: ValueKind::Text(|s, text| values::vsock(text).map(|port| s.vsock.push(port))),
        placeholder: "listen:PORT:SOCKET|connect:PORT:SOCKET",
        help: "Forward a vsock port to a unix socket of the host. listen: capsa listens on SOCKET and \
               connects each client to PORT of the guest; connect: when the guest connects to PORT of \
               the host (CID 2), capsa connects it to SOCKET",
        ..ROW
    },
    Setting {
        key: "vsock.port",
        required: true,
        // The largest u32 is VMADDR_PORT_ANY.
        kind: ValueKind::Number(Bounds(0, u32::MAX - 1), |s, port| s.last_vsock().port = port),
        example: "5000",
        help: "vsock port",
        ..ROW
    },
    Setting {
        key: "vsock.listen",
        kind: ValueKind::Path(|s, path| {
            s.last_vsock().direction = VsockDirection::ToGuest;
            s.last_vsock().socket = path;
        }),
        example: "\"./agent.sock\"",
        help: "Socket on which capsa listens; clients are connected to the guest's port",
        ..ROW
    },
    Setting {
        key: "vsock.connect",
        kind: ValueKind::Path(|s, path| {
            s.last_vsock().direction = VsockDirection::ToHost;
            s.last_vsock().socket = path;
        }),
        example: "\"./api.sock\"",
        help: "Socket to which capsa connects the guest's connections to the host's port",
        ..ROW
    },
    Setting {
        flag: "--cmdline",
        repeats: true,
        key: "cmdline.extra",
        kind: ValueKind::List(|s, argument| s.cmdline.push(argument)),
        placeholder: "ARG",
        example: "[\"quiet\"]",
        help: "Additional kernel argument",
        ..ROW
    },
    Setting {
        flag: "--cmdline-override",
        key: "cmdline.override",
        kind: ValueKind::String(|s, text| s.cmdline_override = Some(text)),
        placeholder: "TEXT",
        example: "\"console=ttyS0\"",
        help: "Whole kernel command line, in place of the one that capsa generates",
        ..ROW
    },
    Setting {
        flag: "--timeout",
        key: "resources.timeout",
        kind: ValueKind::Time(|s, time| s.timeout = Some(time)),
        example: "\"5m\"",
        help: "Time limit after which the VM is stopped, e.g. 90s or 5m",
        default: "none",
        ..ROW
    },
    Setting {
        flag: "--grace",
        commands: &[Subcommand::Run, Subcommand::Stop],
        key: "resources.grace",
        kind: ValueKind::Time(|s, time| s.grace = Some(time)),
        example: "\"30s\"",
        help: "Grace period: how long a guest may take to power off when asked, before capsa kills \
               the VM",
        default: "30s",
        ..ROW
    },
    Setting {
        flag: "--backend",
        key: "backend.name",
        kind: ValueKind::String(|s, name| s.backend = Some(name)),
        placeholder: "NAME",
        completion: Completion::Words(&["cloud-hypervisor", "qemu", "vfkit"]),
        example: "\"qemu\"",
        help: "Hypervisor, see `capsa backends`",
        default: "$CAPSA_BACKEND, else the first that can run the VM",
        ..ROW
    },
    Setting {
        flag: "--accel",
        key: "backend.accel",
        field: "accelerator",
        kind: ValueKind::Choice(&[
            ("auto", |s| s.accelerator = Some(Accelerator::Auto)),
            ("kvm", |s| s.accelerator = Some(Accelerator::Kvm)),
            ("hvf", |s| s.accelerator = Some(Accelerator::Hvf)),
            ("emulation", |s| s.accelerator = Some(Accelerator::Emulation)),
        ]),
        example: "\"kvm\"",
        help: "CPU virtualisation; auto: hardware where it is usable, else emulation with a warning; \
               kvm: /dev/kvm, even if the check of the CPU's flags fails, with a warning",
        default: "auto",
        ..ROW
    },
    Setting {
        flag: "--on-reboot",
        key: "guest.on-reboot",
        kind: ValueKind::Choice(&[
            ("auto", |s| s.on_reboot = Some(RebootPolicy::Auto)),
            ("end", |s| s.on_reboot = Some(RebootPolicy::End)),
            ("restart", |s| s.on_reboot = Some(RebootPolicy::Restart)),
        ]),
        example: "\"restart\"",
        help: "What a guest reboot does; auto: end the VM where the hypervisor reports reboots",
        default: "auto",
        ..ROW
    },
    Setting {
        flag: "--on-disk-error",
        key: "guest.on-disk-error",
        kind: ValueKind::Choice(&[
            ("report", |s| s.on_disk_error = Some(DiskErrorPolicy::Report)),
            ("pause", |s| s.on_disk_error = Some(DiskErrorPolicy::Pause)),
        ]),
        example: "\"pause\"",
        help: "What a full host disk, or another error of a disk image, does; report: the guest gets an \
               I/O error; pause: the guest is paused",
        default: "report",
        ..ROW
    },
    Setting {
        flag: "--name",
        key: "guest.name",
        kind: ValueKind::Text(|s, text| values::name(text).map(|name| s.name = Some(name))),
        placeholder: "NAME",
        example: "\"build\"",
        help: "Name for `capsa ps`, `stop` and `console`",
        default: "the last component of the run directory",
        ..ROW
    },
    Setting {
        flag: "--user",
        key: "login.user",
        kind: ValueKind::Text(|s, text| values::user(text).map(|user| s.user = Some(user))),
        placeholder: "USER",
        example: "\"root\"",
        help: "User for -- COMMAND, if the guest asks for a login",
        default: "root",
        ..ROW
    },
    Setting {
        flag: "--password-file",
        key: "login.password-file",
        kind: ValueKind::Path(|s, path| s.password_file = Some(path)),
        example: "\"./password\"",
        help: "File whose first line is the password for -- COMMAND",
        ..ROW
    },
    Setting {
        flag: "--tty",
        short: Some('t'),
        kind: ValueKind::Switch(|s, on| s.options.tty = on),
        help: "-- COMMAND has the guest's terminal, and this terminal is raw while it runs",
        ..ROW
    },
    Setting {
        flag: "--log",
        key: "console.log",
        kind: ValueKind::Path(|s, path| s.log = Some(path)),
        example: "\"./console.log\"",
        help: "File to which console output is copied",
        ..ROW
    },
    Setting {
        flag: "--record",
        key: "console.record",
        kind: ValueKind::Path(|s, path| s.record = Some(path)),
        example: "\"./boot.cast\"",
        help: "File for a recording of console input and output, in asciicast format",
        ..ROW
    },
    Setting {
        flag: "--progress",
        kind: ValueKind::Choice(&[
            ("auto", |s| s.options.progress = ProgressMode::Auto),
            ("json", |s| s.options.progress = ProgressMode::Json),
            ("none", |s| s.options.progress = ProgressMode::None),
        ]),
        help: "Progress on standard error. auto: a status line on a terminal until the guest prints; \
               json: JSON lines, and nothing else on standard error",
        default: "auto",
        ..ROW
    },
    Setting {
        flag: "--dry-run",
        commands: &[Subcommand::Run, Subcommand::Gc],
        kind: ValueKind::Switch(|s, on| s.options.dry_run = on),
        help: "Print what would be done, without doing it",
        ..ROW
    },
    Setting {
        flag: "--kill",
        commands: &[Subcommand::Stop],
        kind: ValueKind::Switch(|s, on| s.options.kill = on),
        help: "Kill the VMs at once",
        ..ROW
    },
    Setting {
        flag: "--all",
        commands: &[Subcommand::Stop],
        kind: ValueKind::Switch(|s, on| s.options.all = on),
        help: "Stop every VM that `capsa ps` lists with a name",
        ..ROW
    },
    Setting {
        flag: "--read-only",
        commands: &[Subcommand::Console],
        kind: ValueKind::Switch(|s, on| s.options.read_only = on),
        help: "Show the console without sending input to it",
        ..ROW
    },
    Setting {
        flag: "--man",
        commands: &[Subcommand::Help],
        kind: ValueKind::Switch(|s, on| s.options.man = on),
        help: "Print the manual page: capsa help --man | man -l -",
        ..ROW
    },
    Setting {
        flag: "--json",
        commands: &[
            Subcommand::Run,
            Subcommand::Ps,
            Subcommand::Stop,
            Subcommand::Network,
            Subcommand::Gc,
            Subcommand::Backends,
            Subcommand::Doctor,
            Subcommand::Config,
            Subcommand::Version,
        ],
        kind: ValueKind::Switch(|s, on| s.options.json = on),
        help: "Print JSON; errors are JSON too",
        ..ROW
    },
    Setting {
        flag: "--quiet",
        short: Some('q'),
        commands: &[Subcommand::Run, Subcommand::Console],
        kind: ValueKind::Switch(|s, on| s.options.quiet = on),
        help: "Print errors only",
        ..ROW
    },
    Setting {
        flag: "--verbose",
        short: Some('v'),
        kind: ValueKind::Switch(|s, on| s.options.verbose = on),
        help: "Print which backend was chosen and why, and each step with its time",
        ..ROW
    },
    Setting {
        flag: "--log-level",
        commands: &[
            Subcommand::Run,
            Subcommand::Ps,
            Subcommand::Stop,
            Subcommand::Pause,
            Subcommand::Resume,
            Subcommand::Console,
            Subcommand::Gc,
            Subcommand::Backends,
            Subcommand::Doctor,
            Subcommand::Config,
        ],
        kind: ValueKind::Choice(&[
            ("off", |s| s.options.log_level = Some(LevelFilter::OFF)),
            ("error", |s| s.options.log_level = Some(LevelFilter::ERROR)),
            ("warn", |s| s.options.log_level = Some(LevelFilter::WARN)),
            ("info", |s| s.options.log_level = Some(LevelFilter::INFO)),
            ("debug", |s| s.options.log_level = Some(LevelFilter::DEBUG)),
            ("trace", |s| s.options.log_level = Some(LevelFilter::TRACE)),
        ]),
        help: "Print log messages of the capsa library of this level and above to standard error",
        default: "$CAPSA_LOG, else off",
        ..ROW
    },
];

/// The flags of a command.
pub(crate) fn flags_of(command: Subcommand) -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(move |row| !row.flag.is_empty() && row.commands.contains(&command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::SECTIONS;

    #[test]
    fn settings_table_rows_are_complete_and_unique() {
        for (n, row) in SETTINGS.iter().enumerate() {
            let name = format!("{}{}", row.flag, row.key);
            assert!(!name.is_empty() && !row.help.is_empty(), "{name}");
            assert!(row.flag.is_empty() || row.flag.starts_with("--"), "{name}");
            assert!(row.flag.is_empty() || !row.commands.is_empty(), "{name}");
            assert_eq!(row.key.is_empty(), row.example.is_empty(), "{name}");
            assert!(row.key.is_empty() || row.key.contains('.'), "{name}");
            for other in &SETTINGS[..n] {
                assert!(row.flag.is_empty() || row.flag != other.flag, "{name} occurs twice");
                assert!(row.short.is_none() || row.short != other.short, "{name}: short flag");
                assert!(row.key.is_empty() || row.key != other.key, "{name} occurs twice");
            }
        }
        for row in SETTINGS.iter().filter(|row| !row.key.is_empty()) {
            assert!(SECTIONS.iter().any(|section| section.rows().any(|r| r.key == row.key)));
        }
    }
}
