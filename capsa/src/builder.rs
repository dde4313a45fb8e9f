//! The builder of Linux machines.

use std::path::PathBuf;
use std::time::Duration;

use capsa_io::supervisor::Options;
use capsa_proto::capabilities::{Violation, ViolationKind};
use capsa_proto::cmdline::{CmdlineArg, KernelCmdline, is_repeatable};
use capsa_proto::console::Overflow;
use capsa_proto::lifecycle::Timing;
use capsa_proto::path::HostPath;
use capsa_proto::plan::LaunchPlan;
use capsa_proto::sim::SimulatedGuest;
use capsa_proto::spec::{
    Accelerator, ConsoleMode, Disk, MountMode, NetworkMode, RebootPolicy, ResourceConfig, Share,
    ShareMechanism, VmSpec, VsockDirection, VsockPort,
};

use crate::backends::{self, BackendChoice, Planned, Rejection, Strictness};
use crate::{DiskImage, Error, Recording, Result, SharedDir, embed};

/// Says what a Linux machine has, then builds it.
///
/// Nothing is looked at and nothing can fail before one of the ends of the chain: [`build`],
/// [`build_driven`], [`build_embedded`], [`plan`].
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
    disks: Vec<DiskImage>,
    resources: ResourceConfig,
    shares: Vec<SharedDir>,
    network: NetworkMode,
    vsock: bool,
    vsock_ports: Vec<VsockPort>,
    console: ConsoleMode,
    cmdline: KernelCmdline,
    accelerator: Accelerator,
    on_reboot: RebootPolicy,
    timeout: Option<Duration>,
    choice: BackendChoice,
    pub(crate) simulated: Option<SimulatedGuest>,
    recording: Option<Recording>,
    pub(crate) options: Options,
}

impl LinuxVmBuilder {
    pub(crate) fn new(kernel: PathBuf, initrd: Option<PathBuf>, disks: Vec<DiskImage>) -> Self {
        Self {
            kernel,
            initrd,
            disks,
            resources: ResourceConfig::default(),
            shares: Vec::new(),
            network: NetworkMode::default(),
            vsock: false,
            vsock_ports: Vec::new(),
            console: ConsoleMode::default(),
            cmdline: KernelCmdline::new(),
            accelerator: Accelerator::default(),
            on_reboot: RebootPolicy::default(),
            timeout: None,
            choice: BackendChoice::default(),
            simulated: None,
            recording: None,
            options: Options::default(),
        }
    }

    /// Number of virtual CPUs; 1 unless said.
    pub fn cpus(mut self, count: u32) -> Self {
        self.resources.cpus = count;
        self
    }

    /// Memory in MiB; 512 unless said.
    pub fn memory_mb(mut self, mb: u32) -> Self {
        self.resources.memory_mb = mb;
        self
    }

    /// Stops the machine when it has run this long: the guest is asked, and after the grace period
    /// its power is cut.
    pub fn timeout(mut self, duration: Duration) -> Self {
        self.timeout = Some(duration);
        self
    }

    /// How long the guest may take to power off once the time of [`timeout`](Self::timeout) is over,
    /// before its power is cut; 30 seconds unless said. A stop names its own.
    pub fn grace(mut self, duration: Duration) -> Self {
        self.options.timing.grace = duration;
        self
    }

    /// One more disk: `/dev/vdb` after the first, and so on.
    pub fn disk(mut self, disk: DiskImage) -> Self {
        self.disks.push(disk);
        self
    }

    /// Shares a directory by the best mechanism there is. See [`SharedDir`].
    pub fn share(
        self,
        host: impl Into<PathBuf>,
        guest: impl Into<String>,
        mode: MountMode,
    ) -> Self {
        self.shares([SharedDir::new(host, guest, mode)])
    }

    /// Shares a directory by this mechanism.
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

    /// The guest's network; NAT unless said.
    pub fn network(mut self, mode: NetworkMode) -> Self {
        self.network = mode;
        self
    }

    /// No network device.
    pub fn no_network(self) -> Self {
        self.network(NetworkMode::None)
    }

    /// A device for sockets between host and guest: streams to and from its ports with
    /// [`VmHandle::vsock_connect`](crate::VmHandle::vsock_connect) and
    /// [`VmHandle::vsock_listen`](crate::VmHandle::vsock_listen), without any network.
    pub fn vsock(mut self) -> Self {
        self.vsock = true;
        self
    }

    /// [`LinuxVmBuilder::vsock`], and a port that will be used, for each call. vfkit has to know them
    /// before the start; the other backends serve every port, named or not.
    pub fn vsock_port(mut self, port: u32, direction: VsockDirection) -> Self {
        self.vsock_ports.push(VsockPort { port, direction });
        self.vsock()
    }

