//! [`LinuxVmBuilder`]: the builder of VMs with a Linux guest.

#[cfg(feature = "async")]
mod futures;
mod network;
mod paths;

use std::path::PathBuf;
use std::time::Duration;

use capsa_proto::capabilities::{Violation, ViolationKind};
use capsa_proto::cmdline::{CmdlineArg, KernelCmdline, is_repeatable};
use capsa_proto::console::Overflow;
use capsa_proto::spec::{
    Accelerator, AgentMode, ConsoleMode, Disk, DiskErrorPolicy, MountMode, NetworkMode,
    RebootPolicy, ResourceConfig, Share, ShareMechanism, VmSpec, VsockDirection, VsockPort,
};

use crate::backend::choice::{self, BackendChoice, Planned, Strictness};
use crate::backend::{BackendCapabilities, LaunchPlan, Rejection};
use crate::embed::Options;
use crate::{Error, Result, SharedDir, VmDisk, embed};

use network::NetworkSettings;
use paths::Paths;

/// Describes a VM with a Linux guest, then builds it.
///
/// The setters check nothing and cannot fail. The description is checked by [`build`],
/// [`build_driven`], [`build_embedded`] and [`plan`].
///
/// [`build`]: LinuxVmBuilder::build
/// [`build_driven`]: LinuxVmBuilder::build_driven
/// [`build_embedded`]: LinuxVmBuilder::build_embedded
/// [`plan`]: LinuxVmBuilder::plan
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct LinuxVmBuilder {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    disks: Vec<VmDisk>,
    resources: ResourceConfig,
    shares: Vec<SharedDir>,
    network: NetworkMode,
    network_options: NetworkSettings,
    vsock: bool,
    vsock_ports: Vec<VsockPort>,
    pub(crate) console: ConsoleMode,
    virtio_console: bool,
    cmdline: KernelCmdline,
    accelerator: Accelerator,
    on_reboot: RebootPolicy,
    on_disk_error: DiskErrorPolicy,
    timeout: Option<Duration>,
    agent: AgentMode,
    pub(crate) choice: BackendChoice,
    #[cfg(feature = "testing")]
    pub(crate) simulated: Option<capsa_proto::sim::SimulatedGuest>,
    #[cfg(feature = "recording")]
    pub(crate) recording: Option<crate::recording::Recording>,
    pub(crate) options: Options,
}

impl LinuxVmBuilder {
    pub(crate) fn new(kernel: PathBuf, initrd: Option<PathBuf>, disks: Vec<VmDisk>) -> Self {
        Self {
            kernel,
            initrd,
            disks,
            resources: ResourceConfig::default(),
            shares: Vec::new(),
            network: NetworkMode::default(),
            network_options: NetworkSettings::default(),
            vsock: false,
            vsock_ports: Vec::new(),
            console: ConsoleMode::default(),
            virtio_console: false,
            cmdline: KernelCmdline::new(),
            accelerator: Accelerator::default(),
            on_reboot: RebootPolicy::default(),
            on_disk_error: DiskErrorPolicy::default(),
            timeout: None,
            agent: AgentMode::default(),
            choice: BackendChoice::default(),
            #[cfg(feature = "testing")]
            simulated: None,
            #[cfg(feature = "recording")]
            recording: None,
            options: Options::default(),
        }
    }

    /// Sets the number of vCPUs; default: 1.
    pub fn cpus(mut self, count: u32) -> Self {
        self.resources.cpus = count;
        self
    }

    /// Sets the memory in MiB; default: 512.
    pub fn memory_mb(mut self, mb: u32) -> Self {
        self.resources.memory_mb = mb;
        self
    }

    /// Sets a time limit, counted from [`VmStatus::Running`](crate::VmStatus::Running); the start has
    /// deadlines of its own. When it passes, the guest is asked to power off; after the grace period
    /// the hypervisor is killed. Default: no limit.
    pub fn timeout(mut self, duration: Duration) -> Self {
        self.timeout = Some(duration);
        self
    }

    /// Sets the grace period after the time limit of [`timeout`](Self::timeout): how long the guest
    /// may take to power off before the hypervisor is killed; default: 30 seconds.
    /// [`VmHandle::stop_with_timeout`](crate::VmHandle::stop_with_timeout) has a grace period of
    /// its own.
    pub fn grace(mut self, duration: Duration) -> Self {
        self.options.timing.grace = duration;
        self
    }

    /// Adds a disk: `/dev/vdb` after the first one, then `/dev/vdc`, and so on.
    pub fn disk(mut self, disk: impl Into<VmDisk>) -> Self {
        self.disks.push(disk.into());
        self
    }

