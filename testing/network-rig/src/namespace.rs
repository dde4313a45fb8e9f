//! [`Namespace`]: a network namespace, kept by a process that ends with its owner.
//!
//! With root privileges a namespace is only a network. Without them it is in a user namespace of the caller's,
//! which the host namespace makes and the others join.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, geteuid};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::RigError;

/// The user and the group that [`Namespace::new_unprivileged`] runs as.
const UNPRIVILEGED_ID: u32 = 65534;

/// The name of the tap device of a guest.
pub const TAP: &str = "tap0";

/// A network namespace. Dropping it ends its programs.
#[derive(Debug)]
pub struct Namespace {
    program: PathBuf,
    holder: Child,
    socket: UnixStream,
}

impl Namespace {
    /// A namespace whose loopback is up. `program` is the program `network-rig`.
    ///
    /// # Errors
    ///
    /// When this host permits no namespaces.
    pub fn new(program: &Path) -> Result<Self, RigError> {
        let mut hold = Command::new(program);
        hold.args(["hold", if is_root() { "network" } else { "user" }]);
        Self::start(program, hold)
    }

    /// A namespace beside this one: of the same user namespace.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn beside(&self) -> Result<Self, RigError> {
        let mut hold = self.command(&self.program);
        hold.args(["hold", "network"]);
        Self::start(&self.program, hold)
    }

    /// A namespace of an ordinary user, in a user namespace. Only root can create it.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn new_unprivileged(program: &Path) -> Result<Self, RigError> {
        let mut hold = unprivileged(program, program);
        hold.args(["hold", "user"]);
        Self::start(program, hold)
    }

    fn start(program: &Path, mut hold: Command) -> Result<Self, RigError> {
        let (socket, end) = UnixStream::pair()?;
        let holder = hold.stdin(OwnedFd::from(end)).stderr(Stdio::piped()).spawn()?;
        drop(hold);
        let mut namespace = Self { program: program.to_owned(), holder, socket };
        namespace.expect_reply("create a namespace")?;
        Ok(namespace)
    }

    /// Creates the tap device of a guest and returns its descriptor.
    ///
    /// # Errors
    ///
    /// When this host has no tap devices.
    pub fn create_tap(&mut self) -> Result<OwnedFd, RigError> {
        self.socket.write_all(b"t")?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut data = [IoSliceMut::new(&mut byte)];
        recvmsg(&self.socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let received = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        match received {
            Some(tap) => Ok(tap),
            None => Err(self.failure("create a tap device")),
        }
    }

    /// A command in this namespace. It is killed when the calling thread ends.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["in", &self.pid().to_string()]).arg(program);
        command
    }

    /// A command of the program `network-rig` in this namespace.
    pub fn rig(&self, name: &str) -> Command {
        let mut command = self.command(&self.program);
        command.arg(name);
        command
    }

    /// Runs `ip` with the words of `arguments` in this namespace.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn ip(&self, arguments: &str) -> Result<(), RigError> {
        capsa_fixtures::command::output(self.command("ip").args(arguments.split_whitespace()))?;
        Ok(())
    }

    /// Connects this namespace with another one, by a pair of devices named `name`. Each is up and has the
    /// addresses of its side.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn connect(
        &self,
        name: &str,
        addresses: &[&str],
        other: &Self,
        other_addresses: &[&str],
    ) -> Result<(), RigError> {
        let pid = other.pid();
        self.ip(&format!("link add {name} type veth peer name {name} netns {pid}"))?;
        for (namespace, addresses) in [(self, addresses), (other, other_addresses)] {
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                namespace.ip(&format!("addr add {address} dev {name} {nodad}"))?;
            }
            namespace.ip(&format!("link set {name} up"))?;
        }
        Ok(())
    }

    /// The process that keeps the namespace.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn expect_reply(&mut self, operation: &str) -> Result<(), RigError> {
        match self.socket.read_exact(&mut [0]) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure(operation)),
        }
    }

    /// The holder has ended: what it printed.
    fn failure(&mut self, operation: &str) -> RigError {
        let mut why = String::new();
        if let Some(errors) = &mut self.holder.stderr {
            let _ = errors.read_to_string(&mut why);
        }
        format!("cannot {operation}: {}", why.trim()).into()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn is_root() -> bool {
    geteuid().is_root()
}

/// A command that runs `program` as an ordinary user that may create tap devices. The caller is root.
pub fn unprivileged(rig: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(rig);
    command.arg("unprivileged").arg(program);
    command
}

// What the program `network-rig` does. Each function changes its process, which has one thread.

/// Creates a namespace and keeps it until standard input, a socket, ends. Creates a tap device for each byte
/// that it receives, and sends its descriptor.
pub(crate) fn hold(kind: &str) -> Result<(), RigError> {
    let (uid, gid) = (geteuid(), nix::unistd::getegid());
    if kind == "user" {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    } else {
        unshare(CloneFlags::CLONE_NEWNET)?;
    }
    capsa_fixtures::command::output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    // Ping sockets for every group.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.write_all(&[1])?;
    let mut taps = Vec::new();
    while socket.read(&mut [0])? > 0 {
        let tap = capsa_io::tap::open_tap(TAP)?;
        let descriptors = [tap.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(&socket, &[io::IoSlice::new(&[1])], &mut control, SendFlags::empty())?;
        taps.push(tap);
    }
    Ok(())
}

/// Joins the namespace of a process and becomes the program.
pub(crate) fn join(pid: &str, program: &OsStr, arguments: &[std::ffi::OsString]) -> RigError {
    let join = || -> Result<(), RigError> {
        let open = |name| fs::File::open(format!("/proc/{pid}/ns/{name}"));
        let network = open("net")?;
        if !is_root() {
            setns(open("user")?, CloneFlags::CLONE_NEWUSER)?;
        }
        setns(network, CloneFlags::CLONE_NEWNET)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(())
    };
    match join() {
        Ok(()) => Command::new(program).args(arguments).exec().into(),
        Err(error) => format!("cannot join the namespace of process {pid}: {error}").into(),
    }
}

/// Becomes an ordinary user that may create tap devices, and then the program.
pub(crate) fn drop_privileges(program: &OsStr, arguments: &[std::ffi::OsString]) -> RigError {
    let prepare = || -> Result<(), RigError> {
        // The node of the host may be readable by root only: a directory of our own covers it.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let is_node = |path| fs::metadata(path).is_ok_and(|it| it.file_type().is_char_device());
        if !is_node("/dev/net/tun") {
            return Err("this host has no tap devices: /dev/net/tun does not exist".into());
        }
        mount(Some("tun"), "/dev/net", Some("tmpfs"), MsFlags::empty(), none)?;
        let mode = Mode::from_bits_truncate(0o666);
        mknod("/dev/net/tun", SFlag::S_IFCHR, mode, makedev(10, 200))?;
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            "/dev/net/tun",
            mode,
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )?;
        nix::unistd::setgroups(&[])?;
        nix::unistd::setgid(Gid::from_raw(UNPRIVILEGED_ID))?;
        nix::unistd::setuid(Uid::from_raw(UNPRIVILEGED_ID))?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(())
    };
    match prepare() {
        Ok(()) => Command::new(program).args(arguments).exec().into(),
        Err(error) => format!("cannot become an ordinary user: {error}").into(),
    }
}