    /// The guest's console; none unless said.
    pub fn console(mut self, mode: ConsoleMode) -> Self {
        self.console = mode;
        self
    }

    /// A console for this program to read and write.
    pub fn console_enabled(self) -> Self {
        self.console(ConsoleMode::Enabled)
    }

    /// A console on this program's standard input and output. The terminal's modes are not touched.
    pub fn console_stdio(self) -> Self {
        self.console(ConsoleMode::Stdio)
    }

    /// How much console output is kept, in bytes, and what happens when more comes; 1 MiB and
    /// dropping the oldest unless said.
    pub fn scrollback(mut self, bytes: usize, overflow: Overflow) -> Self {
        self.options.scrollback = bytes;
        self.options.overflow = overflow;
        self
    }

    /// How many bytes one [`embed::Vm::on_ready`] reads at most of each kind, where that is less than
    /// [the limits](embed#bounds) it has anyway. A loop with other things to do in time, such as frames
    /// to draw, has its turn sooner, and more turns.
    pub fn read_budget(mut self, bytes: usize) -> Self {
        self.options.read_budget = bytes;
        self
    }

    /// Records the console to a file from its first byte on, as [`Recording`] says. Needs a console.
    pub fn record(mut self, recording: impl Into<Recording>) -> Self {
        self.recording = Some(recording.into());
        self
    }

    /// Adds a kernel argument, over the generated ones. A key that can stand several times
    /// (`console=`) is added to the ones given before, any other replaces them.
    pub fn cmdline_arg(mut self, arg: impl Into<CmdlineArg>) -> Self {
        let arg = arg.into();
        if is_repeatable(arg.key()) {
            self.cmdline.append(arg);
        } else {
            self.cmdline.arg(arg);
        }
        self
    }

    /// Adds several kernel arguments.
    pub fn cmdline_args(self, args: impl IntoIterator<Item = impl Into<CmdlineArg>>) -> Self {
        args.into_iter().fold(self, |builder, arg| builder.cmdline_arg(arg))
    }

    /// Puts this in place of the whole kernel command line. Nothing is generated any more: neither
    /// `console=` nor `root=` nor the mounts of shares. Arguments added besides are refused.
    pub fn cmdline_override(mut self, cmdline: impl Into<String>) -> Self {
        self.cmdline.override_with(cmdline);
        self
    }

    /// How the CPU is virtualised; the best there is unless said.
    pub fn accelerator(mut self, accelerator: Accelerator) -> Self {
        self.accelerator = accelerator;
        self
    }

    /// What a reboot of the guest does; unless said it ends the machine, on vfkit as far as the guest's
    /// console tells.
    pub fn on_reboot(mut self, policy: RebootPolicy) -> Self {
        self.on_reboot = policy;
        self
    }

    /// This backend or none: `qemu`, `cloud-hypervisor`, `vfkit`. Unless said, `CAPSA_BACKEND`, else
    /// the first that is usable here and can do all that is asked.
    pub fn backend(mut self, name: impl Into<String>) -> Self {
        self.choice.backend = Some(name.into());
        self
    }

    /// Uses this program instead of searching for one: `qemu`, `cloud-hypervisor`, `vfkit`, or a
    /// helper such as `virtiofsd`. A path, or a bare name to look for in `PATH`; whatever is there
    /// must do, nothing else is tried. It goes before the environment variables, and for programs
    /// that know where theirs are, as those built with Nix do.
    pub fn program(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.choice.programs.insert(name.into(), path.into());
        self
    }

    /// The backend that was named is taken whatever speaks against it on this host: no KVM, another
    /// operating system. For tests against a stand-in of a hypervisor.
    #[doc(hidden)]
    pub fn trust_backend(mut self) -> Self {
        self.choice.trusted = true;
        self
    }

    /// Changes how long each phase of the lifecycle may take. For tests, which must not wait for the
    /// defaults.
    #[doc(hidden)]
    pub fn timing(mut self, change: impl FnOnce(&mut Timing)) -> Self {
        change(&mut self.options.timing);
        self
    }

    /// What would be started: programs, arguments, control messages. Starts nothing but the
    /// hypervisors' `--version`. A backend that was named need not be usable on this host.
    ///
    /// # Errors
    ///
    /// The same as [`build_embedded`](Self::build_embedded).
    pub fn plan(&self) -> Result<LaunchPlan> {
        self.planned(Strictness::DryRun).map(|planned| planned.plan)
    }

    /// The backends that were passed over for this machine, each with every reason.
    ///
    /// # Errors
    ///
    /// The same as [`build_embedded`](Self::build_embedded).
    pub fn rejected_backends(&self) -> Result<Vec<Rejection>> {
        self.planned(Strictness::Run).map(|planned| planned.rejected)
    }