    /// Shares a directory; the backend chooses the mechanism. See [`SharedDir`].
    pub fn share(
        self,
        host: impl Into<PathBuf>,
        guest: impl Into<String>,
        mode: MountMode,
    ) -> Self {
        self.shares([SharedDir::new(host, guest, mode)])
    }

    /// Shares a directory by the given mechanism.
    pub fn share_with_mechanism(
        self,
        host: impl Into<PathBuf>,
        guest: impl Into<String>,
        mode: MountMode,
        mechanism: ShareMechanism,
    ) -> Self {
        self.shares([SharedDir { mechanism, ..SharedDir::new(host, guest, mode) }])
    }

    /// Shares several directories.
    pub fn shares(mut self, shares: impl IntoIterator<Item = SharedDir>) -> Self {
        self.shares.extend(shares);
        self
    }

    /// Sets the guest's network; default: NAT.
    pub fn network(mut self, mode: NetworkMode) -> Self {
        self.network = mode;
        self
    }

    /// Removes the network device.
    pub fn no_network(self) -> Self {
        self.network(NetworkMode::None)
    }

    /// Adds a vsock device: stream sockets between host and guest that need no network. Connect
    /// with [`VmHandle::vsock_connect`](crate::VmHandle::vsock_connect), listen with
    /// [`VmHandle::vsock_listen`](crate::VmHandle::vsock_listen).
    pub fn vsock(mut self) -> Self {
        self.vsock = true;
        self
    }

    /// Adds a vsock device, as [`LinuxVmBuilder::vsock`], and declares a port. Call it once for
    /// each port. vfkit must know the ports before the start; the other backends serve all ports.
    pub fn vsock_port(mut self, port: u32, direction: VsockDirection) -> Self {
        self.vsock_ports.push(VsockPort { port, direction });
        self.vsock()
    }

    /// Sets the guest's console; default: none.
    pub fn console(mut self, mode: ConsoleMode) -> Self {
        self.console = mode;
        self
    }

    /// Adds a console that this program reads and writes.
    pub fn console_enabled(self) -> Self {
        self.console(ConsoleMode::Enabled)
    }

    /// Connects the console to this program's standard input and output. The terminal's modes are
    /// not changed.
    pub fn console_stdio(self) -> Self {
        self.console(ConsoleMode::Stdio)
    }

    /// Makes the console a virtio console, `hvc0` in the guest; default: a serial port, except on vfkit,
    /// whose console always is a virtio console. It is several times faster, and loses no output when the
    /// host is busy, as a kernel does that waits 10 ms for a serial port.
    ///
    /// The serial port stays: the kernel's messages go to both, and panics are recognised on both. The
    /// guest needs the driver `virtio_console`, and a getty on `hvc0`; [The
    /// console](crate::manual::console#a-virtio-console) lists what a guest needs. A wait ends with
    /// an error when the guest has not opened the console two minutes after its start.
    pub fn virtio_console(mut self) -> Self {
        self.virtio_console = true;
        self
    }

    /// Sets the size of the scrollback in bytes, and what happens when it is full; default: 1 MiB,
    /// dropping the oldest output.
    pub fn scrollback(mut self, bytes: usize, overflow: Overflow) -> Self {
        self.options.scrollback = bytes;
        self.options.overflow = overflow;
        self
    }

    /// Limits how many bytes one [`embed::Vm::on_ready`] call reads of each kind; default: [the
    /// built-in limits](embed#bounds), which also cap it. A smaller budget makes each call shorter,
    /// for loops with other deadlines such as drawing frames, and needs more calls.
    pub fn read_budget(mut self, bytes: usize) -> Self {
        self.options.read_budget = bytes;
        self
    }

    /// Adds a kernel argument; it overrides a generated one. A repeatable key (`console=`) is added
    /// to the values given before; any other key replaces them.
    pub fn cmdline_arg(mut self, arg: impl Into<CmdlineArg>) -> Self {
        let arg = arg.into();
        if is_repeatable(arg.key()) {
            self.cmdline.append(arg);
        } else {
            self.cmdline.arg(arg);
        }
        self
    }

    /// Adds several kernel arguments, as [`cmdline_arg`](Self::cmdline_arg).
    pub fn cmdline_args(self, args: impl IntoIterator<Item = impl Into<CmdlineArg>>) -> Self {
        args.into_iter().fold(self, |builder, arg| builder.cmdline_arg(arg))
    }

