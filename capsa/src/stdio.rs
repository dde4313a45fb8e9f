//! A console on the program's own standard input and output.
//!
//! Two threads copy the bytes, because waiting for standard input would change a descriptor that
//! other programs share. The terminal's modes are not changed; a caller that wants a raw terminal
//! must set it. The VM counts as ended only when its last output has been written. If the VM was stopped
//! or reached its time limit, output that standard output does not accept for [`STALL_TIMEOUT`] is
//! dropped, with a warning in the log.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use capsa_io::reactor::wait_until_writable;
use futures_lite::future::block_on;
use futures_lite::{AsyncReadExt, AsyncWriteExt};

use crate::driver::Shared;
use crate::{Result, StopReport, VmConsole};

/// How long standard output may accept nothing before the end of a stopped VM no longer waits for it.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a thread that waits for standard output checks whether the VM has ended.
const STALL_CHECK: Duration = Duration::from_millis(100);

/// The bytes that a writable pipe accepts without blocking, by POSIX.
const PIPE_BUF: usize = 512;

/// Starts copying bytes in both directions.
pub(crate) fn relay(shared: &Arc<Shared>) -> Result<()> {
    let (mut reader, mut writer) = VmConsole::new(Arc::clone(shared)).split();
    let vm = Arc::clone(shared);
    std::thread::Builder::new().name("capsa-stdout".into()).spawn(move || {
        let (mut chunk, mut lost, mut last_progress) = ([0; 8192], 0, Instant::now());
        while let Ok(n @ 1..) = block_on(reader.read(&mut chunk)) {
            if lost == 0 {
                last_progress = Instant::now();
            }
            for bytes in chunk[..n].chunks(PIPE_BUF) {
                if wait_for_room(&vm, &mut last_progress) {
                    let mut out = io::stdout().lock();
                    // Write errors are ignored: the guest runs on if standard output is closed.
                    let _ = out.write_all(bytes).and_then(|()| out.flush());
                } else {
                    lost += bytes.len();
                }
            }
        }
        if lost > 0 {
            tracing::warn!("{lost} bytes of console output are not written to standard output");
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

/// Waits until standard output accepts bytes. `false` once the VM was ended from outside and no byte was
/// accepted for [`STALL_TIMEOUT`].
fn wait_for_room(vm: &Shared, last_progress: &mut Instant) -> bool {
    let was_ended = |report: StopReport| report.time_limit || !report.steps.is_empty();
    while !wait_until_writable(io::stdout().as_fd(), STALL_CHECK) {
        let is_stalled = last_progress.elapsed() >= STALL_TIMEOUT;
        if is_stalled && vm.snapshot().report.is_some_and(was_ended) {
            return false;
        }
    }
    *last_progress = Instant::now();
    true
}
