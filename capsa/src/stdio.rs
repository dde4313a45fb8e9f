//! A console on the program's own standard input and output.
//!
//! Two threads copy the bytes, because waiting for standard input would change a descriptor that
//! other programs share. The terminal's modes are not changed; a caller that wants a raw terminal
//! must set it. The VM counts as ended only when its last output has been written.

use std::io::{self, Read, Write};
use std::sync::Arc;

use futures_lite::future::block_on;
use futures_lite::{AsyncReadExt, AsyncWriteExt};

use crate::driver::Shared;
use crate::{Result, VmConsole};

/// Starts copying bytes in both directions.
pub(crate) fn relay(shared: &Arc<Shared>) -> Result<()> {
    let (mut reader, mut writer) = VmConsole::new(Arc::clone(shared)).split();
    let vm = Arc::clone(shared);
    std::thread::Builder::new().name("capsa-stdout".into()).spawn(move || {
        let mut chunk = [0; 8192];
        while let Ok(n @ 1..) = block_on(reader.read(&mut chunk)) {
            let mut out = io::stdout().lock();
            // Write errors are ignored: the guest runs on if standard output is closed.
            let _ = out.write_all(&chunk[..n]).and_then(|()| out.flush());
        }
        drop(reader);
        vm.relay_finished();
    })?;
    // This thread may block in a read of standard input until the program exits.
    std::thread::Builder::new().name("capsa-stdin".into()).spawn(move || {
        let mut chunk = [0; 1024];
        while let Ok(n @ 1..) = io::stdin().lock().read(&mut chunk) {
            if block_on(writer.write_all(&chunk[..n])).is_err() {
                break;
            }
        }
    })?;
    Ok(())
}
