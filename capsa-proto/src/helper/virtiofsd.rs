//! virtiofsd: one process per virtio-fs share, for the backends that do not share by themselves.
//!
//! This module has the probe, the blockers and the process plan of a share. The backend adds the
//! device that connects to the socket, and the mount tag: `--tag` is not used, because it crashes
//! QEMU 7.1 to 8.0.
//!
//! Two programs have this name. Capsa needs the one written in Rust, with versions from 1.0. The older
//! one, in C, was part of QEMU up to 7.2 and has QEMU's version numbers. It does not support read-only
//! shares; Capsa detects it by its output and reports it as a blocker.
//!
//! virtiofsd sandboxes itself in new namespaces. This works for root, and for other users through a
//! user namespace; files that the guest writes then belong to that user. Where the kernel allows
//! neither (in many containers) virtiofsd exits, and the start fails with its error text. Capsa never
//! turns the sandbox off.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use crate::backend::{Probe, ProbeReport, Version};
use crate::capabilities::{CacheMode, PlannedMechanism, PlannedShare};
use crate::host::{HostFacts, Reason};
use crate::path::HostPath;
use crate::plan::{DescriptorKind, Note, ProcessPlan, Readiness, RunDirPlan, add_descriptor};
use crate::spec::{MountMode, Share, ShareMechanism};

/// The key of its result in the [`ProbeReport`].
pub const KEY: &str = "virtiofsd";

/// The environment variable that sets the path of the program.
pub(crate) const ENV: &str = "CAPSA_VIRTIOFSD";

/// The oldest version that has `--readonly` (read from the sources of 1.12.0 and 1.13.0).
pub(crate) const MIN_VERSION: Version = Version::new(1, 13, 0);

/// The probe of the program.
///
/// Distributions install it outside of `PATH`: Debian and Fedora in `/usr/libexec`, Arch in `/usr/lib`.
pub fn probe() -> Probe {
    Probe {
        key: KEY,
        program: KEY,
        env: ENV,
        candidates: vec![
            "virtiofsd".to_string(),
            "/usr/libexec/virtiofsd".to_string(),
            "/usr/lib/virtiofsd".to_string(),
        ],
        args: vec!["--version"],
    }
}

/// The blockers of the virtiofsd that was found. Empty if it can be used or was not probed.
pub fn blockers(found: &ProbeReport) -> Vec<Reason> {
    const INSTALL: &str = "install virtiofsd 1.13 or later (the package virtiofsd, or cargo install \
                           virtiofsd after libcap-ng-dev and libseccomp-dev) and set CAPSA_VIRTIOFSD if it is not in PATH";
    let what = match found.output(KEY) {
        // "virtiofsd version 7.2.22", or none at all before QEMU 6.1, and then always
        // "using FUSE kernel interface version 7.36".
        Some(output) if output.contains("FUSE kernel interface") => Some(format!(
            "{} is the virtiofsd of QEMU 7.2 and older, which does not support read-only shares",
            found.program(KEY, KEY)
        )),
        _ => found.version_blocker(
            KEY,
            KEY,
            MIN_VERSION,
            "older versions do not support read-only shares",
        ),
    };
    what.map(|what| Reason::new(what, INSTALL)).into_iter().collect()
}

/// A note if virtiofsd can keep open fewer files than a source tree with its packages has, and a warning if
/// it is fewer than a source tree has.
///
/// An ordinary user has no other remedy: virtiofsd (1.14, on Linux 6.18) cannot open files by handles in
/// its user namespace, and the guest's kernel forgets files only when it needs memory.
pub fn note(host: &HostFacts) -> Option<Note> {
    const MANY: u64 = 100_000;
    const FEW: u64 = 10_000;
    let limit = host.share_files.filter(|limit| *limit < MANY)?;
    let note = if limit < FEW { Note::warning } else { Note::info };
    Some(note(format!(
        "the guest can use about {limit} files of a share at a time; for more, raise the hard limit of open \
         files (`ulimit -Hn`, LimitNOFILE= of a service), or run as root"
    )))
}

/// The socket of the `n`th share of a VM.
pub fn socket(n: usize, at: &RunDirPlan) -> HostPath {
    at.socket(&socket_name(n))
}

/// The length in bytes of the longest socket name that these shares need; 0 if none uses virtio-fs.
pub fn longest_socket_name(shares: &[Share]) -> usize {
    let uses_it = |share: &Share| !matches!(share.mechanism, ShareMechanism::Virtio9p(_));
    shares.iter().rposition(uses_it).map_or(0, |last| socket_name(last).len())
}

fn socket_name(n: usize) -> String {
    format!("fs{n}.sock")
}

