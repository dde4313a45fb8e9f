//! The types that the specification builds by literal and matches by pattern.
//!
//! Each literal names every field and each `match` every variant, so a field or variant more is a
//! compile error here.

use std::path::PathBuf;
use std::time::Duration;

use capsa::backend::{BackendCapabilities, Violation};
use capsa::{
    Capsa, CmdlineArg, ConsoleMode, DiskImage, Error, ImageFormat, LinuxBootConfig,
    LinuxDirectBootConfig, MountMode, NetworkMode, ResourceConfig, ShareMechanism, SharedDir,
    Virtio9pConfig, VirtioFsConfig, VmStatus,
};

fn disk() -> DiskImage {
    DiskImage { path: PathBuf::from("./rootfs.qcow2"), format: ImageFormat::Qcow2 }
}

#[test]
fn literals_build_a_vm() {
    let config = LinuxDirectBootConfig {
        kernel: "./bzImage".into(),
        initrd: "./initrd".into(),
        disk: disk(),
    };
    let share = |mechanism| SharedDir {
        host_path: "./workspace".into(),
        guest_path: "/workspace".into(),
        mode: MountMode::ReadWrite,
        mechanism,
    };
    let fs = VirtioFsConfig { tag: Some("work".into()), cache: Some("auto".into()) };
    let p9 = Virtio9pConfig { tag: None, msize: Some(262_144) };
    let shares = [
        share(ShareMechanism::Auto),
        share(ShareMechanism::VirtioFs(fs)),
        share(ShareMechanism::Virtio9p(p9)),
    ];
    let resources = ResourceConfig { cpus: 2, memory_mb: 2048 };
    let builder = Capsa::vm(config)
        .cpus(resources.cpus)
        .memory_mb(resources.memory_mb)
        .timeout(Duration::from_secs(60))
        .shares(shares)
        .network(NetworkMode::Nat)
        .console(ConsoleMode::Enabled)
        .cmdline_arg(CmdlineArg::KeyValue { key: "root".into(), value: "/dev/vda".into() })
        .cmdline_arg(CmdlineArg::Flag("quiet".into()));
    // The files do not exist: the error shows that the description was read.
    let error = builder.plan().unwrap_err();
    assert!(error.violations().iter().any(|violation| violation.field == "kernel"), "{error}");
}

#[test]
fn constructors_match_literals() {
    assert_eq!(DiskImage::new("./rootfs.qcow2"), disk());
    assert_eq!(DiskImage::with_format("./rootfs.qcow2", ImageFormat::Qcow2), disk());
    let defaults = (ImageFormat::default(), MountMode::default(), ShareMechanism::default());
    assert_eq!(defaults, (ImageFormat::Raw, MountMode::ReadOnly, ShareMechanism::Auto));
    assert_eq!(
        (NetworkMode::default(), ConsoleMode::default()),
        (NetworkMode::Nat, ConsoleMode::Disabled)
    );
}

#[test]
fn enums_match_without_wildcard() {
    let format = |format| match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
    };
    let mode = |mode| match mode {
        MountMode::ReadOnly => "ro",
        MountMode::ReadWrite => "rw",
    };
    let console = |mode| match mode {
        ConsoleMode::Disabled => "disabled",
        ConsoleMode::Enabled => "enabled",
        ConsoleMode::Stdio => "stdio",
    };
    let status = |status: &VmStatus| match status {
        VmStatus::Created => "created".to_owned(),
        VmStatus::Starting => "starting".to_owned(),
        VmStatus::Running => "running".to_owned(),
        // Not in the specification.
        VmStatus::Paused => "paused".to_owned(),
        VmStatus::Stopping => "stopping".to_owned(),
        VmStatus::Stopped { exit_code } => format!("{exit_code:?}"),
        VmStatus::Failed { message } => message.clone(),
    };
    let mechanism = |mechanism| match mechanism {
        ShareMechanism::Auto => "auto",
        ShareMechanism::VirtioFs(VirtioFsConfig { tag: _, cache: _ }) => "virtio-fs",
        ShareMechanism::Virtio9p(Virtio9pConfig { tag: _, msize: _ }) => "virtio-9p",
    };
    assert_eq!(format(ImageFormat::Raw), "raw");
    assert_eq!(mode(MountMode::ReadWrite), "rw");
    assert_eq!(console(ConsoleMode::Stdio), "stdio");
    assert_eq!(status(&VmStatus::Stopped { exit_code: None }), "None");
    assert_eq!(mechanism(ShareMechanism::Auto), "auto");
}

/// The variants of the specification. Those that hold more than the specification's text have `..`:
/// what was expected, the last output, all reasons.
#[test]
fn error_variants_match() {
    let kind = |error: &Error| match error {
        Error::NoBackendAvailable { .. } => "backend",
        Error::BackendUnavailable { name: _, .. } => "name",
        Error::UnsupportedFeature(_) | Error::InvalidConfig(_) | Error::MissingConfig(_) => {
            "config"
        }
        Error::UnsupportedGuestOs(_) => "guest",
        Error::StartFailed(_) => "start",
        Error::NotRunning => "not running",
        Error::AlreadyRunning => "already running",
        Error::ConsoleNotEnabled => "console",
        Error::Timeout { .. } => "timeout",
        Error::PatternNotFound { pattern: _, .. } => "pattern",
        Error::Hypervisor(_) => "hypervisor",
        Error::Io(_) => "io",
        _ => "of Capsa alone",
    };
    assert_eq!(kind(&Error::NotRunning), "not running");
    assert_eq!(kind(&std::io::Error::other("x").into()), "io");
    assert_eq!(Error::NotRunning.to_string(), "VM is not running");
    assert_eq!(Error::ConsoleNotEnabled.to_string(), "console not enabled for this VM");
}

#[test]
fn capabilities_default_to_nothing() {
    let none = BackendCapabilities::default();
    assert!(!none.guest_os.linux && !none.boot_methods.linux_direct);
    assert!(!none.image_formats.raw && !none.image_formats.qcow2);
    assert!(!none.network_modes.none && !none.network_modes.nat);
    assert!(!none.virtio_fs && !none.virtio_9p && !none.vsock);
    assert_eq!((none.max_cpus, none.max_memory_mb), (None, None));
    // The specification's `InternalVmConfig` is internal here too: a builder makes it.
    let validate: fn(&BackendCapabilities, &_) -> Result<(), Vec<Violation>> =
        BackendCapabilities::validate;
    let _ = validate;
    let builder = Capsa::vm(LinuxBootConfig::new("./bzImage"));
    assert!(matches!(builder.validate(&none), Err(Error::UnsupportedFeature(_))));
}
