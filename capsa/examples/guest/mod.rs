//! What the examples of loops have in common: a machine, and a conversation with its guest.
//!
//! `KERNEL [INITRD]` behind the name of the program are booted. Without them the guest is played, so
//! that every example runs everywhere: `cargo run -p capsa --example loop_poll`.

use std::time::Duration;

use capsa::embed::{Ended, Vm, VmEvent};
use capsa::testing::{self, GuestReply, ScriptedGuest};
use capsa::{Capsa, LinuxBootConfig};

/// How long a guest may take to boot, in software emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The machine that the arguments name, or one that is played.
pub(crate) fn machine() -> capsa::Result<Vm> {
    let mut files = std::env::args_os().skip(1);
    let Some(kernel) = files.next() else { return played() };
    let config = files.next().map(|initrd| LinuxBootConfig::new(&kernel).initrd(initrd));
    let config = config.unwrap_or_else(|| LinuxBootConfig::new(&kernel));
    Capsa::vm(config).memory_mb(256).no_network().console_enabled().build_embedded()
}

/// A guest that lets root in and knows its kernel's release.
pub(crate) fn played() -> capsa::Result<Vm> {
    let guest = ScriptedGuest::new().print("booting\r\n").login("root", None).shell("# ");
    testing::vm(guest.on("uname -r", GuestReply::output("6.1.0\n"))).build_embedded()
}

/// Starts the machine, and gives what is to be done at each of its events: to log in, to run a
/// command, and to stop. `say` gets a line for each.
pub(crate) fn conversation(
    vm: &mut Vm,
    mut say: impl FnMut(String) + Send + 'static,
) -> capsa::Result<impl FnMut(&mut Vm, VmEvent) + Send + 'static> {
    vm.start()?;
    let reader = vm.add_reader();
    let login = vm.login(reader, "root", None, Some(PATIENCE))?;
    let mut command = None;
    Ok(move |vm: &mut Vm, event| match event {
        VmEvent::Status(status) => say(status.to_string()),
        VmEvent::Ended(wait) if wait == login => {
            say(format!("login: {}", told(vm.take_ended(wait))));
            command = vm.run_command(reader, "uname -r", None, Some(PATIENCE)).ok();
        }
        VmEvent::Ended(wait) if Some(wait) == command => {
            say(format!("uname -r: {}", told(vm.take_ended(wait))));
            // It runs, so it can be stopped; how that goes is told by the status.
            let _ = vm.stop();
        }
        _ => {}
    })
}

fn told(ended: Option<Ended>) -> String {
    match ended {
        Some(Ended::Script(Ok(reply))) => String::from_utf8_lossy(&reply.output).trim().to_owned(),
        other => format!("{other:?}"),
    }
}