    /// Replaces the whole kernel command line. Capsa then generates no arguments: no `console=`, no
    /// `root=` and no mounts of shares. Combining it with added arguments is an error when the VM
    /// is built.
    pub fn cmdline_override(mut self, cmdline: impl Into<String>) -> Self {
        self.cmdline.override_with(cmdline);
        self
    }

    /// Sets how vCPUs are virtualised; default: the best accelerator that is available.
    pub fn accelerator(mut self, accelerator: Accelerator) -> Self {
        self.accelerator = accelerator;
        self
    }

    /// Sets what happens when the guest reboots. Default: the VM ends; on vfkit only if the guest's
    /// console shows the reboot.
    pub fn on_reboot(mut self, policy: RebootPolicy) -> Self {
        self.on_reboot = policy;
        self
    }

    /// Sets what happens when the host cannot read or write a disk's image, e.g. because its file system
    /// is full. Default: the guest gets an I/O error.
    pub fn on_disk_error(mut self, policy: DiskErrorPolicy) -> Self {
        self.on_disk_error = policy;
        self
    }

    /// Gives the guest Capsa's agent, which runs commands in the guest; see [`agent`](crate::agent).
    /// Default: no agent.
    pub fn agent(mut self, mode: AgentMode) -> Self {
        self.agent = mode;
        self
    }

    /// Forces a backend: `qemu`, `cloud-hypervisor` or `vfkit`. Default: the value of
    /// `CAPSA_BACKEND`, otherwise the first backend that can be used on this host and supports the
    /// description.
    pub fn backend(mut self, name: impl Into<String>) -> Self {
        self.choice.backend = Some(name.into());
        self
    }

    /// Sets the path of a program instead of searching for it: `qemu`, `cloud-hypervisor`, `vfkit`,
    /// or a helper such as `virtiofsd`. `path` is a path, or a bare name that is looked up in
    /// `PATH`. There is no fallback if it is missing. It takes precedence over the environment
    /// variables. Programs that know their dependencies' paths, such as those built with Nix, use
    /// this.
    pub fn program(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.choice.programs.insert(name.into(), path.into());
        self
    }

    /// The launch plan: programs, arguments and control messages. Starts nothing except the
    /// hypervisors' `--version`, and creates no run directory. A forced backend need not be usable on
    /// this host.
    ///
    /// # Errors
    ///
    /// The same as [`build_embedded`](Self::build_embedded).
    pub fn plan(&self) -> Result<LaunchPlan> {
        #[cfg(feature = "testing")]
        if let Some((_, plan)) = self.simulated()? {
            return Ok(LaunchPlan::new(plan));
        }
        self.planned(Strictness::DryRun, Vec::new()).map(|planned| LaunchPlan::new(planned.plan))
    }

    /// The backends that were rejected for this VM, each with all reasons.
    ///
    /// # Errors
    ///
    /// The same as [`build_embedded`](Self::build_embedded).
    pub fn rejected_backends(&self) -> Result<Vec<Rejection>> {
        #[cfg(feature = "testing")]
        if self.simulated()?.is_some() {
            return Ok(Vec::new());
        }
        self.planned(Strictness::Run, Vec::new()).map(|planned| planned.rejected)
    }

    /// Checks the description against the capabilities of a backend, such as those of
    /// [`backends`](crate::backend::backends), and resolves its paths. It reads no file, so
    /// a description that passes can still be rejected on this host: [`plan`](Self::plan) checks all of it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`], [`Error::MissingConfig`] or [`Error::UnsupportedFeature`], with all
    /// violations.
    pub fn validate(&self, capabilities: &BackendCapabilities) -> Result<()> {
        let (spec, mut violations) = self.described();
        violations.extend(capabilities.validate(&spec).err().into_iter().flatten());
        if violations.is_empty() { Ok(()) } else { Err(Error::from_violations(violations)) }
    }

    /// Checks the description, plans a VM for the caller's own event loop and creates its run
    /// directory. The VM owns the directory until it ends or is dropped; a simulated guest has none.
    ///
    /// Blocks, so that the event loop never does:
    ///
    /// - while it inspects files and probes the versions of programs: some milliseconds, about 100 ms
    ///   the first time;
    /// - while other processes hold the lock of the directory of run directories: less than 20 ms in
    ///   general, at most [`LOCK_TIMEOUT`](crate::host::LOCK_TIMEOUT);
    /// - while it removes what crashed programs left behind: at most 20 ms. The next
    ///   builds of this program continue until each leftover was looked at once;
    ///   [`host::sweep`](crate::host::sweep) removes all of them.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`], [`Error::MissingConfig`] or [`Error::UnsupportedFeature`] when the
    /// description is rejected; [`Error::NoBackendAvailable`] or [`Error::BackendUnavailable`] when
    /// no backend can run it on this host; [`Error::RunDirLocked`] when the lock is not free in time.
    /// Nothing is started in these cases.
    pub fn build_embedded(self) -> Result<embed::Vm> {
        let mut violations = Vec::new();
        if self.console == ConsoleMode::Stdio {
            violations.push(Violation::new(
                "console",
                ViolationKind::Unsupported,
                "a VM in the caller's event loop cannot use standard input and output",
                "enable the console and read it with a reader",
            ));
        }
        #[cfg(feature = "recording")]
        if let Err(error) = self.reject_recording() {
            violations.extend(error.violations().iter().cloned());
        }
        self.embedded(violations)
    }

