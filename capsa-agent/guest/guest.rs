//! The guest around the agent: process 1 and its root, the devices, and how far it has booted.
//!
//! The agent has file systems of its own for that, mounted before init starts and then taken out of the tree:
//! only descriptors lead to them, so that nothing in the guest can unmount or hide them.

use alloc::vec::Vec;

use crate::sys::{self, ChildEnd, Errno, Fd, O_DIRECTORY, O_PATH, Outcome};

/// How long the agent waits for the final root, and then for systemd; later, the guest is ready as it is.
const LONGEST_BOOT: u64 = 60_000;

/// How long the agent waits for another init to mount `/proc`.
const OTHER_INIT: u64 = 3_000;

/// systemd may not answer at the first attempt, for instance while it changes to the final root.
const SYSTEMCTL_ATTEMPTS: u32 = 40;

const SYSTEMCTL: [&[u8]; 2] = [b"/usr/bin/systemctl", b"/bin/systemctl"];

/// The drivers of transports.
const DRIVERS: [&[u8]; 2] = [b"vmw_vsock_virtio_transport", b"virtio_console"];

/// Where `modprobe` is.
const MODPROBE: [&[u8]; 4] =
    [b"/sbin/modprobe", b"/usr/sbin/modprobe", b"/bin/modprobe", b"/usr/bin/modprobe"];

/// The signal of systemd for powering off: SIGRTMIN+4.
const SYSTEMD_POWER_OFF: i32 = 38;

/// Inits whose power off is the program [`POWER_OFF`].
const INITS: [&[u8]; 5] = [b"init", b"openrc-init", b"runit", b"runit-init", b"s6-svscan"];

const POWER_OFF: [&[u8]; 2] = [b"/sbin/poweroff", b"/usr/sbin/poweroff"];

/// What the agent knows about the guest.
pub(crate) struct BootedGuest {
    /// `None` when the agent does not run in a guest.
    mounts: Option<OwnMounts>,
    stage: BootStage,
    stage_since: u64,
    null: Fd,
}

/// The agent's own file systems.
pub(crate) struct OwnMounts {
    pub(crate) proc: Fd,
    pub(crate) sys: Fd,
    pub(crate) dev: Fd,
    /// The root at the start: the device and inode of its directory.
    first_root: RootId,
    /// Whether the kernel command line names a root.
    names_root: bool,
}

/// How far the guest has booted.
#[derive(Debug, Clone, Copy)]
enum BootStage {
    /// Process 1 is in the initramfs and will leave it.
    Initrd,
    /// Process 1 is in its final root. So often `systemctl` has failed.
    Init { attempts: u32 },
    /// `systemctl` waits for systemd.
    Systemctl { pid: i32, attempts: u32 },
    /// Operations can run.
    Up,
}

type RootId = ([u32; 2], u64);

impl BootedGuest {
    /// No guest: operations run in the agent's own root.
    pub(crate) fn none() -> Outcome<Self> {
        let null = sys::open_at(None, b"/dev/null", sys::O_READ_WRITE, 0)?;
        Ok(Self { mounts: None, null, stage: BootStage::Up, stage_since: 0 })
    }

    /// The guest that this process has booted. `directory` exists in the initramfs.
    pub(crate) fn mount(directory: &[u8]) -> Outcome<Self> {
        let mounted = |kind: &[u8]| {
            sys::mount(kind, directory, kind, 0, b"")?;
            let opened = sys::open_at(None, directory, O_DIRECTORY, 0);
            sys::unmount_lazily(directory)?;
            opened
        };
        let (proc, sys, dev) = (mounted(b"proc")?, mounted(b"sysfs")?, mounted(b"devtmpfs")?);
        let null = sys::open_at(Some(&dev), b"null", sys::O_READ_WRITE, 0)?;
        let first_root = root_id(None, b"/")?;
        let names_root = has_argument(&proc, b"root=");
        let mounts = OwnMounts { proc, sys, dev, first_root, names_root };
        Ok(Self { mounts: Some(mounts), null, stage: BootStage::Initrd, stage_since: sys::now() })
    }

    pub(crate) fn mounts(&self) -> Option<&OwnMounts> {
        self.mounts.as_ref()
    }

    /// `/dev/null`.
    pub(crate) fn null(&self) -> &Fd {
        &self.null
    }

    /// Makes the root of process 1 that of this process.
    pub(crate) fn enter_root(&self) -> Outcome<()> {
        let Some(mounts) = &self.mounts else { return Ok(()) };
        let root = sys::open_at(Some(&mounts.proc), b"1/root", O_DIRECTORY | O_PATH, 0)?;
        sys::change_root(&root)
    }