    /// Checks and plans the machine for a loop of your own. Blocks while it looks at files and asks
    /// programs for their versions: milliseconds, some 100 the first time.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] and its kin when something asked for cannot be had,
    /// [`Error::NoBackendAvailable`] or [`Error::BackendUnavailable`] when nothing can run it here.
    /// Nothing was started then.
    pub fn build_embedded(self) -> Result<embed::Vm> {
        if self.console == ConsoleMode::Stdio {
            return Err(Error::from_violations(vec![Violation::new(
                "console",
                ViolationKind::Unsupported,
                "a machine in a loop of your own has no standard input and output",
                "enable the console, and take its bytes with a reader",
            )]));
        }
        if self.recording.is_some() {
            return Err(Error::from_violations(vec![Violation::new(
                "record",
                ViolationKind::Unsupported,
                "a machine in a loop of your own has nobody who writes a recording",
                "take its bytes with a reader, and encode them with capsa::asciicast",
            )]));
        }
        self.embedded()
    }

    fn embedded(self) -> Result<embed::Vm> {
        let planned = self.planned(Strictness::Run)?;
        Ok(embed::Vm::new(planned, self.options, self.resources)?)
    }

    fn planned(&self, strict: Strictness) -> Result<Planned> {
        let spec = self.spec().map_err(Error::from_violations)?;
        if let Some(simulated) = self.simulated.clone() {
            if self.vsock || !self.vsock_ports.is_empty() {
                return Err(Error::from_violations(vec![Violation::new(
                    "vsock",
                    ViolationKind::Unsupported,
                    "a guest that is played has no sockets",
                    "leave vsock away, or test this with a hypervisor",
                )]));
            }
            return backends::plan_simulated(simulated, self.console, self.on_reboot, self.timeout);
        }
        backends::plan(spec, &self.choice, strict)
    }

    /// The specification, with every path made absolute.
    fn spec(&self) -> std::result::Result<VmSpec, Vec<Violation>> {
        let mut paths = Paths::default();
        let kernel = paths.take("kernel", &self.kernel);
        let initrd = self.initrd.as_ref().map(|initrd| paths.take("initrd", initrd));
        let disks: Vec<_> = self
            .disks
            .iter()
            .enumerate()
            .map(|(n, disk)| {
                Some(Disk {
                    path: paths.take(&format!("disks[{n}].path"), &disk.path)?,
                    format: disk.format,
                    read_only: disk.read_only,
                    ephemeral: disk.ephemeral,
                })
            })
            .collect();
        let shares: Vec<_> = self
            .shares
            .iter()
            .enumerate()
            .map(|(n, share)| {
                Some(Share {
                    host: paths.take(&format!("shares[{n}].host"), &share.host_path)?,
                    guest: share.guest_path.clone(),
                    mode: share.mode,
                    mechanism: share.mechanism.clone(),
                })
            })
            .collect();
        let mut refused = paths.refused;
        if self.options.scrollback == 0 {
            refused.push(Violation::new(
                "scrollback",
                ViolationKind::OutOfRange,
                "a console that keeps nothing cannot be read",
                "give 1 or more",
            ));
        }
        if self.options.read_budget == 0 {
            refused.push(Violation::new(
                "read_budget",
                ViolationKind::OutOfRange,
                "a call that reads nothing never gets anywhere",
                "give 1 or more",
            ));
        }
        if self.recording.is_some() && self.console == ConsoleMode::Disabled {
            refused.push(Violation::new(
                "record",
                ViolationKind::NotGiven,
                "there is no console to record",
                "enable the console",
            ));
        }
        let Some(kernel) = kernel.filter(|_| refused.is_empty()) else {
            return Err(refused);
        };
        Ok(VmSpec {
            kernel,
            initrd: initrd.flatten(),
            disks: disks.into_iter().flatten().collect(),
            resources: self.resources.clone(),
            shares: shares.into_iter().flatten().collect(),
            network: self.network,
            vsock: self.vsock,
            vsock_ports: self.vsock_ports.clone(),
            console: self.console,
            cmdline: self.cmdline.clone(),
            accelerator: self.accelerator,
            on_reboot: self.on_reboot,
            time_limit: self.timeout,
        })
    }
}

/// Turns paths into what the core carries, and collects those that cannot be.
#[derive(Default)]
struct Paths {
    refused: Vec<Violation>,
}

