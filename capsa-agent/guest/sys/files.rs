//! Files, directories, descriptors, terminals and sockets.

use alloc::vec;
use alloc::vec::Vec;

use super::arch::number as nr;
use super::{Fd, Outcome, arch, call, terminated};

pub(crate) const O_WRITE: i32 = 1;
pub(crate) const O_READ_WRITE: i32 = 2;
pub(crate) const O_CREATE: i32 = 0o100;
pub(crate) const O_EXCLUSIVE: i32 = 0o200;
pub(crate) const O_NO_TERMINAL: i32 = 0o400;
pub(crate) const O_TRUNCATE: i32 = 0o1000;
pub(crate) const O_APPEND: i32 = 0o2000;
pub(crate) const O_NONBLOCK: i32 = 0o4000;
pub(crate) const O_PATH: i32 = 0o10_000_000;
pub(crate) const O_DIRECTORY: i32 = arch::O_DIRECTORY;
pub(crate) const O_NOFOLLOW: i32 = arch::O_NOFOLLOW;
const O_CLOEXEC: usize = 0o2_000_000;

const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const AT_REMOVEDIR: usize = 0x200;

/// A condition that [`poll`] waits for.
pub(crate) const POLL_IN: i16 = 1;
pub(crate) const POLL_OUT: i16 = 4;
/// Conditions that [`poll`] always reports.
pub(crate) const POLL_ERROR: i16 = 8;
pub(crate) const POLL_HANGUP: i16 = 16;

/// What a descriptor waits for, and what occurred.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct PollEntry {
    fd: i32,
    events: i16,
    pub(crate) occurred: i16,
}

impl PollEntry {
    pub(crate) fn new(fd: &Fd, events: i16) -> Self {
        Self { fd: fd.0, events, occurred: 0 }
    }
}

/// Seconds and nanoseconds.
#[repr(C)]
struct TimeSpec(i64, i64);

/// Waits for a descriptor, at most this long.
pub(crate) fn poll(entries: &mut [PollEntry], milliseconds: u64) {
    let time = TimeSpec((milliseconds / 1000) as i64, (milliseconds % 1000 * 1_000_000) as i64);
    // SAFETY: the kernel writes to `entries` and `time`, of the length that is passed.
    let _ = unsafe {
        call(
            nr::PPOLL,
            [entries.as_mut_ptr() as usize, entries.len(), &raw const time as usize, 0, 8, 0],
        )
    };
}

/// The monotonic clock in milliseconds.
pub(crate) fn now() -> u64 {
    let mut time = TimeSpec(0, 0);
    // SAFETY: the kernel writes to `time`.
    let _ = unsafe { call(nr::CLOCK_GETTIME, [1, &raw mut time as usize, 0, 0, 0, 0]) };
    time.0 as u64 * 1000 + time.1 as u64 / 1_000_000
}