    /// Starts `modprobe` for drivers of transports that neither the kernel nor the initrd has loaded.
    pub(crate) fn load_drivers(&self) {
        let Some(mounts) = &self.mounts else { return };
        let is_missing = |name: &&[u8]| {
            sys::stat_at(Some(&mounts.sys), &[b"module/", *name].concat(), true).is_err()
        };
        let missing = DRIVERS.into_iter().filter(is_missing);
        let options = [&b"modprobe"[..], b"-a", b"-q"];
        let args: Vec<_> = options.into_iter().chain(missing).map(<[u8]>::to_vec).collect();
        if args.len() == options.len() || !matches!(sys::fork(), Ok(None)) {
            return;
        }
        self.exec_in_root(&MODPROBE, &args)
    }

    /// Ends the guest through process 1, if that can; whether it was asked. Call it in the guest's root.
    pub(crate) fn ask_init_to_end(&self) -> Outcome<bool> {
        let Some(mounts) = &self.mounts else { return Err(Errno::EINVAL) };
        let program = mounts.init_program();
        if program == b"systemd" {
            return sys::kill(1, SYSTEMD_POWER_OFF).map(|()| true);
        }
        if program.starts_with(b"busybox") {
            // Its init, or a script that has a trap for it. A process 1 without a handler ignores signals.
            let handles = mounts.init_handles(sys::SIGUSR2);
            return if handles { sys::kill(1, sys::SIGUSR2).map(|()| true) } else { Ok(false) };
        }
        if !INITS.contains(&&program[..]) {
            return Ok(false);
        }
        let Some(power_off) =
            POWER_OFF.into_iter().find(|path| sys::stat_at(None, path, true).is_ok())
        else {
            return Ok(false);
        };
        if sys::fork()?.is_none() {
            sys::begin_session();
            let env = [b"PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_vec()];
            let Errno(errno) = sys::exec(power_off, &[b"poweroff".to_vec()], &env);
            sys::exit(errno)
        }
        Ok(true)
    }

    /// Sets whether the kernel may kill this process when memory is short: the agent is killed last.
    pub(crate) fn set_out_of_memory_score(&self, score: &[u8]) {
        if let Some(mounts) = &self.mounts
            && let Ok(file) =
                sys::open_at(Some(&mounts.proc), b"self/oom_score_adj", sys::O_WRITE, 0)
        {
            let _ = file.write(score);
        }
    }

    /// Opens the agent's end of a new terminal.
    pub(crate) fn open_terminal(&self) -> Outcome<Fd> {
        let flags = sys::O_READ_WRITE | sys::O_NO_TERMINAL | sys::O_NONBLOCK;
        let (proc, root) = match &self.mounts {
            Some(mounts) => (Some(&mounts.proc), &b"1/root"[..]),
            None => (None, &b""[..]),
        };
        let open = |path: &[u8]| sys::open_at(proc, &[root, path].concat(), flags, 0);
        let terminal = open(b"/dev/ptmx").or_else(|_| open(b"/dev/pts/ptmx"))?;
        terminal.unlock_terminal()?;
        Ok(terminal)
    }

    /// Whether operations can run: process 1 has reached its final root, and init has mounted file systems there.
    /// Call it again and again until it is true.
    pub(crate) fn is_ready(&mut self, now: u64) -> bool {
        let Some(mounts) = &self.mounts else { return true };
        let waited = now - self.stage_since;
        let (is_passed, limit) = match self.stage {
            BootStage::Initrd => (mounts.is_root_final(), LONGEST_BOOT),
            BootStage::Init { .. } if mounts.init_program() != b"systemd" => {
                (mounts.exists(b"1/root/proc/1"), OTHER_INIT)
            }
            BootStage::Init { attempts } => {
                if attempts < SYSTEMCTL_ATTEMPTS && mounts.exists(b"1/root/run/systemd/private") {
                    self.start_systemctl(attempts);
                }
                (attempts >= SYSTEMCTL_ATTEMPTS, LONGEST_BOOT)
            }
            BootStage::Systemctl { .. } => (false, LONGEST_BOOT),
            BootStage::Up => return true,
        };
        if !is_passed && waited < limit {
            return false;
        }
        self.stage = match self.stage {
            BootStage::Initrd => BootStage::Init { attempts: 0 },
            _ => BootStage::Up,
        };
        self.stage_since = now;
        self.is_ready(now)
    }

    /// Whether the guest becomes ready with the end of a child, or such a child should be started again.
    pub(crate) fn waits_for_child(&self) -> bool {
        matches!(self.stage, BootStage::Systemctl { .. } | BootStage::Init { attempts: 1.. })
    }

    /// A child has ended that is no operation. Whether the guest is ready now.
    pub(crate) fn handle_child_end(&mut self, pid: i32, end: ChildEnd) -> bool {
        match self.stage {
            BootStage::Systemctl { pid: waiting, attempts } if waiting == pid => {
                let is_up = matches!(end, ChildEnd::Exited(0));
                self.stage = match is_up {
                    true => BootStage::Up,
                    false => BootStage::Init { attempts: attempts + 1 },
                };
                is_up
            }
            _ => false,
        }
    }

    /// Waits for `sysinit.target` of systemd: the file systems are mounted, and `/run` is filled. systemd has that in
    /// its queue already, so that nothing is started that would not be.
    fn start_systemctl(&mut self, attempts: u32) {
        match sys::fork() {
            Ok(Some(pid)) => self.stage = BootStage::Systemctl { pid, attempts },
            Ok(None) => {
                let args = ["systemctl", "--quiet", "--no-ask-password", "start", "sysinit.target"];
                self.exec_in_root(&SYSTEMCTL, &args.map(|arg| arg.as_bytes().to_vec()))
            }
            Err(_) => self.stage = BootStage::Init { attempts: attempts + 1 },
        }
    }

    /// Becomes the first of these programs that exists, in the guest's root.
    fn exec_in_root(&self, programs: &[&[u8]], args: &[Vec<u8>]) -> ! {
        self.set_out_of_memory_score(b"0");
        sys::begin_session();
        sys::reset_signals();
        if self.enter_root().is_ok() {
            for program in programs {
                let _ = sys::exec(program, args, &[]);
            }
        }
        sys::exit(127)
    }
}

impl OwnMounts {
    /// Whether process 1 runs a program outside of the initramfs, or stays there because the kernel command line names
    /// no other root. The systemd of an initrd has the final root a moment before it executes the one there.
    fn is_root_final(&self) -> bool {
        let Ok(root) = root_id(Some(&self.proc), b"1/root/") else { return false };
        let stays = !self.names_root && !self.exists(b"1/root/etc/initrd-release");
        if root != self.first_root {
            let program = root_id(Some(&self.proc), b"1/exe");
            return program.is_ok_and(|(device, _)| device != self.first_root.0);
        }
        stays || self.has_terminal_session()
    }

