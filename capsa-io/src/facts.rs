//! Collects host facts, so that the checks in `capsa-proto` are pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use capsa_proto::host::{Arch, FileFacts, HEAD_BYTES, HostFacts};
use capsa_proto::image_lock::PROBED_BYTES;
use capsa_proto::path::HostPath;
use capsa_proto::qcow2;
use capsa_proto::spec::{ForwardHost, ImageFormat, VmSpec};
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{AccessFlags, access};

use crate::{process, sys};

/// Collects the facts about this host and the files that `spec` names.
///
/// Opens each file and reads its first bytes; blocks as long as the file system does. Before that it
/// waits for VMs of this program that were dropped: they may still have locked an image.
pub fn host_facts(spec: Option<&VmSpec>, run_dir: HostPath) -> HostFacts {
    let arch = arch();
    let mut files = BTreeMap::new();
    let mut image_locks = BTreeMap::new();
    let mut used_devices = BTreeSet::new();
    let mut resolved = BTreeMap::new();
    if let Some(spec) = spec {
        process::reap_dying(process::REAP_LIMIT);
        let named = [Some(&spec.kernel), spec.initrd.as_ref()];
        let disks = spec.disks.iter().map(|disk| &disk.path);
        let shares = spec.shares.iter().map(|share| &share.host);
        let backing = spec.disks.iter().flat_map(|disk| &disk.backing);
        for path in named.into_iter().flatten().chain(disks).chain(shares).chain(backing) {
            look(path, &mut files);
        }
        // What a nested share is mounted on.
        for (_, mount_point) in spec.shares.iter().filter_map(|share| share.outer(&spec.shares)) {
            look(&mount_point, &mut files);
        }
        let options = &spec.network_options;
        let sockets = options.forwards.iter().filter_map(|forward| match &forward.host {
            ForwardHost::Unix(path) => Some(path),
            ForwardHost::Port { .. } => None,
        });
        for path in sockets.chain(&options.pcap).chain(&options.log) {
            look(path, &mut files);
            if let Some(parent) = path.parent() {
                look(&parent, &mut files);
            }
        }
        for disk in &spec.disks {
            // A file that cannot be opened is rejected elsewhere.
            if let Ok(image) = open(Path::new(disk.path.as_str())) {
                let locks = PROBED_BYTES.map(|byte| sys::lock_on(&image, byte));
                image_locks.insert(disk.path.clone(), locks);
                if is_used_device(Path::new(disk.path.as_str())) {
                    used_devices.insert(disk.path.clone());
                }
            }
        }
        for disk in spec.disks.iter().filter(|disk| disk.format == ImageFormat::Qcow2) {
            let mut image = disk.path.clone();
            for _ in 0..=qcow2::MAX_CHAIN {
                let FileFacts::File { head, .. } = look(&image, &mut files) else { break };
                let header = qcow2::Qcow2Header::parse(head);
                let Some(name) = header.and_then(|h| h.backing_path(&image)) else { break };
                let Some(next) = resolved_path(&name) else { break };
                resolved.insert(name, next.clone());
                image = next;
            }
        }
    }
    HostFacts {
        os: sys::host::OS,
        arch,
        memory_mb: sys::host::memory_mb(),
        kvm: sys::host::kvm(arch),
        landlock: sys::host::landlock(),
        socket_path_max: sys::SOCKET_PATH_MAX,
        run_dir,
        files,
        image_locks,
        used_devices,
        resolved,
        share_files: (!sys::host::opens_by_handle()).then(|| open_files_limits().1),
        agent: Err("capsa-io contains none"),
    }
}

fn resolved_path(path: &HostPath) -> Option<HostPath> {
    let resolved = resolve(Path::new(path.as_str())).ok()?;
    HostPath::new(resolved.into_os_string().into_string().ok()?).ok()
}

/// The absolute path of the file that `path` names, without symbolic links, so that every later user of
/// the path, such as a hypervisor, opens the same file. `/dev/fd/3` names an open file of this process:
/// the result is the path of that file.
///
/// A path that does not exist, or names neither a file, a directory nor a block device, is only made
/// absolute.
///
/// # Errors
///
/// When `path` names an open file that no other process can open by a path: it was deleted, or is in
/// memory.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let Ok(named) = fs::metadata(&absolute) else { return Ok(absolute) };
    let kind = named.file_type();
    if !kind.is_file() && !kind.is_dir() && !kind.is_block_device() {
        return Ok(absolute);
    }
    // A link in /proc reads as `/tmp/x (deleted)`, which may be the path of another file.
    let is_same = |resolved: &PathBuf| {
        fs::metadata(resolved)
            .is_ok_and(|found| (found.dev(), found.ino()) == (named.dev(), named.ino()))
    };
    fs::canonicalize(&absolute).ok().filter(is_same).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "the open file has no path (deleted, or in memory)")
    })
}