    /// Builds the VM. The caller's own `violations` are reported together with all others.
    fn embedded(self, violations: Vec<Violation>) -> Result<embed::Vm> {
        #[cfg(feature = "testing")]
        if violations.is_empty()
            && let Some((guest, plan)) = self.simulated()?
        {
            return embed::Vm::simulated(plan, guest, self.options, self.resources);
        }
        let planned = self.planned(Strictness::Run, violations)?;
        embed::Vm::new(planned, self.options, self.resources)
    }

    fn planned(&self, strict: Strictness, mut violations: Vec<Violation>) -> Result<Planned> {
        let (spec, invalid) = self.described();
        violations.extend(invalid);
        let planned = choice::plan(spec, &self.choice, strict);
        if violations.is_empty() {
            return planned;
        }
        // A field that is invalid here has a placeholder in the spec.
        let others = planned.err().map(|error| error.violations().to_vec()).unwrap_or_default();
        let is_new = |other: &Violation| violations.iter().all(|known| known.field != other.field);
        let others: Vec<_> = others.into_iter().filter(is_new).collect();
        violations.extend(others);
        Err(Error::from_violations(violations))
    }

    /// The VM spec, with every path resolved.
    #[cfg(feature = "testing")]
    pub(crate) fn spec(&self) -> std::result::Result<VmSpec, Vec<Violation>> {
        let (spec, violations) = self.described();
        if violations.is_empty() { Ok(spec) } else { Err(violations) }
    }

    /// The VM spec, with every path resolved, and the violations that no backend has to find. An invalid
    /// path is `/` in the spec.
    fn described(&self) -> (VmSpec, Vec<Violation>) {
        let mut paths = Paths::default();
        let kernel = paths.taken("kernel", &self.kernel);
        let initrd = self.initrd.as_ref().map(|initrd| paths.taken("initrd", initrd));
        let disks: Vec<_> = self
            .disks
            .iter()
            .enumerate()
            .map(|(n, disk)| {
                let allowed = disk.backing.iter().enumerate();
                let backing = allowed
                    .filter_map(|(m, path)| paths.take(&format!("disks[{n}].backing[{m}]"), path))
                    .collect();
                Disk {
                    path: paths.taken(&format!("disks[{n}].path"), &disk.image.path),
                    format: disk.image.format,
                    read_only: disk.read_only,
                    ephemeral: disk.ephemeral,
                    backing,
                    allow_mounted: disk.allow_mounted,
                }
            })
            .collect();
        let shares: Vec<_> = self
            .shares
            .iter()
            .enumerate()
            .map(|(n, share)| Share {
                host: paths.taken(&format!("shares[{n}].host"), &share.host_path),
                guest: share.guest_path.clone(),
                mode: share.mode,
                mechanism: share.mechanism.clone(),
            })
            .collect();
        let network_options = self.network_options.taken(&mut paths);
        let mut violations = paths.violations;
        if self.options.scrollback == 0 {
            violations.push(Violation::new(
                "scrollback",
                ViolationKind::OutOfRange,
                "invalid scrollback size 0: a console needs at least 1 byte",
                "use 1 or more",
            ));
        }
        if self.options.read_budget == 0 {
            violations.push(Violation::new(
                "read_budget",
                ViolationKind::OutOfRange,
                "invalid read budget 0: a call must read at least 1 byte",
                "use 1 or more",
            ));
        }
        #[cfg(feature = "recording")]
        violations.extend(self.recording_violation());
        let spec = VmSpec {
            kernel,
            initrd,
            disks,
            resources: self.resources.clone(),
            shares,
            network: self.network.clone(),
            network_options,
            vsock: self.vsock,
            vsock_ports: self.vsock_ports.clone(),
            console: self.console,
            virtio_console: self.virtio_console,
            cmdline: self.cmdline.clone(),
            accelerator: self.accelerator,
            on_reboot: self.on_reboot,
            on_disk_error: self.on_disk_error,
            time_limit: self.timeout,
            agent: self.agent,
        };
        (spec, violations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Capsa, LinuxBootConfig};

    #[test]
    fn cmdline_arg_repeatable_key_keeps_all_values() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k"))
            .cmdline_arg("console=ttyS0")
            .cmdline_arg("console=hvc0")
            .cmdline_arg("quiet")
            .cmdline_arg("loglevel=3")
            .cmdline_arg("loglevel=7");
        assert_eq!(builder.cmdline.build(), "console=ttyS0 console=hvc0 quiet loglevel=7");
    }