/// Sets the clock: nanoseconds since 1970.
pub(crate) fn set_clock(time: u64) -> Outcome<()> {
    let time = TimeSpec((time / 1_000_000_000) as i64, (time % 1_000_000_000) as i64);
    // SAFETY: the kernel reads `time`.
    unsafe { call(nr::CLOCK_SETTIME, [0, &raw const time as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Opens a file. A relative path belongs to `directory`.
pub(crate) fn open_at(directory: Option<&Fd>, path: &[u8], flags: i32, mode: u32) -> Outcome<Fd> {
    let path = terminated(path)?;
    let directory = directory.map_or(AT_FDCWD, |fd| fd.0);
    let flags = flags as usize | O_CLOEXEC;
    // SAFETY: the path ends with a zero byte.
    let fd = unsafe {
        call(nr::OPENAT, [directory as usize, path.as_ptr() as usize, flags, mode as usize, 0, 0])
    };
    // The standard streams may be missing.
    Fd(fd? as i32).above_standard()
}

/// Opens a file for reading.
pub(crate) fn open(path: &[u8]) -> Outcome<Fd> {
    open_at(None, path, 0, 0)
}

/// The content of a file, at most this much.
pub(crate) fn read_file(directory: Option<&Fd>, path: &[u8], limit: usize) -> Outcome<Vec<u8>> {
    let file = open_at(directory, path, 0, 0)?;
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    while all.len() < limit {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        all.extend_from_slice(&chunk[..n]);
    }
    Ok(all)
}

pub(crate) fn make_directory(path: &[u8], mode: u32) -> Outcome<()> {
    let path = terminated(path)?;
    let args = [AT_FDCWD as usize, path.as_ptr() as usize, mode as usize, 0, 0, 0];
    // SAFETY: the path ends with a zero byte.
    unsafe { call(nr::MKDIRAT, args) }.map(drop)
}

/// Removes a file, or an empty directory.
pub(crate) fn remove_at(directory: Option<&Fd>, path: &[u8], is_directory: bool) -> Outcome<()> {
    let path = terminated(path)?;
    let directory = directory.map_or(AT_FDCWD, |fd| fd.0);
    let flags = if is_directory { AT_REMOVEDIR } else { 0 };
    // SAFETY: the path ends with a zero byte.
    unsafe { call(nr::UNLINKAT, [directory as usize, path.as_ptr() as usize, flags, 0, 0, 0]) }
        .map(drop)
}

/// The target of a symlink.
pub(crate) fn read_link(directory: Option<&Fd>, path: &[u8]) -> Outcome<Vec<u8>> {
    let path = terminated(path)?;
    let directory = directory.map_or(AT_FDCWD, |fd| fd.0);
    let mut target = vec![0; 4096];
    // SAFETY: the path ends with a zero byte; the kernel writes at most the length of `target`.
    let length = unsafe {
        call(
            nr::READLINKAT,
            [
                directory as usize,
                path.as_ptr() as usize,
                target.as_mut_ptr() as usize,
                target.len(),
                0,
                0,
            ],
        )
    }?;
    target.truncate(length);
    Ok(target)
}

/// What the kernel knows about a file: `struct statx`.
#[repr(C)]
#[derive(Debug, Clone, Default)]
pub(crate) struct FileStat {
    mask: u32,
    block_size: u32,
    attributes: u64,
    links: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u16,
    padding: u16,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    blocks: u64,
    attributes_mask: u64,
    times: [StatTime; 4],
    device_of_node: [u32; 2],
    pub(crate) device: [u32; 2],
    rest: [u64; 14],
}

/// A time of [`FileStat`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct StatTime {
    seconds: i64,
    nanoseconds: u32,
    padding: i32,
}

impl FileStat {
    /// When the content was modified: nanoseconds since 1970.
    pub(crate) fn modified(&self) -> i64 {
        let StatTime { seconds, nanoseconds, .. } = self.times[3];
        seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds.into())
    }
}

/// Describes a file. A symlink at the end is followed only if `follow`.
pub(crate) fn stat_at(directory: Option<&Fd>, path: &[u8], follow: bool) -> Outcome<FileStat> {
    const { assert!(size_of::<FileStat>() == 256) };
    let path = terminated(path)?;
    let directory = directory.map_or(AT_FDCWD, |fd| fd.0);
    let flags = if follow { 0 } else { AT_SYMLINK_NOFOLLOW };
    let mut stat = FileStat::default();
    // The basic fields.
    // SAFETY: the path ends with a zero byte; the kernel writes the 256 bytes of `stat`.
    unsafe {
        call(
            nr::STATX,
            [directory as usize, path.as_ptr() as usize, flags, 0x7ff, &raw mut stat as usize, 0],
        )
    }?;
    Ok(stat)
}

/// A pipe whose ends are closed at `exec`: the end to read from, and the end to write to.
pub(crate) fn pipe() -> Outcome<(Fd, Fd)> {
    let mut ends = [0_i32; 2];
    // SAFETY: the kernel writes two numbers.
    unsafe { call(nr::PIPE2, [&raw mut ends as usize, O_CLOEXEC, 0, 0, 0, 0]) }?;
    Ok((Fd(ends[0]), Fd(ends[1])))
}

impl Fd {
    /// A descriptor that the program inherited.
    pub(crate) fn inherited(number: i32) -> Self {
        let fd = Self(number);
        // SAFETY: F_SETFD with FD_CLOEXEC.
        let _ = unsafe { call(nr::FCNTL, [number as usize, 2, 1, 0, 0, 0]) };
        fd
    }

    /// The descriptor under a number that is not one of the standard streams.
    pub(crate) fn above_standard(self) -> Outcome<Self> {
        if self.0 > 2 {
            return Ok(self);
        }
        // SAFETY: F_DUPFD_CLOEXEC with the lowest number.
        unsafe { call(nr::FCNTL, [self.0 as usize, 1030, 3, 0, 0, 0]) }.map(|fd| Self(fd as i32))
    }

    pub(crate) fn read(&self, to: &mut [u8]) -> Outcome<usize> {
        // SAFETY: the kernel writes at most the length of `to`.
        unsafe { call(nr::READ, [self.0 as usize, to.as_mut_ptr() as usize, to.len(), 0, 0, 0]) }
    }

    pub(crate) fn write(&self, from: &[u8]) -> Outcome<usize> {
        // SAFETY: the kernel reads `from`.
        unsafe { call(nr::WRITE, [self.0 as usize, from.as_ptr() as usize, from.len(), 0, 0, 0]) }
    }

    /// Writes everything to a descriptor that blocks.
    pub(crate) fn write_all(&self, mut from: &[u8]) -> Outcome<()> {
        while !from.is_empty() {
            let written = self.write(from)?;
            from = &from[written..];
        }
        Ok(())
    }

    pub(crate) fn set_nonblocking(&self) {
        // SAFETY: F_GETFL and F_SETFL.
        let _ = unsafe {
            call(nr::FCNTL, [self.0 as usize, 3, 0, 0, 0, 0]).and_then(|flags| {
                call(nr::FCNTL, [self.0 as usize, 4, flags | O_NONBLOCK as usize, 0, 0, 0])
            })
        };
    }

    /// Makes this descriptor available under a number that `exec` keeps.
    pub(crate) fn duplicate_to(&self, number: i32) -> Outcome<()> {
        if self.0 == number {
            // SAFETY: F_SETFD without FD_CLOEXEC.
            return unsafe { call(nr::FCNTL, [number as usize, 2, 0, 0, 0, 0]) }.map(drop);
        }
        // SAFETY: the program uses 0, 1 and 2 only through this function.
        unsafe { call(nr::DUP3, [self.0 as usize, number as usize, 0, 0, 0, 0]) }.map(drop)
    }

    /// # Safety
    ///
    /// `argument` must be valid for this request.
    unsafe fn ioctl(&self, request: usize, argument: usize) -> Outcome<usize> {
        // SAFETY: the caller answers for the argument.
        unsafe { call(nr::IOCTL, [self.0 as usize, request, argument, 0, 0, 0]) }
    }

    /// How many bytes can be read now.
    pub(crate) fn readable_bytes(&self) -> usize {
        let mut bytes = 0_i32;
        // SAFETY: FIONREAD writes an integer.
        let _ = unsafe { self.ioctl(0x541b, &raw mut bytes as usize) };
        bytes.max(0) as usize
    }

    /// Allows to open the other end of a pseudo-terminal.
    pub(crate) fn unlock_terminal(&self) -> Outcome<()> {
        let unlocked = 0_i32;
        // SAFETY: TIOCSPTLCK reads an integer.
        unsafe { self.ioctl(0x4004_5431, &raw const unlocked as usize) }.map(drop)
    }

    /// Opens the other end of a pseudo-terminal.
    pub(crate) fn terminal_peer(&self) -> Outcome<Self> {
        let flags = (O_READ_WRITE | O_NO_TERMINAL) as usize | O_CLOEXEC;
        // SAFETY: TIOCGPTPEER takes flags.
        unsafe { self.ioctl(0x5441, flags) }.map(|fd| Self(fd as i32))
    }

    /// Makes this terminal that of the session.
    pub(crate) fn control_session(&self) -> Outcome<()> {
        // SAFETY: TIOCSCTTY takes a number.
        unsafe { self.ioctl(0x540e, 0) }.map(drop)
    }

    pub(crate) fn set_terminal_size(&self, rows: u16, columns: u16) -> Outcome<()> {
        let size = [rows, columns, 0, 0];
        // SAFETY: TIOCSWINSZ reads four numbers of 16 bits.
        unsafe { self.ioctl(0x5414, &raw const size as usize) }.map(drop)
    }

    /// Sets a serial port to bytes as they are, at 115200 baud.
    pub(crate) fn set_raw(&self) -> Outcome<()> {
        // `struct termios` of the kernel: four words of flags, the line discipline, the control characters.
        let mut termios = [0_u32; 9];
        // SAFETY: TCGETS writes 36 bytes.
        unsafe { self.ioctl(0x5401, &raw mut termios as usize) }?;
        // B115200, CS8, CREAD, CLOCAL.
        let mut raw = [0, 0, 0o10002 | 0o60 | 0o200 | 0o4000, 0, termios[4] & 0xff, 0, 0, 0, 0];
        // VMIN, the character with number 6, after the byte of the line discipline.
        raw[5] = 1 << 24;
        // SAFETY: TCSETS reads 36 bytes.
        unsafe { self.ioctl(0x5402, &raw const raw as usize) }.map(drop)
    }

    /// The entries of an open directory: their types (`DT_…`) and names, without `.` and `..`. Empty at the end.
    pub(crate) fn entries(&self) -> Outcome<Vec<(u8, Vec<u8>)>> {
        let mut buffer = vec![0_u8; 32 * 1024];
        loop {
            let args = [self.0 as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
            // SAFETY: the kernel writes at most the length of `buffer`.
            let length = unsafe { call(nr::GETDENTS64, args) }?;
            let mut found = Vec::new();
            let mut rest = &buffer[..length];
            // Inode (8 bytes), offset (8), length of the record (2), type (1), name and a zero byte.
            while let Some((head, name)) = rest.split_first_chunk::<19>() {
                let record = usize::from(u16::from_le_bytes([head[16], head[17]]));
                let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
                if ![&b"."[..], b".."].contains(&&name[..end]) {
                    found.push((head[18], name[..end].to_vec()));
                }
                rest = rest.get(record..).unwrap_or_default();
            }
            if length == 0 || !found.is_empty() {
                return Ok(found);
            }
        }
    }

    /// Accepts a connection of a vsock listener: the connection, and the context of its other end.
    pub(crate) fn accept_vsock(&self) -> Outcome<(Self, u32)> {
        let mut address = [0_u32; 4];
        let mut length = 16_u32;
        let args = [
            self.0 as usize,
            &raw mut address as usize,
            &raw mut length as usize,
            O_CLOEXEC | O_NONBLOCK as usize,
            0,
            0,
        ];
        // SAFETY: the kernel writes at most 16 bytes of address, and the length.
        let fd = unsafe { call(nr::ACCEPT4, args) }?;
        Ok((Self(fd as i32), address[2]))
    }
}

/// Changes the owner of the file behind a descriptor.
pub(crate) fn set_owner_of(number: i32, uid: u32) -> Outcome<()> {
    let group = u32::MAX as usize;
    // SAFETY: numbers only.
    unsafe { call(nr::FCHOWN, [number as usize, uid as usize, group, 0, 0, 0]) }.map(drop)
}

/// Listens on a vsock port.
pub(crate) fn listen_vsock(port: u32) -> Outcome<Fd> {
    // AF_VSOCK; SOCK_STREAM with the two flags, whose values are those of `open`.
    let kind = 1 | O_CLOEXEC | O_NONBLOCK as usize;
    // SAFETY: numbers only.
    let socket = unsafe { call(nr::SOCKET, [40, kind, 0, 0, 0, 0]) }?;
    let socket = Fd(socket as i32);
    // `struct sockaddr_vm`: family, port, any context.
    let address = [40_u32, port, u32::MAX, 0];
    // SAFETY: the kernel reads the 16 bytes of `address`.
    unsafe { call(nr::BIND, [socket.0 as usize, &raw const address as usize, 16, 0, 0, 0]) }?;
    // SAFETY: numbers only.
    unsafe { call(nr::LISTEN, [socket.0 as usize, 4, 0, 0, 0, 0]) }?;
    Ok(socket)
}

/// Mounts a file system.
pub(crate) fn mount(
    source: &[u8],
    target: &[u8],
    kind: &[u8],
    flags: usize,
    options: &[u8],
) -> Outcome<()> {
    let [source, target, kind, options] =
        [terminated(source)?, terminated(target)?, terminated(kind)?, terminated(options)?];
    let args = [
        source.as_ptr() as usize,
        target.as_ptr() as usize,
        kind.as_ptr() as usize,
        flags,
        options.as_ptr() as usize,
        0,
    ];
    // SAFETY: each text ends with a zero byte.
    unsafe { call(nr::MOUNT, args) }.map(drop)
}

/// Removes a mount from the tree. Open descriptors keep it usable.
pub(crate) fn unmount_lazily(target: &[u8]) -> Outcome<()> {
    let target = terminated(target)?;
    // MNT_DETACH.
    // SAFETY: the text ends with a zero byte.
    unsafe { call(nr::UMOUNT2, [target.as_ptr() as usize, 2, 0, 0, 0, 0]) }.map(drop)
}

/// Writes all dirty pages.
pub(crate) fn sync() {
    // SAFETY: no arguments.
    let _ = unsafe { call(nr::SYNC, [0; 6]) };
}
