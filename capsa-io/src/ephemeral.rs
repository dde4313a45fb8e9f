//! Ephemeral disks: overlays and clones whose contents are discarded at the end of the VM.
//!
//! An overlay is a file without a name. It is created in `$TMPDIR` (default: `/var/tmp`), because
//! it can grow as large as its disk, and `/tmp` and run directories are often in memory. It is
//! unlinked at once, so the kernel frees it when the last process that has it open exits. The
//! hypervisor inherits the descriptor and opens it through a symbolic link in the run directory.
//!
//! A clone has a name in the run directory, because a clone cannot be created without one. It is
//! removed with that directory, at the end of the VM or by a sweep after a crash.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use capsa_proto::path::HostPath;
use capsa_proto::qcow2::Overlay;

use crate::{context, random, sys};

/// Creates an empty overlay and the symbolic link `at`, which resolves to it only in a process that
/// inherits the file as `number`.
pub(crate) fn overlay(overlay: &Overlay, at: &HostPath, number: u32) -> io::Result<File> {
    let dir = directory();
    let file = nameless(&dir).and_then(|file| filled(file, overlay));
    let file = file.map_err(|error| cannot(&dir, error))?;
    symlink(format!("{}/{number}", sys::DESCRIPTORS), at.as_str())?;
    Ok(file)
}

/// Creates a clone of the image `of`.
pub(crate) fn clone(of: &HostPath, at: &HostPath) -> io::Result<()> {
    let because = |error| context::failed(format!("cannot clone {of} as {at}"), error);
    sys::clone_file(Path::new(of.as_str()), Path::new(at.as_str())).map_err(because)
}

/// Creates and removes a file in the directory of overlays, and returns that directory.
///
/// # Errors
///
/// When no file can be created there. The text names the directory.
pub fn check() -> io::Result<PathBuf> {
    let dir = directory();
    match nameless(&dir) {
        Ok(_) => Ok(dir),
        Err(error) => Err(cannot(&dir, error)),
    }
}

fn cannot(dir: &Path, error: io::Error) -> io::Error {
    context::failed(format!("cannot make an overlay in {} (TMPDIR)", dir.display()), error)
}

/// The directory of overlays.
pub(crate) fn directory() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    named.unwrap_or_else(|| PathBuf::from("/var/tmp"))
}

/// A new file without a name. The standard library sets close-on-exec, so no child inherits the file unless it is passed on.
pub(crate) fn nameless(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!("capsa-{}", random::name()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

fn filled(mut file: File, overlay: &Overlay) -> io::Result<File> {
    let image = overlay.image();
    file.set_len(image.len)?;
    for (offset, bytes) in &image.pieces {
        file.seek(SeekFrom::Start(*offset))?;
        file.write_all(bytes)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa_proto::spec::ImageFormat;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    #[test]
    fn clone_is_equal_sparse_and_independent() {
        const MIB: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| HostPath::new(dir.path().join(name).to_str().unwrap()).unwrap();
        let (of, at) = (path("image"), path("clone"));
        let image = File::create(of.as_str()).unwrap();
        for (text, at) in [("first", 0), ("in a hole", 5 * MIB + 3), ("last", 9 * MIB)] {
            image.write_all_at(text.as_bytes(), at).unwrap();
        }
        image.set_len(64 * MIB).unwrap();
        image.set_permissions(PermissionsExt::from_mode(0o444)).unwrap();
        let before = std::fs::read(of.as_str()).unwrap();

        clone(&of, &at).unwrap();
        assert!(std::fs::read(at.as_str()).unwrap() == before);
        let made = std::fs::metadata(at.as_str()).unwrap();
        assert_eq!(made.permissions().mode() & 0o777, 0o600, "other users cannot read it");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&made);
        assert!(blocks * 512 < 8 * MIB, "holes are kept: {blocks} blocks");

        let file = File::options().write(true).open(at.as_str()).unwrap();
        file.write_all_at(b"other", 0).unwrap();
        assert!(std::fs::read(of.as_str()).unwrap() == before);
        assert!(
            clone(&of, &at).unwrap_err().to_string().contains("cannot clone"),
            "the clone exists"
        );
    }

    #[test]
    fn overlay_is_unlinked_and_reached_by_link() {
        let dir = tempfile::tempdir().unwrap();
        let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let at = HostPath::new(text("overlay0")).unwrap();
        let over = HostPath::new("/base").unwrap();
        let spec = Overlay { over, format: ImageFormat::Raw, virtual_size: 1 << 30 };
        let file = overlay(&spec, &at, 17).unwrap();
        assert_eq!(file.metadata().unwrap().len(), spec.image().len);
        let link = std::fs::read_link(at.as_str()).unwrap();
        assert_eq!(link, Path::new(sys::DESCRIPTORS).join("17"));
        let mut head = [0; 4];
        file.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(&head, b"QFI\xfb");
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&file.metadata().unwrap()), 0);
        // Other children of the embedding program do not inherit the file.
        let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, nix::libc::FD_CLOEXEC);
    }
}
