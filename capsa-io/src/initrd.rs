//! The initrd of a VM with the guest agent: the user's initrd, and an archive with the agent behind it.
//!
//! It is a file without a name in the directory of [overlays](crate::ephemeral), which the hypervisor
//! inherits and opens through a symbolic link in the run directory. A hypervisor that cannot inherit it gets
//! a file in the run directory, which is removed with that directory. Only the user can read either, because
//! it contains the nonce by which the host recognises the agent.
//!
//! On file systems that share blocks between files, the copy takes no space.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use capsa_proto::agent::protocol::NONCE_LEN;
use capsa_proto::plan::AgentInitrd;

use crate::{context, ephemeral, sys};

/// A new nonce.
pub(crate) fn nonce() -> io::Result<[u8; NONCE_LEN]> {
    let mut nonce = [0; NONCE_LEN];
    File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}

/// Creates the initrd without a name, and the symbolic link that resolves to it in a process that inherits
/// the file as `number`.
pub(crate) fn unnamed(
    plan: &AgentInitrd,
    number: u32,
    nonce: &[u8; NONCE_LEN],
) -> io::Result<File> {
    let dir = ephemeral::directory();
    let file = ephemeral::nameless(&dir).and_then(|file| written(file, plan, nonce));
    let file = file.map_err(|error| cannot(plan, &format!("{} (TMPDIR)", dir.display()), error))?;
    symlink(format!("{}/{number}", sys::DESCRIPTORS), plan.at.as_str())?;
    Ok(file)
}

/// Creates the initrd in the run directory.
pub(crate) fn named(plan: &AgentInitrd, nonce: &[u8; NONCE_LEN]) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(plan.at.as_str());
    let file = file.and_then(|file| written(file, plan, nonce));
    file.map(drop).map_err(|error| cannot(plan, plan.at.as_str(), error))
}

/// `copy` lets the kernel copy, or share the blocks (Linux: `copy_file_range`).
fn written(mut file: File, plan: &AgentInitrd, nonce: &[u8; NONCE_LEN]) -> io::Result<File> {
    let mut over = File::open(Path::new(plan.over.as_str()))?;
    let over_len = io::copy(&mut over, &mut file)?;
    file.write_all(&plan.tail(over_len, nonce))?;
    Ok(file)
}

fn cannot(plan: &AgentInitrd, place: &str, error: io::Error) -> io::Error {
    let size = std::fs::metadata(plan.over.as_str()).map_or(0, |metadata| metadata.len());
    let size = size + plan.tail(size, &[0; NONCE_LEN]).len() as u64;
    let what = format!(
        "cannot write {}, with the guest agent, to {place}: {} MiB",
        plan.over,
        size.div_ceil(1 << 20)
    );
    context::failed(what, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa_proto::path::HostPath;
    use capsa_proto::plan::AgentProgram;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

    fn initrd(dir: &Path, content: &[u8]) -> AgentInitrd {
        let path = |name: &str| HostPath::new(dir.join(name).to_str().unwrap()).unwrap();
        let plan = AgentInitrd {
            at: path("initrd"),
            over: path("user"),
            init: None,
            program: AgentProgram(b"program"),
        };
        std::fs::write(plan.over.as_str(), content).unwrap();
        plan
    }

    #[test]
    fn unnamed_initrd_has_both_archives() {
        let dir = tempfile::tempdir().unwrap();
        let content = [7; 100_001];
        let plan = initrd(dir.path(), &content);
        let nonce = nonce().unwrap();
        let file = unnamed(&plan, 17, &nonce).unwrap();
        let want = [&content[..], &plan.tail(100_001, &nonce)].concat();
        let mut found = vec![0; want.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == want);
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.nlink()), (want.len() as u64, 0));
        let link = std::fs::read_link(plan.at.as_str()).unwrap();
        assert_eq!(link, Path::new(sys::DESCRIPTORS).join("17"));
    }

    #[test]
    fn named_initrd_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let plan = initrd(dir.path(), b"abc");
        named(&plan, &[1; NONCE_LEN]).unwrap();
        let metadata = std::fs::metadata(plan.at.as_str()).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(metadata.len(), 3 + plan.tail(3, &[1; NONCE_LEN]).len() as u64);
        let error = named(&plan, &[1; NONCE_LEN]).unwrap_err().to_string();
        assert!(error.contains(plan.at.as_str()) && error.contains("1 MiB"), "{error}");
    }

    #[test]
    fn nonce_is_new_each_time() {
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
