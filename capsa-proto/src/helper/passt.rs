//! passt: NAT in user space, for hypervisors without NAT of their own.
//!
//! One unprivileged process per VM, which sandboxes itself (as root it becomes `nobody`). It accepts
//! one connection and exits when that closes. The addresses are those of QEMU's user-mode network: the
//! guest is 10.0.2.15 (by DHCP), the host's loopback is 10.0.2.2, the name server is 10.0.2.3. No port
//! of the guest is reachable from outside. On a host without a default route passt uses its "local
//! mode" (2025_05_03): the guest is 169.254.2.1 and its gateway 169.254.2.2; 10.0.2.2 still reaches the
//! host's loopback.
//!
//! passt supports vhost-user since 2024_11_27 (its version tags are dates). Distributions format the
//! version differently, so the probe looks for the option in the help text instead.

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use crate::backend::{Probe, ProbeReport, ProbeResult};
use crate::host::Reason;
use crate::path::HostPath;
use crate::plan::{ProcessPlan, Readiness, RunDirPlan};

/// The key of its result in the [`ProbeReport`].
pub const KEY: &str = "passt";

/// The probe of the program.
pub fn probe() -> Probe {
    Probe {
        key: KEY,
        program: KEY,
        env: "CAPSA_PASST",
        candidates: vec![KEY.to_string()],
        args: vec!["--help"],
    }
}

/// The blockers of the passt that was found. Empty if it can be used or was not probed.
pub fn blockers(found: &ProbeReport) -> Vec<Reason> {
    let what = match found.get(KEY) {
        None => return Vec::new(),
        Some(ProbeResult::Output { output, .. }) if output.contains("--vhost-user") => {
            return Vec::new();
        }
        Some(ProbeResult::Output { program, .. }) => {
            format!("{program} has no vhost-user mode: it is older than 2024_11_27")
        }
        Some(ProbeResult::Failed { program, reason, .. }) => {
            format!("{program} does not work, or is too old: {reason}")
        }
        Some(ProbeResult::NotFound { tried }) => {
            format!("passt was not found (tried {})", tried.join(", "))
        }
    };
    let remedy = "install passt 2024_11_27 or later and set CAPSA_PASST if it is not in PATH, use \
                  the qemu backend, or set network to none";
    vec![Reason::new(what, remedy)]
}

/// The name of the socket of the VM's network.
pub const SOCKET_NAME: &str = "net.sock";

/// The socket of the VM's network.
pub fn socket(at: &RunDirPlan) -> HostPath {
    at.socket(SOCKET_NAME)
}

/// The process that serves the VM's network on [`socket`]`(at)`.
pub fn process(at: &RunDirPlan, found: &ProbeReport) -> ProcessPlan {
    let socket = socket(at);
    let args = [
        "--foreground",
        "--quiet",
        "--one-off",
        "--vhost-user",
        "--socket",
        socket.as_str(),
        "--ipv4-only",
        "--address",
        "10.0.2.15",
        "--netmask",
        "24",
        "--gateway",
        "10.0.2.2",
        "--map-host-loopback",
        "10.0.2.2",
        "--dns",
        "10.0.2.3",
        "--dns-forward",
        "10.0.2.3",
    ];
    ProcessPlan {
        name: "passt".to_string(),
        program: found.program(KEY, KEY),
        args: args.map(ToString::to_string).into(),
        descriptors: Vec::new(),
        ready: Readiness::SocketExists(socket),
        ends_with_hypervisor: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blockers_require_vhost_user_option() {
        let with = |result| {
            let mut found = ProbeReport::default();
            found.insert(KEY, result);
            blockers(&found)
        };
        let with_output = |output: &str| {
            with(ProbeResult::Output { program: "/p".into(), output: output.into() })
        };
        assert_eq!(blockers(&ProbeReport::default()), []);
        assert_eq!(with_output("Usage: passt\n  --vhost-user  Enable vhost-user mode"), []);
        assert!(with_output("Usage: passt [OPTION]...")[0].what.contains("no vhost-user mode"));
        assert!(
            with(ProbeResult::NotFound { tried: vec!["passt".into()] })[0].remedy.contains("qemu")
        );
    }

    #[test]
    fn process_serves_device_socket() {
        let at = RunDirPlan::new(HostPath::new("/run/c/1").unwrap());
        let plan = process(&at, &ProbeReport::default());
        assert_eq!(plan.ready, Readiness::SocketExists(socket(&at)));
        assert!(plan.args.iter().any(|arg| arg == "/run/c/1/net.sock"));
    }
}