    #[test]
    fn plan_empty_path_names_the_field() {
        let error = Capsa::vm(LinuxBootConfig::new("")).plan().unwrap_err();
        assert!(matches!(error, Error::MissingConfig(_)), "{error}");
        assert_eq!(error.violations()[0].field, "kernel");
    }

    #[test]
    fn build_embedded_stdio_console_is_rejected() {
        let error = Capsa::vm(LinuxBootConfig::new("/k")).console_stdio().build_embedded();
        assert_eq!(error.unwrap_err().violations()[0].field, "console");
    }

    #[test]
    fn validate_needs_no_host() {
        let kernel = Capsa::vm(LinuxBootConfig::new("/none")).cpus(2);
        let mut capabilities = BackendCapabilities::NONE;
        let fields = |error: Error| -> Vec<_> {
            assert!(matches!(error, Error::UnsupportedFeature(_)), "{error}");
            error.violations().iter().map(|v| v.field.clone()).collect()
        };
        let error = kernel.validate(&capabilities).unwrap_err();
        assert_eq!(fields(error), ["kernel", "initrd", "network"]);
        capabilities.guest_os.linux = true;
        capabilities.boot_methods.linux_direct = true;
        capabilities.boot_methods.linux_direct_without_initrd = true;
        capabilities.network_modes.nat = true;
        kernel.validate(&capabilities).unwrap();
        capabilities.max_cpus = Some(1);
        assert_eq!(fields(kernel.validate(&capabilities).unwrap_err()), ["cpus"]);
    }

    /// Whichever check finds them.
    #[test]
    fn build_reports_all_violations_at_once() {
        let builder = Capsa::vm(LinuxBootConfig::new(""))
            .backend("qemu")
            .cpus(0)
            .scrollback(0, Overflow::DropOldest)
            .share("", "relative", MountMode::ReadOnly);
        let error = builder.plan().unwrap_err();
        let mut fields: Vec<_> = error.violations().iter().map(|v| v.field.as_str()).collect();
        fields.sort_unstable();
        let want = ["cpus", "kernel", "scrollback", "shares[0].guest", "shares[0].host"];
        assert_eq!(fields, want, "{error}");
        let error = builder.console_stdio().build_embedded().unwrap_err();
        let fields = error.violations().iter().map(|v| v.field.as_str());
        assert!(fields.into_iter().any(|field| field == "console"), "{error}");
        assert!(error.violations().iter().any(|v| v.field == "scrollback"), "{error}");
    }

    #[test]
    fn plan_zero_scrollback_is_rejected() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k")).scrollback(0, Overflow::DropOldest);
        assert_eq!(builder.plan().unwrap_err().violations()[0].field, "scrollback");
    }

    #[test]
    fn plan_zero_read_budget_is_rejected() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k")).read_budget(0);
        assert_eq!(builder.plan().unwrap_err().violations()[0].field, "read_budget");
    }

    #[cfg(unix)]
    #[test]
    fn plan_path_not_utf8_is_rejected() {
        use std::os::unix::ffi::OsStringExt;
        let path = PathBuf::from(std::ffi::OsString::from_vec(b"/k\xff".to_vec()));
        let error = Capsa::vm(LinuxBootConfig::new(path)).plan().unwrap_err();
        assert_eq!(error.violations()[0].kind, ViolationKind::Malformed);
    }

    #[test]
    fn plan_unknown_program_lists_known_ones() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k")).program("virtiosfd", "/bin/true");
        let error = builder.plan().unwrap_err();
        assert_eq!(error.violations()[0].field, "programs.virtiosfd");
        assert!(error.violations()[0].remedy.contains("virtiofsd"), "{error}");
    }

    #[test]
    fn plan_unknown_backend_lists_known_ones() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k")).backend("xen");
        let Error::BackendUnavailable { reasons, .. } = builder.plan().unwrap_err() else {
            panic!("another error");
        };
        assert!(reasons[0].remedy.contains("qemu"), "{reasons:?}");
    }
}