impl Paths {
    fn take(&mut self, field: &str, path: &PathBuf) -> Option<HostPath> {
        if path.as_os_str().is_empty() {
            let kind = ViolationKind::NotGiven;
            self.refused.push(Violation::new(field, kind, "no path was given", "give one"));
            return None;
        }
        let text =
            std::path::absolute(path).ok().and_then(|p| p.into_os_string().into_string().ok());
        let taken = text.and_then(|text| HostPath::new(text).ok());
        if taken.is_none() {
            self.refused.push(Violation::new(
                field,
                ViolationKind::Malformed,
                format!("{path:?} is not UTF-8 or holds a NUL"),
                "rename it: control channels carry paths as JSON text",
            ));
        }
        taken
    }
}

#[cfg(feature = "async")]
mod futures {
    use super::*;
    use crate::driver::{self, Driver};
    use crate::handle::VmHandle;
    use crate::recording::Recorder;

    impl LinuxVmBuilder {
        /// Checks and plans the machine. Nothing is started before [`VmHandle::start`].
        ///
        /// The looking at files and programs happens on a thread of its own, so no executor is
        /// blocked. Dropping the future gives the machine up.
        ///
        /// # Errors
        ///
        /// As [`build_embedded`](Self::build_embedded).
        pub async fn build(self) -> Result<VmHandle> {
            let (vm, recorder) = self.prepared().await?;
            let shared = driver::on_thread(vm)?;
            recorder.map(|recorder| recorder.begin(&shared)).transpose()?;
            Ok(VmHandle::new(shared))
        }

        /// As [`build`](Self::build), for programs that want no thread of ours: the [`Driver`] is a
        /// future that must be polled (spawned on an executor, or joined) for anything to happen. It
        /// waits through async-io, whose own thread starts with it unless it runs already.
        ///
        /// # Errors
        ///
        /// As [`build_embedded`](Self::build_embedded).
        pub async fn build_driven(self) -> Result<(VmHandle, Driver)> {
            let (vm, recorder) = self.prepared().await?;
            let (shared, driver) = driver::by_future(vm)?;
            recorder.map(|recorder| recorder.begin(&shared)).transpose()?;
            Ok((VmHandle::new(shared), driver))
        }

        async fn prepared(self) -> Result<(embed::Vm, Option<Recorder>)> {
            driver::unblock("capsa-probe", move || {
                let recording = self.recording.clone();
                let vm = self.embedded()?;
                Ok((vm, recording.map(|recording| recording.create()).transpose()?))
            })
            .await?
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Capsa, LinuxBootConfig};

    #[test]
    fn a_repeatable_key_given_twice_stands_twice() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k"))
            .cmdline_arg("console=ttyS0")
            .cmdline_arg("console=hvc0")
            .cmdline_arg("quiet")
            .cmdline_arg("loglevel=3")
            .cmdline_arg("loglevel=7");
        assert_eq!(builder.cmdline.build(), "console=ttyS0 console=hvc0 quiet loglevel=7");
    }

    #[test]
    fn a_path_that_was_not_given_is_named() {
        let error = Capsa::vm(LinuxBootConfig::new("")).plan().unwrap_err();
        assert!(matches!(error, Error::MissingConfig(_)), "{error}");
        assert_eq!(error.violations()[0].field, "kernel");
    }

    #[test]
    fn a_loop_of_ones_own_has_no_standard_input_and_output() {
        let error = Capsa::vm(LinuxBootConfig::new("/k")).console_stdio().build_embedded();
        assert_eq!(error.unwrap_err().violations()[0].field, "console");
    }

    #[test]
    fn a_scrollback_of_nothing_is_refused() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k")).scrollback(0, Overflow::DropOldest);
        assert_eq!(builder.plan().unwrap_err().violations()[0].field, "scrollback");
    }

    #[test]
    fn a_budget_of_nothing_is_refused() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k")).read_budget(0);
        assert_eq!(builder.plan().unwrap_err().violations()[0].field, "read_budget");
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_not_utf8_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let path = PathBuf::from(std::ffi::OsString::from_vec(b"/k\xff".to_vec()));
        let error = Capsa::vm(LinuxBootConfig::new(path)).plan().unwrap_err();
        assert_eq!(error.violations()[0].kind, ViolationKind::Malformed);
    }

    #[test]
    fn an_unknown_program_lists_those_there_are() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k")).program("virtiosfd", "/bin/true");
        let error = builder.plan().unwrap_err();
        assert_eq!(error.violations()[0].field, "programs.virtiosfd");
        assert!(error.violations()[0].remedy.contains("virtiofsd"), "{error}");
    }

    #[test]
    fn an_unknown_backend_lists_those_there_are() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k")).backend("xen");
        let Error::BackendUnavailable { reasons, .. } = builder.plan().unwrap_err() else {
            panic!("another error");
        };
        assert!(reasons[0].remedy.contains("qemu"), "{reasons:?}");
    }
}
