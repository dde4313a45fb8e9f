//! The agent that Capsa puts behind a guest's initrd, run as a process of this host.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};

/// The length of a header of a cpio archive in the format newc.
const HEADER_LEN: usize = 110;

/// Starts the agent in this initrd. It serves the host on `port` and exits when that is closed.
///
/// # Panics
///
/// When the initrd has no agent, or the agent cannot be started.
pub fn serve(initrd: &Path, port: UnixStream) -> Child {
    let archive = fs::read(initrd).expect("the initrd can be read");
    let run_dir = initrd.parent().expect("the initrd is in the run directory");
    let write = |name: &str| {
        let path = run_dir.join(name);
        let content = content(&archive, &format!("capsa-agent/{name}"));
        fs::write(&path, content.unwrap_or_else(|| panic!("the initrd has no {name}")))
            .expect("the file can be written");
        path
    };
    let (program, nonce) = (write("agent"), write("nonce"));
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("it is our file");
    let mut command = Command::new(program);
    command.arg("serve").arg(nonce).stdin(OwnedFd::from(port));
    command.spawn().expect("the agent is a program of this host")
}

/// The content of a file in an archive, which may follow another archive.
fn content<'a>(archive: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let with_end = [name.as_bytes(), b"\0"].concat();
    let found = archive.windows(with_end.len()).position(|window| window == with_end)?;
    let header = &archive[found.checked_sub(HEADER_LEN)?..found];
    let size = std::str::from_utf8(header.get(54..62)?).ok()?;
    let size = usize::from_str_radix(size, 16).ok()?;
    // The name and the content are padded to 4 bytes, counted from the begin of the header.
    let start = found - HEADER_LEN + (HEADER_LEN + with_end.len()).next_multiple_of(4);
    archive.get(start..start + size)
}
