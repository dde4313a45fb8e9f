//! Other user-mode network stacks between a guest and the host's loopback: slirp4netns and pasta.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use capsa_fixtures::command;
use capsa_fixtures::host::find_program;

use crate::RigError;
use crate::namespace::{Namespace, TAP, unprivileged};

/// The address at which every stack of the rig shows the host's loopback.
pub const GATEWAY: &str = "10.0.2.2";

/// The name server of the guests of Capsa.
pub(crate) const NAME_SERVER: &str = "10.0.2.3";

/// A process that ends with its owner.
#[derive(Debug)]
pub struct RigProcess(pub Child);

impl Drop for RigProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// slirp4netns, which creates and configures the card of the guest.
///
/// # Errors
///
/// When it does not start.
pub fn slirp4netns(host: &Namespace, guest: &Namespace, mtu: u16) -> Result<RigProcess, RigError> {
    let program = find_program("slirp4netns").ok_or("slirp4netns is not installed")?;
    let mut command = host.command(program);
    command.args(["--configure", "--enable-ipv6", &format!("--mtu={mtu}")]);
    command.args([&guest.pid().to_string(), TAP]);
    let process = RigProcess(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    wait_for_card(guest)?;
    Ok(process)
}

/// pasta, for a guest of [`Namespace::new_unprivileged`]: it does not run as root.
///
/// # Errors
///
/// When it does not start.
pub fn pasta(
    rig: &Path,
    host: &Namespace,
    guest: &Namespace,
    mtu: u16,
) -> Result<RigProcess, RigError> {
    let program: PathBuf = capsa_fixtures::host::pasta::ensure()?;
    let mut command = host.command(rig);
    command.args(unprivileged_arguments(&program));
    command.args(["--foreground", "--quiet", "--config-net", "--ns-ifname", TAP]);
    command.args(["--address", "10.0.2.15", "--netmask", "24", "--gateway", GATEWAY]);
    command.args(["--mtu", &mtu.to_string(), "--no-map-gw", "--map-host-loopback", GATEWAY]);
    command.args(["--tcp-ports", "none", "--udp-ports", "none"]);
    command.args(["--tcp-ns", "none", "--udp-ns", "none", &guest.pid().to_string()]);
    let process = RigProcess(command.stdout(Stdio::null()).spawn()?);
    wait_for_card(guest)?;
    Ok(process)
}

fn unprivileged_arguments(program: &Path) -> Vec<std::ffi::OsString> {
    let command = unprivileged(Path::new(""), program);
    command.get_args().map(Into::into).collect()
}

/// Waits until the card of the guest has its address.
fn wait_for_card(guest: &Namespace) -> Result<(), RigError> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let mut show = guest.command("ip");
        let shown = command::text(show.args(["-4", "route", "show", "default", "dev", TAP]));
        if shown.is_ok_and(|text| text.contains(GATEWAY)) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("the card {TAP} was not configured within 10 s").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