/// The facts about a file, collected once per path.
fn look<'a>(path: &HostPath, files: &'a mut BTreeMap<HostPath, FileFacts>) -> &'a FileFacts {
    files.entry(path.clone()).or_insert_with(|| file_facts(Path::new(path.as_str())))
}

/// How many files this process may have open, and how many each one that it starts.
pub fn open_files_limits() -> (u64, u64) {
    getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX))
}

/// Which shared memory gets huge pages on this host (Linux): `never`, `advise` or another mode of the kernel.
pub fn shared_huge_pages() -> Option<String> {
    let modes = fs::read_to_string(SHARED_HUGE_PAGES).ok()?;
    Some(modes.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// The file with the mode of [`shared_huge_pages`] (`admin-guide/mm/transhuge.rst` of the kernel).
pub const SHARED_HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// The architecture this was compiled for, which is the host's.
pub(crate) const fn arch() -> Arch {
    if cfg!(target_arch = "x86_64") {
        Arch::X86_64
    } else if cfg!(target_arch = "aarch64") {
        Arch::Aarch64
    } else {
        Arch::Other
    }
}

fn file_facts(path: &Path) -> FileFacts {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return FileFacts::Missing,
        Err(error) => return FileFacts::Unreadable(error.to_string()),
    };
    let writable = access(path, AccessFlags::W_OK).is_ok();
    let kind = metadata.file_type();
    if kind.is_dir() {
        return match access(path, AccessFlags::R_OK | AccessFlags::X_OK) {
            Ok(()) => FileFacts::Directory { writable },
            Err(errno) => FileFacts::Unreadable(errno.desc().into()),
        };
    }
    if !kind.is_file() && !kind.is_block_device() {
        return FileFacts::Special;
    }
    let device = kind.is_block_device();
    match head_and_size(path, device, metadata.len()) {
        Ok((head, size)) => FileFacts::File { size, head, writable, device },
        Err(error) => FileFacts::Unreadable(error.to_string()),
    }
}

fn head_and_size(path: &Path, is_device: bool, len: u64) -> io::Result<(Vec<u8>, u64)> {
    let mut file = open(path)?;
    // The metadata of a block device says 0; seeking to its end gives its size.
    let size = if is_device { io::Seek::seek(&mut file, io::SeekFrom::End(0))? } else { len };
    io::Seek::rewind(&mut file)?;
    let mut head = Vec::with_capacity(HEAD_BYTES);
    file.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok((head, size))
}

fn open(path: &Path) -> io::Result<File> {
    // The path may have become a pipe since the check, and reads of some files in /proc block.
    OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

/// Whether the kernel refuses exclusive use of a block device, because it or one of its partitions is
/// mounted, or is part of another device (Linux).
fn is_used_device(path: &Path) -> bool {
    let is_device = fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let exclusive = (OFlag::O_EXCL | OFlag::O_NONBLOCK).bits();
    is_device
        && OpenOptions::new()
            .read(true)
            .custom_flags(exclusive)
            .open(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn resolve_link_or_descriptor_is_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("d/f"), b"text").unwrap();
        std::os::unix::fs::symlink("d", dir.join("link")).unwrap();
        assert_eq!(resolve(&dir.join("link")).unwrap(), dir.join("d"));
        assert_eq!(resolve(&dir.join("link/../d/./f")).unwrap(), dir.join("d/f"));
        assert_eq!(resolve(&dir.join("link/none")).unwrap(), dir.join("link/none"));
        assert_eq!(resolve(Path::new("/dev/null")).unwrap(), Path::new("/dev/null"));
        if cfg!(target_os = "linux") {
            let file = File::open(dir.join("d/f")).unwrap();
            for links in ["/dev/fd", "/proc/self/fd"] {
                let link = format!("{links}/{}", file.as_raw_fd());
                assert_eq!(resolve(Path::new(&link)).unwrap(), dir.join("d/f"));
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn resolve_deleted_file_is_error() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("f");
        let file = File::create(&at).unwrap();
        fs::remove_file(&at).unwrap();
        let link = format!("/dev/fd/{}", file.as_raw_fd());
        assert!(resolve(Path::new(&link)).is_err());
        // The link reads as this path.
        fs::write(dir.path().join("f (deleted)"), b"another file").unwrap();
        assert!(resolve(Path::new(&link)).is_err());
    }

    #[test]
    fn file_facts_distinguish_kinds_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, b"QFI\xfbrest").unwrap();
        let FileFacts::File { size, head, writable, device: false } = file_facts(&file) else {
            panic!()
        };
        assert_eq!((size, head.as_slice(), writable), (8, b"QFI\xfbrest".as_slice(), true));
        assert_eq!(file_facts(dir.path()), FileFacts::Directory { writable: true });
        assert_eq!(file_facts(&dir.path().join("none")), FileFacts::Missing);
        assert_eq!(file_facts(Path::new("/dev/null")), FileFacts::Special);
    }
}
