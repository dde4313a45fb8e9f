//! Files without a name: what a machine writes and nobody keeps.
//!
//! An overlay is made in `$TMPDIR`, else `/var/tmp`, because it may grow as large as its disk and
//! `/tmp` and run directories are often in memory. It loses its name at once, so that it goes with the
//! last process that has it open, however that ends. The hypervisor inherits it and finds it by a
//! link in the run directory.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use capsa_proto::path::HostPath;
use capsa_proto::qcow2::Overlay;
use nix::unistd::{mkstemp, unlink};

use crate::sys;

/// Makes an empty overlay, and the link `at` to it, which leads there only in a process that inherits
/// the file under the same number.
pub(crate) fn overlay(overlay: &Overlay, at: &HostPath) -> io::Result<File> {
    let mut file = nameless(&directory())?;
    let image = overlay.image();
    file.set_len(image.len)?;
    for (offset, bytes) in &image.pieces {
        file.seek(SeekFrom::Start(*offset))?;
        file.write_all(bytes)?;
    }
    symlink(format!("{}/{}", sys::DESCRIPTORS, file.as_raw_fd()), at.as_str())?;
    Ok(file)
}

fn directory() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    named.unwrap_or_else(|| PathBuf::from("/var/tmp"))
}

fn nameless(dir: &Path) -> io::Result<File> {
    let because = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot make a file in {}: {error}", dir.display()))
    };
    let (fd, path) = mkstemp(&dir.join("capsa-XXXXXX")).map_err(|e| because(e.into()))?;
    unlink(&path)?;
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa_proto::spec::ImageFormat;
    use std::io::Read;

    #[test]
    fn an_overlay_is_found_by_its_link_and_by_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let at = HostPath::new(text("overlay0")).unwrap();
        let over = HostPath::new("/base").unwrap();
        let spec = Overlay { over, format: ImageFormat::Raw, virtual_size: 1 << 30 };
        let file = overlay(&spec, &at).unwrap();
        assert_eq!(file.metadata().unwrap().len(), spec.image().len);
        // Here, too, the number is the same.
        let mut head = [0; 4];
        File::open(at.as_str()).unwrap().read_exact(&mut head).unwrap();
        assert_eq!(&head, b"QFI\xfb");
        #[cfg(target_os = "linux")]
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&file.metadata().unwrap()), 0);
    }
}
