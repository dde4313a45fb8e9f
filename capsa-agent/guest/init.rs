//! Process 1: starts the agent beside itself, and becomes the guest's own init.
//!
//! Nothing of the agent is left in the initramfs then, and init has the arguments, the environment and the
//! descriptors that the kernel gave.

use alloc::format;
use alloc::vec::Vec;

use crate::agent::Agent;
use crate::guest::BootedGuest;
use crate::links::Links;
use crate::protocol::NONCE_LEN;
use crate::sys::{self, Errno, Fd, Outcome, Start};

const DIRECTORY: &[u8] = b"/capsa-agent";
const PROGRAM: &[u8] = b"/capsa-agent/agent";
const NONCE: &[u8] = b"/capsa-agent/nonce";
/// The path of the guest's own init, if it is not [`DEFAULT_INIT`].
const RDINIT: &[u8] = b"/capsa-agent/rdinit";
const DEFAULT_INIT: &[u8] = b"/init";

/// systemd in an initrd does not kill processes whose first argument begins with `@` when it changes to the
/// final root.
const NAME: &[u8] = b"@capsa-agent";

/// Starts the agent, and becomes the guest's own init.
///
/// # Errors
///
/// When there is no such init. A guest without agent still boots.
pub(crate) fn run(start: &Start) -> Outcome<()> {
    let rdinit = sys::read_file(None, RDINIT, 4096).unwrap_or_default();
    let rdinit = rdinit.trim_ascii_end();
    let init = if rdinit.is_empty() { DEFAULT_INIT } else { rdinit };
    let nonce = crate::read_nonce(NONCE);
    for file in [NONCE, RDINIT, PROGRAM] {
        let _ = sys::remove_at(None, file, false);
    }
    let guest = BootedGuest::mount(DIRECTORY);
    let _ = sys::remove_at(None, DIRECTORY, true);
    let started = nonce.and_then(|nonce| {
        let guest = guest?;
        if sys::fork()?.is_none() {
            start.rename(NAME);
            let served = serve(nonce, guest);
            sys::exit(served.err().map_or(0, |Errno(errno)| errno));
        }
        Ok(())
    });
    if let Err(errno) = started {
        report("cannot start the agent", errno);
    }
    let args = start.args().skip(1).map(<[u8]>::to_vec);
    let args: Vec<_> = core::iter::once(init.to_vec()).chain(args).collect();
    let env: Vec<_> = start.env().map(<[u8]>::to_vec).collect();
    let errno = sys::exec(init, &args, &env);
    report("cannot execute the guest's init", errno);
    Err(errno)
}

/// Prints a failure on the console.
fn report(failure: &str, Errno(errno): Errno) {
    let _ = Fd::inherited(2).write(format!("capsa-agent: {failure}: errno {errno}\n").as_bytes());
}

fn serve(nonce: [u8; NONCE_LEN], guest: BootedGuest) -> Outcome<()> {
    sys::set_name(&NAME[1..]);
    sys::begin_session();
    guest.set_out_of_memory_score(b"-1000");
    for number in 0..3 {
        guest.null().duplicate_to(number)?;
    }
    Agent::new(nonce, guest, Links::none())?.run();
    Ok(())
}
