//! vhost-device-vsock: sockets between host and guest, for hypervisors that would otherwise need
//! `/dev/vhost-vsock` and a context id of their own on the whole host.
//!
//! One process per machine. It serves the device on one socket, and on another what
//! [`VsockPlan`](crate::plan::VsockPlan) describes. When the hypervisor leaves it waits for the next
//! one (0.3.0), so it is told to end.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use crate::backend::{Probe, ProbeReport, Version};
use crate::host::Reason;
use crate::path::HostPath;
use crate::plan::{GUEST_CID, ProcessPlan, Readiness, RunDirPlan};

/// The key of its answer in the [`ProbeReport`].
pub const KEY: &str = "vhost-device-vsock";

/// The oldest version that was tried.
pub const MIN_VERSION: Version = Version::new(0, 2, 0);

/// What to look for.
pub fn probe() -> Probe {
    Probe {
        key: KEY,
        program: KEY,
        env: "CAPSA_VHOST_DEVICE_VSOCK",
        candidates: vec![KEY.to_string()],
        args: vec!["--version"],
    }
}

/// Everything that speaks against the program that was found. Empty when it can be used, and when
/// nobody asked.
pub fn blockers(found: &ProbeReport) -> Vec<Reason> {
    let what = found.version_blocker(KEY, KEY, MIN_VERSION, "nobody tried that");
    let remedy = "install it (cargo install vhost-device-vsock) and set CAPSA_VHOST_DEVICE_VSOCK if \
                  it is not in PATH, or use the cloud-hypervisor backend, which needs none";
    what.map(|what| Reason::new(what, remedy)).into_iter().collect()
}

/// The socket that the hypervisor's device connects to.
pub fn device_socket(at: &RunDirPlan) -> HostPath {
    at.socket("vsock.device")
}

/// The process that serves [`device_socket`]`(at)` to the hypervisor and `socket` to the host.
pub fn process(at: &RunDirPlan, socket: &HostPath, found: &ProbeReport) -> ProcessPlan {
    let device = device_socket(at);
    ProcessPlan {
        name: KEY.to_string(),
        program: found.program(KEY, KEY),
        args: vec![
            "--guest-cid".to_string(),
            GUEST_CID.to_string(),
            "--socket".to_string(),
            device.to_string(),
            "--uds-path".to_string(),
            socket.to_string(),
        ],
        // The host's socket is there before the device's.
        ready: Readiness::SocketExists(device),
        ends_with_hypervisor: false,
    }
}
