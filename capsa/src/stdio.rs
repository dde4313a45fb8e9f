//! A console on the program's own standard input and output.
//!
//! Two threads carry the bytes, because standard input cannot be waited for without touching a
//! descriptor that other programs share. The terminal's modes are left alone: whoever wants a raw
//! terminal sets it. The machine counts as over only when its last output has been written.

use std::io::{self, Read, Write};
use std::sync::Arc;

use futures_lite::future::block_on;
use futures_lite::{AsyncReadExt, AsyncWriteExt};

use crate::driver::Shared;
use crate::{Result, VmConsole};

/// Starts carrying bytes both ways.
pub(crate) fn relay(shared: &Arc<Shared>) -> Result<()> {
    let (mut reader, mut writer) = VmConsole::new(Arc::clone(shared)).split();
    let machine = Arc::clone(shared);
    std::thread::Builder::new().name("capsa-stdout".into()).spawn(move || {
        let mut chunk = [0; 8192];
        while let Ok(n @ 1..) = block_on(reader.read(&mut chunk)) {
            let mut out = io::stdout().lock();
            // Nobody reads any more: the guest need not notice.
            let _ = out.write_all(&chunk[..n]).and_then(|()| out.flush());
        }
        drop(reader);
        let wakers = machine.lock().relayed();
        wakers.into_iter().for_each(std::task::Waker::wake);
    })?;
    // Blocked in a read of standard input at the end, it goes with the program.
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
