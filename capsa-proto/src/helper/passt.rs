//! passt: the guest's network behind the host's own, for hypervisors that have no NAT.
//!
//! One process per machine, unprivileged and sandboxed by itself (as root it becomes `nobody`). It
//! takes one connection and ends with it. The guest sees what it would see behind QEMU's user-mode
//! network: itself at 10.0.2.15 by DHCP, the host's loopback at 10.0.2.2, a name server at 10.0.2.3.
//! No port of the guest is reachable from outside. On a host without a default route passt has its
//! own mind ("local mode", 2025_05_03): the guest is 169.254.2.1 and its gateway 169.254.2.2, and what
//! it reaches at 10.0.2.2 stays the same.
//!
//! It speaks vhost-user since 2024_11_27 (passt's own tags are dates). Distributions spell versions in
//! their own ways, so its help is asked for the option instead.

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use crate::backend::{Probe, ProbeReport, ProbeResult};
use crate::host::Reason;
use crate::path::HostPath;
use crate::plan::{ProcessPlan, Readiness, RunDirPlan};

/// The key of its answer in the [`ProbeReport`].
pub const KEY: &str = "passt";

/// What to look for.
pub fn probe() -> Probe {
    Probe {
        key: KEY,
        program: KEY,
        env: "CAPSA_PASST",
        candidates: vec![KEY.to_string()],
        args: vec!["--help"],
    }
}

/// Everything that speaks against the passt that was found. Empty when it can be used, and when
/// nobody asked.
pub fn blockers(found: &ProbeReport) -> Vec<Reason> {
    let what = match found.get(KEY) {
        None => return Vec::new(),
        Some(ProbeResult::Output { output, .. }) if output.contains("--vhost-user") => {
            return Vec::new();
        }
        Some(ProbeResult::Output { program, .. }) => {
            format!("{program} is older than 2024_11_27: it has no vhost-user mode")
        }
        Some(ProbeResult::Failed { program, reason }) => {
            format!("{program} does not work, or is too old: {reason}")
        }
        Some(ProbeResult::NotFound { tried }) => {
            format!("passt was not found (tried {})", tried.join(", "))
        }
    };
    let remedy = "install passt 2024_11_27 or later and set CAPSA_PASST if it is not in PATH, use \
                  the qemu backend, or ask for no network";
    vec![Reason::new(what, remedy)]
}

/// The socket that serves the machine's network.
pub fn socket(at: &RunDirPlan) -> HostPath {
    at.socket("net.sock")
}

/// The process that serves the machine's network on [`socket`]`(at)`.
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
        ready: Readiness::SocketExists(socket),
        ends_with_hypervisor: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_speaks_against_it() {
        let with = |answer| {
            let mut found = ProbeReport::default();
            found.insert(KEY, answer);
            blockers(&found)
        };
        let said = |output: &str| {
            with(ProbeResult::Output { program: "/p".into(), output: output.into() })
        };
        assert_eq!(blockers(&ProbeReport::default()), []);
        assert_eq!(said("Usage: passt\n  --vhost-user  Enable vhost-user mode"), []);
        assert!(said("Usage: passt [OPTION]...")[0].what.contains("no vhost-user mode"));
        assert!(
            with(ProbeResult::NotFound { tried: vec!["passt".into()] })[0].remedy.contains("qemu")
        );
    }

    #[test]
    fn the_process_serves_the_socket_that_devices_connect_to() {
        let at = RunDirPlan::new(HostPath::new("/run/c/1").unwrap());
        let plan = process(&at, &ProbeReport::default());
        assert_eq!(plan.ready, Readiness::SocketExists(socket(&at)));
        assert!(plan.args.iter().any(|arg| arg == "/run/c/1/net.sock"));
    }
}
