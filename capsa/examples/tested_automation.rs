//! A program that automates a guest, and its tests. `cargo test -p capsa-vm --features blocking
//! --example tested_automation` runs the tests without a hypervisor, in milliseconds.
//!
//! `cargo run -p capsa-vm --features blocking --example tested_automation KERNEL INITRD` runs the
//! program.

use std::time::Duration;

use capsa::blocking::VmHandle;
use capsa::{Capsa, LinuxBootConfig};

/// The release of the guest's kernel, if the guest is healthy.
fn release(vm: &VmHandle) -> Result<String, Box<dyn std::error::Error>> {
    vm.start()?;
    let mut console = vm.console()?;
    console.login_timeout("root", None, Duration::from_secs(120))?;
    let health = console.run("systemctl is-system-running", Some(Duration::from_secs(60)))?;
    if health.status != Some(0) {
        return Err(format!("not healthy: {}", String::from_utf8_lossy(&health.output)).into());
    }
    let release = console.run_command("uname -r", "# ")?;
    vm.stop()?;
    Ok(release.trim().to_owned())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(kernel), Some(initrd)) = (arguments.next(), arguments.next()) else {
        return Err("usage: tested_automation KERNEL INITRD".into());
    };
    let config = LinuxBootConfig::new(kernel).initrd(initrd);
    let vm = Capsa::vm(config).memory_mb(512).no_network().console_enabled().build_blocking()?;
    println!("{}", release(&vm)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa::testing::{self, GuestReply, ScriptedGuest, TestResult};

    fn guest() -> ScriptedGuest {
        ScriptedGuest::new()
            .login("root", None)
            .shell("# ")
            .on("uname -r", GuestReply::output("6.1.0\n"))
    }

    #[test]
    fn release_of_healthy_guest() -> TestResult {
        let guest = guest().on("systemctl is-system-running", GuestReply::output("running\n"));
        let vm = testing::vm(guest).build_blocking()?;
        let _guard = testing::show_on_failure(&vm);
        assert_eq!(release(&vm)?, "6.1.0");
        Ok(())
    }

    #[test]
    fn release_of_degraded_guest_is_an_error() -> TestResult {
        let degraded = GuestReply::output("degraded\n").with_status(1);
        let vm =
            testing::vm(guest().on("systemctl is-system-running", degraded)).build_blocking()?;
        let _guard = testing::show_on_failure(&vm);
        assert_eq!(release(&vm).unwrap_err().to_string(), "not healthy: degraded\n");
        Ok(())
    }

    #[test]
    fn release_of_panicking_guest_fails_at_once() -> TestResult {
        let vm = testing::vm(ScriptedGuest::new().panic("no init found")).build_blocking()?;
        let _guard = testing::show_on_failure(&vm);
        assert!(release(&vm).is_err());
        Ok(())
    }
}
