//! Files of the guest, read and written by its agent.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use futures_lite::AsyncWriteExt;

use super::child::Child;
use crate::embed::{Operation, WriteMode};
use crate::{Error, Result, VmHandle};

/// The largest file that [`VmHandle::read_file`] reads.
const READ_MAX: usize = 64 << 20;

/// `EFBIG` of Linux.
const TOO_LARGE: i32 = 27;

impl VmHandle {
    /// The content of a file of the guest, at most 64 MiB. `path` is absolute, in the guest's final root. It
    /// waits until the guest is ready. Dropping the future ends the operation.
    ///
    /// For a larger file, read the output of [`exec`](Self::exec) of `cat` as a stream.
    ///
    /// # Errors
    ///
    /// [`Error::GuestErrno`] when the guest cannot read the file, or when it is larger; and those of
    /// [`Command::output`](super::Command::output).
    pub async fn read_file(&self, path: impl AsRef<OsStr>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let action = format!("reading {}", path.display());
        let read = Operation::ReadFile(path.as_bytes().to_vec());
        let mut file = self.file_operation(read, action.clone(), [false, true, false])?;
        let (content, _) = file.outputs(READ_MAX).await;
        file.ended().await?;
        if content.truncated {
            return Err(Error::GuestErrno { operation: action, errno: TOO_LARGE });
        }
        Ok(content.bytes)
    }

    /// Writes a file of the guest: replaces the content of one that exists, or makes one with the permission
    /// bits `0644`. `path` is absolute, in the guest's final root; its directory must exist. It waits until the
    /// guest is ready. Dropping the future ends the operation, which may leave a part of the content.
    ///
    /// # Errors
    ///
    /// [`Error::GuestErrno`] when the guest cannot write the file; and those of
    /// [`Command::output`](super::Command::output).
    pub async fn write_file(
        &self,
        path: impl AsRef<OsStr>,
        content: impl AsRef<[u8]>,
    ) -> Result<()> {
        let path = path.as_ref();
        let action = format!("writing {}", path.display());
        let path = path.as_bytes().to_vec();
        let write = Operation::WriteFile { path, mode: 0o644, write: WriteMode::Truncate };
        let mut file = self.file_operation(write, action, [true, false, false])?;
        if let Some(mut input) = file.stdin.take() {
            // A failed write has its reason in the end of the operation.
            let _ = input.write_all(content.as_ref()).await;
        }
        file.ended().await.map(drop)
    }

    fn file_operation(
        &self,
        operation: Operation,
        action: String,
        streams: [bool; 3],
    ) -> Result<Child> {
        let shared = self.shared();
        shared.check_process()?;
        let handle = shared.change(|state| {
            state.check_driver()?;
            state.vm.begin_operation(operation, None)
        })?;
        Ok(Child::new(Arc::clone(shared), handle, action, streams))
    }
}
