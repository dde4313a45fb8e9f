//! Operations on files, mounts and power, in a process of their own whose root is that of the guest.
//!
//! Input and output are its standard streams.

use alloc::vec;
use alloc::vec::Vec;

use crate::guest::BootedGuest;
use crate::protocol::{
    FieldWriter, FileEntry, FileKind, MountSpec, Operation, PowerAction, WriteMode,
};
use crate::sys::{self, Errno, Fd, O_DIRECTORY, O_NOFOLLOW, Outcome};

/// How often a directory is emptied again that was not empty when it should be removed.
const REMOVE_ATTEMPTS: u32 = 3;

/// `EBUSY` where the file system differs: a mount is left.
const OTHER_FILE_SYSTEM: Errno = Errno::EBUSY;

const CHUNK: usize = 64 * 1024;

/// Carries an operation out that is not a command.
pub(crate) fn work(operation: &Operation, guest: &BootedGuest) -> Outcome<()> {
    let (input, output) = (Fd::inherited(0), Fd::inherited(1));
    match operation {
        Operation::ReadFile(path) => copy(&sys::open(path)?, &output),
        Operation::WriteFile { path, mode, write } => {
            let how = match write {
                WriteMode::Truncate => sys::O_TRUNCATE,
                WriteMode::Append => sys::O_APPEND,
                WriteMode::CreateNew => sys::O_EXCLUSIVE,
            };
            let flags = sys::O_WRITE | sys::O_CREATE | how;
            copy(&input, &sys::open_at(None, path, flags, mode & 0o7777)?)
        }
        Operation::Stat(path) => put_entry(None, path, &output),
        Operation::ReadDir(path) => {
            let directory = sys::open_at(None, path, O_DIRECTORY, 0)?;
            loop {
                let entries = directory.entries()?;
                if entries.is_empty() {
                    return Ok(());
                }
                for (_, name) in entries {
                    match put_entry(Some(&directory), &name, &output) {
                        // It was removed meanwhile.
                        Err(Errno::ENOENT) => {}
                        done => done?,
                    }
                }
            }
        }
        Operation::MakeDir { path, mode } => make_directories(path, *mode),
        Operation::Remove { path, recursive: true } => remove_tree(None, path, None),
        Operation::Remove { path, recursive: false } => remove(None, path),
        Operation::Mount(mount) => mount_at(mount),
        Operation::PowerOff(action) => end_guest(*action, guest),
        Operation::Run(_) | Operation::SetClock(_) => Err(Errno::EINVAL),
    }
}

fn copy(from: &Fd, to: &Fd) -> Outcome<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n])?;
    }
}

fn put_entry(directory: Option<&Fd>, name: &[u8], output: &Fd) -> Outcome<()> {
    let stat = sys::stat_at(directory, name, false)?;
    let kind = match stat.mode >> 12 {
        0o10 => FileKind::File,
        0o04 => FileKind::Directory,
        0o12 => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let target = match kind {
        FileKind::Symlink => Some(sys::read_link(directory, name)?),
        _ => None,
    };
    let entry = FileEntry {
        name: name.to_vec(),
        kind,
        mode: u32::from(stat.mode) & 0o7777,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        modified: stat.modified(),
        target,
    };
    let mut fields = FieldWriter::default();
    fields.put(&entry);
    output.write_all(&fields.0)
}

/// Makes a directory and those above it. One that exists is left as it is.
fn make_directories(path: &[u8], mode: u32) -> Outcome<()> {
    let slashes = path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/');
    for (end, _) in slashes {
        make_directory(&path[..end], 0o755)?;
    }
    make_directory(path, mode & 0o7777)
}

fn make_directory(path: &[u8], mode: u32) -> Outcome<()> {
    match sys::make_directory(path, mode) {
        Err(Errno::EEXIST) => match sys::stat_at(None, path, true)?.mode >> 12 {
            0o04 => Ok(()),
            _ => Err(Errno::EEXIST),
        },
        made => made,
    }
}

/// Removes a file or an empty directory.
fn remove(directory: Option<&Fd>, path: &[u8]) -> Outcome<()> {
    let is_directory = sys::stat_at(directory, path, false)?.mode >> 12 == 0o04;
    sys::remove_at(directory, path, is_directory)
}

/// Removes a file, or a directory with everything in it that is on the same file system.
fn remove_tree(parent: Option<&Fd>, path: &[u8], device: Option<[u32; 2]>) -> Outcome<()> {
    let stat = sys::stat_at(parent, path, false)?;
    if stat.mode >> 12 != 0o04 {
        return sys::remove_at(parent, path, false);
    }
    if device.is_some_and(|device| device != stat.device) {
        return Err(OTHER_FILE_SYSTEM);
    }
    let mut failed = None;
    for _ in 0..REMOVE_ATTEMPTS {
        // A symlink that has taken the place of the directory is not followed.
        let directory = sys::open_at(parent, path, O_DIRECTORY | O_NOFOLLOW, 0)?;
        failed = None;
        loop {
            let entries = directory.entries()?;
            if entries.is_empty() {
                break;
            }
            for (_, name) in entries {
                match remove_tree(Some(&directory), &name, Some(stat.device)) {
                    Err(Errno::ENOENT) => {}
                    Err(errno) => failed = Some(errno),
                    Ok(()) => {}
                }
            }
        }
        match sys::remove_at(parent, path, true) {
            Ok(()) => return Ok(()),
            Err(errno) => failed = failed.or(Some(errno)),
        }
    }
    Err(failed.unwrap_or(Errno::EIO))
}

/// Mounts a file system, unless one of the same type and source is mounted there.
fn mount_at(mount: &MountSpec) -> Outcome<()> {
    make_directories(&mount.target, 0o755)?;
    let mounts = sys::read_file(None, b"/proc/self/mounts", 1024 * 1024).unwrap_or_default();
    let wanted = [&mount.source, &mount.target, &mount.kind].map(|text| escaped(text));
    let is_mounted = mounts.split(|&byte| byte == b'\n').any(|line| {
        line.split(|&byte| byte == b' ').take(3).eq(wanted.iter().map(|text| &text[..]))
    });
    if is_mounted {
        return Ok(());
    }
    // MS_RDONLY.
    let flags = usize::from(mount.read_only);
    sys::mount(&mount.source, &mount.target, &mount.kind, flags, &mount.options)
}

/// A name as `/proc/self/mounts` has it: in octal where it would end a field.
fn escaped(name: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::new();
    for &byte in name {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => {
                let digits = [byte >> 6, byte >> 3 & 7, byte & 7];
                escaped.push(b'\\');
                escaped.extend(digits.map(|digit| b'0' + digit));
            }
            _ => escaped.push(byte),
        }
    }
    escaped
}

/// Ends the guest.
fn end_guest(action: PowerAction, guest: &BootedGuest) -> Outcome<()> {
    if action == PowerAction::Orderly && guest.ask_init_to_end()? {
        return Ok(());
    }
    sys::sync();
    Err(sys::power_off())
}
