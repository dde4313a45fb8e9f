//! Collects host facts, so that the checks in `capsa-proto` are pure functions.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use capsa_proto::host::{Arch, FileFacts, HEAD_BYTES, HostFacts};
use capsa_proto::image_lock::PROBED_BYTES;
use capsa_proto::path::HostPath;
use capsa_proto::qcow2;
use capsa_proto::spec::{ImageFormat, VmSpec};
use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, access};

use crate::sys;

/// Collects the facts about this host and the files that `spec` names.
///
/// Opens each file and reads its first bytes; blocks as long as the file system does.
pub fn host_facts(spec: Option<&VmSpec>, run_dir: HostPath) -> HostFacts {
    let arch = arch();
    let mut files = BTreeMap::new();
    let mut image_locks = BTreeMap::new();
    if let Some(spec) = spec {
        let named = [Some(&spec.kernel), spec.initrd.as_ref()];
        let disks = spec.disks.iter().map(|disk| &disk.path);
        let shares = spec.shares.iter().map(|share| &share.host);
        for path in named.into_iter().flatten().chain(disks).chain(shares) {
            look(path, &mut files);
        }
        for disk in &spec.disks {
            // A file that cannot be opened is rejected elsewhere.
            if let Ok(image) = open(Path::new(disk.path.as_str())) {
                let locks = PROBED_BYTES.map(|byte| sys::lock_on(&image, byte));
                image_locks.insert(disk.path.clone(), locks);
            }
        }
        for disk in spec.disks.iter().filter(|disk| disk.format == ImageFormat::Qcow2) {
            let mut image = disk.path.clone();
            for _ in 0..=qcow2::MAX_CHAIN {
                let FileFacts::File { head, .. } = look(&image, &mut files) else { break };
                let header = qcow2::Qcow2Header::parse(head);
                let Some(next) = header.and_then(|h| h.backing_path(&image)) else { break };
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
    }
}

/// The facts about a file, collected once per path.
fn look<'a>(path: &HostPath, files: &'a mut BTreeMap<HostPath, FileFacts>) -> &'a FileFacts {
    files.entry(path.clone()).or_insert_with(|| file_facts(Path::new(path.as_str())))
}

/// The architecture this was compiled for, which is the host's.
pub const fn arch() -> Arch {
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

#[cfg(test)]
mod tests {
    use super::*;

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
