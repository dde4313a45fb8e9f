//! vhost-device-vsock: vsock in user space, for hypervisors that would otherwise need
//! `/dev/vhost-vsock` and a context id that is unique on the host.
//!
//! One process per VM. It serves the vhost-user device on one socket, and the host side, as in
//! [`VsockPlan`](crate::plan::VsockPlan), on another. When the hypervisor exits it waits for the next
//! one (0.3.0), so the lifecycle terminates it.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use crate::backend::{Probe, ProbeReport, Version};
use crate::host::Reason;
use crate::path::HostPath;
use crate::plan::{GUEST_CID, ProcessPlan, Readiness, RunDirPlan};

/// The key of its result in the [`ProbeReport`].
pub const KEY: &str = "vhost-device-vsock";

/// The oldest tested version.
pub(crate) const MIN_VERSION: Version = Version::new(0, 2, 0);

/// The probe of the program.
pub fn probe() -> Probe {
    Probe {
        key: KEY,
        program: KEY,
        env: "CAPSA_VHOST_DEVICE_VSOCK",
        candidates: vec![KEY.to_string()],
        args: vec!["--version"],
    }
}

/// The blockers of the program that was found. Empty if it can be used or was not probed.
pub fn blockers(found: &ProbeReport) -> Vec<Reason> {
    let what = found.version_blocker(KEY, KEY, MIN_VERSION, "older versions are untested");
    let remedy = "install it (cargo install vhost-device-vsock) and set CAPSA_VHOST_DEVICE_VSOCK if \
                  it is not in PATH, or use the cloud-hypervisor backend, which does not need it";
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
        descriptors: Vec::new(),
        // The host side's socket exists before the device's.
        ready: Readiness::SocketExists(device),
        ends_with_hypervisor: false,
    }
}