/// The process that serves `share`, the `n`th share of its VM, on [`socket`]`(n, at)`.
///
/// It inherits the socket, so that the hypervisor can connect before virtiofsd has set up its sandbox.
/// It accepts one connection and exits when that closes, so it ends with the hypervisor.
pub fn process(
    share: &PlannedShare,
    n: usize,
    at: &RunDirPlan,
    found: &ProbeReport,
) -> ProcessPlan {
    let mut descriptors = Vec::new();
    let listener = DescriptorKind::Listener { socket: socket(n, at) };
    let fd = add_descriptor(&mut descriptors, listener).to_string();
    let cache = match &share.mechanism {
        PlannedMechanism::VirtioFs { cache } => *cache,
        PlannedMechanism::Virtio9p { .. } => panic!("a 9p share has no virtiofsd"),
    };
    let mut args: Vec<_> = [
        "--fd",
        &fd,
        "--shared-dir",
        share.host.as_str(),
        "--cache",
        match cache {
            CacheMode::Auto => "auto",
            CacheMode::Always => "always",
            CacheMode::None => "never",
        },
        "--sandbox",
        "namespace",
        // Opens files again by handles instead of keeping a descriptor for each file that the guest's kernel
        // remembers. Needs CAP_DAC_READ_SEARCH; without it, virtiofsd keeps descriptors.
        // The parser takes the value only after an equal sign.
        "--inode-file-handles=prefer",
    ]
    .map(ToString::to_string)
    .into();
    if share.mode == MountMode::ReadOnly {
        args.push("--readonly".to_string());
    }
    ProcessPlan {
        name: format!("virtiofsd for {}", share.guest),
        program: found.program(KEY, "virtiofsd"),
        args,
        descriptors,
        ready: Readiness::Immediate,
        ends_with_hypervisor: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ProbeResult;
    use crate::plan::DescriptorPlan;

    fn report(output: &str) -> ProbeReport {
        let mut found = ProbeReport::default();
        let (program, output) = ("/usr/libexec/virtiofsd".into(), String::from(output));
        found.insert(KEY, ProbeResult::Output { program, output });
        found
    }

    fn share(mode: MountMode, cache: CacheMode) -> PlannedShare {
        PlannedShare {
            host: HostPath::new("/srv/my work,1").unwrap(),
            guest: "/workspace".into(),
            mode,
            tag: "capsa0".into(),
            mechanism: PlannedMechanism::VirtioFs { cache },
            reason: "requested".into(),
        }
    }

    #[test]
    fn blockers_require_rust_version_1_13() {
        for (output, want) in [
            ("virtiofsd 1.14.0", None),
            ("virtiofsd 1.13.0\n", None),
            ("virtiofsd backend 1.10.1", Some("version 1.10.1 is too old")),
            ("virtiofsd 1.12.0", Some("version 1.12.0 is too old")),
            (
                "virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)\n\
                 using FUSE kernel interface version 7.36",
                Some("virtiofsd of QEMU"),
            ),
            ("using FUSE kernel interface version 7.33", Some("virtiofsd of QEMU")),
            ("hello", Some("did not print a version")),
        ] {
            let reasons = blockers(&report(output));
            match want {
                None => assert_eq!(reasons, [], "{output}"),
                Some(want) => assert!(reasons[0].what.contains(want), "{output}: {reasons:?}"),
            }
        }
    }

    #[test]
    fn blockers_missing_or_broken_program_is_reported() {
        assert_eq!(blockers(&ProbeReport::default()), []);
        let mut found = ProbeReport::default();
        found.insert(KEY, ProbeResult::NotFound { tried: probe().candidates });
        assert!(blockers(&found)[0].what.contains("/usr/libexec/virtiofsd"));
        found.insert(
            KEY,
            ProbeResult::Failed { program: "/x".into(), reason: "status 127".into(), remedy: None },
        );
        assert!(blockers(&found)[0].what.contains("status 127"));
    }

    #[test]
    fn process_serves_share_on_own_socket() {
        let at = RunDirPlan::new(HostPath::new("/run/c/1").unwrap());
        let read_only = process(&share(MountMode::ReadOnly, CacheMode::None), 3, &at, &report(""));
        assert_eq!(read_only.name, "virtiofsd for /workspace");
        assert_eq!(read_only.program, "/usr/libexec/virtiofsd");
        assert_eq!(
            read_only.args.join("|"),
            "--fd|3|--shared-dir|/srv/my work,1|--cache|never|--sandbox|\
             namespace|--inode-file-handles=prefer|--readonly"
        );
        let listener = DescriptorKind::Listener { socket: socket(3, &at) };
        assert_eq!(read_only.descriptors[..], [DescriptorPlan { number: 3, kind: listener }]);
        assert_eq!(read_only.ready, Readiness::Immediate);

        let found = ProbeReport::default();
        let writable = process(&share(MountMode::ReadWrite, CacheMode::Auto), 0, &at, &found);
        assert_eq!(writable.program, "virtiofsd");
        assert!(!writable.args.iter().any(|arg| arg == "--readonly"));
    }
}