    /// Whether a process has a controlling terminal: init has started a shell or a login, so it stays in
    /// this root although the kernel command line names another.
    fn has_terminal_session(&self) -> bool {
        let Ok(directory) = sys::open_at(Some(&self.proc), b".", O_DIRECTORY, 0) else {
            return false;
        };
        while let Ok(entries) = directory.entries()
            && !entries.is_empty()
        {
            let mut names = entries.iter().map(|(_, name)| name);
            if names.any(|name| name[0].is_ascii_digit() && self.has_terminal(name)) {
                return true;
            }
        }
        false
    }

    /// Field 7 of `stat`; the name of the program, field 2, is in parentheses and may contain anything.
    fn has_terminal(&self, process: &[u8]) -> bool {
        let path = [process, b"/stat"].concat();
        let stat = sys::read_file(Some(&self.proc), &path, 4096).unwrap_or_default();
        let fields = stat.rsplit(|&byte| byte == b')').next().unwrap_or_default();
        fields.split(|&byte| byte == b' ').nth(5).is_some_and(|number| number != b"0")
    }

    /// Whether a file of `/proc` exists.
    fn exists(&self, path: &[u8]) -> bool {
        sys::stat_at(Some(&self.proc), path, true).is_ok()
    }

    /// The name of the program of process 1.
    fn init_program(&self) -> Vec<u8> {
        let path = sys::read_link(Some(&self.proc), b"1/exe").unwrap_or_default();
        path.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_vec()
    }

    /// Whether process 1 has a handler for a signal.
    fn init_handles(&self, signal: i32) -> bool {
        let status = sys::read_file(Some(&self.proc), b"1/status", 64 * 1024).unwrap_or_default();
        let lines = status.split(|&byte| byte == b'\n');
        let caught = lines.filter_map(|line| line.strip_prefix(b"SigCgt:")).next();
        let caught = caught.and_then(|mask| hexadecimal(mask.trim_ascii()));
        caught.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
    }
}

/// Whether an argument of the kernel begins like this.
fn has_argument(proc: &Fd, name: &[u8]) -> bool {
    let line = sys::read_file(Some(proc), b"cmdline", 4096).unwrap_or_default();
    line.split(u8::is_ascii_whitespace).any(|argument| argument.starts_with(name))
}

/// A hexadecimal number.
fn hexadecimal(text: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(text).ok()?, 16).ok()
}

fn root_id(directory: Option<&Fd>, path: &[u8]) -> Outcome<RootId> {
    let stat = sys::stat_at(directory, path, true)?;
    Ok((stat.device, stat.inode))
}
