//! Shared by the event-loop examples: a VM, and an event handler that logs in and runs a command.
//!
//! The arguments `KERNEL [INITRD]` are booted. Without arguments the guest is simulated, so that
//! every example runs everywhere: `cargo run -p capsa-vm --example loop_poll`.

use std::time::Duration;

use capsa::embed::{Ended, Vm, VmEvent};
use capsa::testing::{self, GuestReply, ScriptedGuest};
use capsa::{Capsa, LinuxBootConfig};

/// How long a guest may take to boot, with software emulation on a busy host.
const PATIENCE: Duration = Duration::from_secs(180);

/// The VM that the arguments describe, or a simulated one.
pub(crate) fn vm() -> capsa::Result<Vm> {
    let mut files = std::env::args_os().skip(1);
    let Some(kernel) = files.next() else { return simulated() };
    let config = files.next().map(|initrd| LinuxBootConfig::new(&kernel).initrd(initrd));
    let config = config.unwrap_or_else(|| LinuxBootConfig::new(&kernel));
    Capsa::vm(config).memory_mb(256).no_network().console_enabled().build_embedded()
}

/// A simulated VM whose guest has a login and reports its kernel's release.
pub(crate) fn simulated() -> capsa::Result<Vm> {
    let guest = ScriptedGuest::new().print("booting\r\n").login("root", None).shell("# ");
    testing::vm(guest.on("uname -r", GuestReply::output("6.1.0\n"))).build_embedded()
}

/// Starts the VM and returns its event handler, which logs in, runs a command and stops the VM.
/// `log` receives a line for each step.
pub(crate) fn event_handler(
    vm: &mut Vm,
    mut log: impl FnMut(String) + Send + 'static,
) -> capsa::Result<impl FnMut(&mut Vm, VmEvent) + Send + 'static> {
    vm.start()?;
    let reader = vm.add_reader();
    let login = vm.login(reader, "root", None, Some(PATIENCE))?;
    let mut command = None;
    Ok(move |vm: &mut Vm, event| match event {
        VmEvent::Status(status) => log(status.to_string()),
        VmEvent::Ended(wait) if wait == login => {
            log(format!("login: {}", summary(vm.take_ended(wait))));
            command = vm.run(reader, "uname -r", Some(PATIENCE)).ok();
        }
        VmEvent::Ended(wait) if Some(wait) == command => {
            log(format!("uname -r: {}", summary(vm.take_ended(wait))));
            // The VM runs, so the stop cannot fail; its progress shows in the status.
            let _ = vm.stop();
        }
        _ => {}
    })
}

fn summary(ended: Option<Ended>) -> String {
    match ended {
        Some(Ended::Script(Ok(reply))) => String::from_utf8_lossy(&reply.output).trim().to_owned(),
        other => format!("{other:?}"),
    }
}
