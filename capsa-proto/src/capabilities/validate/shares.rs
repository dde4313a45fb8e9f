//! Validates the shares of a VM spec, and chooses a mechanism and a tag for each.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::super::{CacheMode, PlannedMechanism, PlannedShare, ViolationKind as Kind};
use super::Validation;
use crate::host::{FileFacts, Reason};
use crate::path::HostPath;
use crate::plan::Note;
use crate::spec::{MountMode, Share, ShareMechanism};

const DEFAULT_MSIZE: u32 = 262_144;
/// The tag field of the virtio-fs device's configuration (virtio 1.2, 5.11.4).
const VIRTIOFS_TAG_MAX: usize = 36;
/// QEMU's `MAX_TAG_LEN` is 32 with its NUL.
const P9_TAG_MAX: usize = 31;

impl Validation<'_> {
    pub(super) fn shares(&mut self) -> Vec<PlannedShare> {
        let spec = self.spec;
        let mut tags = BTreeSet::new();
        let mut targets = BTreeSet::new();
        let mut planned = Vec::new();
        for (n, share) in spec.shares.iter().enumerate() {
            let field = |part: &str| format!("shares[{n}].{part}");
            self.share_host(&field("host"), &share.host, share.mode);
            self.share_guest(&field("guest"), &share.guest);
            self.nested_share(&field("guest"), share);
            if !targets.insert(share.guest.trim_end_matches('/').to_owned()) {
                self.reject(
                    field("guest"),
                    Kind::Duplicate,
                    format!("two shares are mounted at {}", share.guest),
                    "use a different mount point for each",
                );
            }
            let Some((tag, mechanism, why)) = self.share_mechanism(n, &share.mechanism) else {
                continue;
            };
            if !tags.insert(tag.clone()) {
                self.reject(
                    field("tag"),
                    Kind::Duplicate,
                    format!("two shares have the tag {tag:?}"),
                    "set a different tag for each, or none",
                );
            }
            planned.push(PlannedShare {
                host: share.host.clone(),
                guest: share.guest.clone(),
                mode: share.mode,
                tag,
                mechanism,
                reason: why,
            });
        }
        planned
    }

    fn share_host(&mut self, field: &str, path: &HostPath, mode: MountMode) {
        match self.host.file(path) {
            FileFacts::Directory { writable: false } if mode == MountMode::ReadWrite => self
                .reject(
                    field,
                    Kind::NoAccess,
                    format!("{path} is shared read-write, but this user cannot write to it"),
                    "share it read-only, or make it writable for this user",
                ),
            FileFacts::Directory { .. } => {}
            FileFacts::Missing => {
                self.reject(
                    field,
                    Kind::Missing,
                    format!("{path} does not exist"),
                    "create the directory first",
                );
            }
            FileFacts::Unreadable(why) => self.reject(
                field,
                Kind::NoAccess,
                format!("{path} cannot be read: {why}"),
                "make it readable for this user",
            ),
            FileFacts::File { .. } | FileFacts::Special => self.reject(
                field,
                Kind::WrongType,
                format!("{path} is not a directory"),
                "share the directory that contains it",
            ),
        }
    }

    fn share_guest(&mut self, field: &str, guest: &str) {
        let reason = if !guest.starts_with('/') || guest.trim_end_matches('/').is_empty() {
            "must be an absolute path below the root"
        } else if guest.split('/').any(|part| part == "..") {
            "must not contain .."
        } else if guest.bytes().any(|b| b <= b' ' || b == 0x7f || b":\"\\%,".contains(&b)) {
            // The path is part of `systemd.mount-extra=` on the kernel command line, where these characters
            // are syntax.
            "must not contain blanks, control characters or any of : \" \\ % ,"
        } else {
            return;
        };
        self.reject(
            field,
            Kind::Malformed,
            format!("{guest:?} {reason}"),
            "use a path such as /workspace",
        );
    }

    /// A share inside another one needs a directory to be mounted on, which the outer share must show.
    fn nested_share(&mut self, field: &str, share: &Share) {
        let Some((outer, mount_point)) = share.outer(&self.spec.shares) else { return };
        let (guest, outside) = (&share.guest, &outer.guest);
        let exists = matches!(self.host.file(&mount_point), FileFacts::Directory { .. });
        if !exists && outer.mode == MountMode::ReadOnly {
            let reason = format!(
                "{guest} is inside the read-only share {outside}, which has no such directory: \
                 {mount_point} does not exist"
            );
            let remedy = "create that directory on the host, or mount one of the shares elsewhere";
            return self.reject(field, Kind::Missing, reason, remedy);
        }
        let creates = if exists { "" } else { "; the guest creates the directory on the host" };
        self.notes.push(Note::info(format!(
            "{guest} is mounted inside the share {outside}, and covers {mount_point} there{creates}"
        )));
    }

    fn share_mechanism(
        &mut self,
        n: usize,
        asked: &ShareMechanism,
    ) -> Option<(String, PlannedMechanism, String)> {
        let capabilities = self.backend.capabilities();
        let (has_fs, has_9p) = (capabilities.virtio_fs, capabilities.virtio_9p);
        let fs_blockers = self.backend.virtio_fs_blockers(self.host, self.found);
        let tag = format!("capsa{n}");
        let fs = PlannedMechanism::VirtioFs { cache: CacheMode::Auto };
        let p9 = PlannedMechanism::Virtio9p { msize: DEFAULT_MSIZE };
        match asked {
            ShareMechanism::Auto if has_fs && fs_blockers.is_empty() => {
                Some((tag, fs, "virtio-fs is the fastest mechanism of this backend".into()))
            }
            ShareMechanism::Auto if has_9p => {
                let why = match fs_blockers.first() {
                    Some(reason) => {
                        // A guest without the 9p driver shows an empty directory, and reports it only on
                        // its console.
                        let guest = &self.spec.shares[n].guest;
                        self.notes.push(Note::warning(format!(
                            "{guest} is shared with 9p because virtio-fs is unavailable: {reason}; some guest \
                             kernels, e.g. Debian's cloud kernels, cannot mount 9p"
                        )));
                        format!("virtio-fs is unavailable: {}", reason.what)
                    }
                    None => "this backend does not support virtio-fs".into(),
                };
                Some((tag, p9, why))
            }
            ShareMechanism::Auto => {
                self.require_virtio_fs(n, &fs_blockers);
                None
            }
            ShareMechanism::VirtioFs(config) => {
                self.require_virtio_fs(n, &fs_blockers);
                let cache = self.cache_mode(n, config.cache.as_deref());
                let tag = self.tag(n, config.tag.as_deref(), VIRTIOFS_TAG_MAX);
                Some((tag, PlannedMechanism::VirtioFs { cache }, "requested".into()))
            }
            ShareMechanism::Virtio9p(config) => {
                let msize = config.msize.unwrap_or(DEFAULT_MSIZE);
                if !(4096..=16 << 20).contains(&msize) {
                    self.reject(
                        format!("shares[{n}].msize"),
                        Kind::OutOfRange,
                        format!("invalid message size {msize}: expected 4096 to 16777216 bytes"),
                        "omit it for the default of 262144",
                    );
                }
                let tag = self.tag(n, config.tag.as_deref(), P9_TAG_MAX);
                Some((tag, PlannedMechanism::Virtio9p { msize }, "requested".into()))
            }
        }
    }

    fn require_virtio_fs(&mut self, n: usize, blockers: &[Reason]) {
        let field = format!("shares[{n}].mechanism");
        for reason in blockers {
            self.unsupported(&field, reason.what.clone(), reason.remedy.clone());
        }
    }

    fn cache_mode(&mut self, n: usize, asked: Option<&str>) -> CacheMode {
        match asked {
            None | Some("auto") => CacheMode::Auto,
            Some("always") => CacheMode::Always,
            Some("none" | "never") => CacheMode::None,
            Some(other) => {
                self.reject(
                    format!("shares[{n}].cache"),
                    Kind::Malformed,
                    format!("invalid cache mode {other:?}"),
                    "use auto, always or none",
                );
                CacheMode::Auto
            }
        }
    }

    fn tag(&mut self, n: usize, asked: Option<&str>, max: usize) -> String {
        let Some(tag) = asked else { return format!("capsa{n}") };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if tag.is_empty() || tag.len() > max || !tag.bytes().all(plain) {
            self.reject(
                format!("shares[{n}].tag"),
                Kind::Malformed,
                format!("invalid mount tag {tag:?}"),
                format!("use 1 to {max} letters, digits, '-', '_' or '.'"),
            );
        }
        tag.to_string()
    }
}

/// The shares in an order in which each one can be seen: one inside another is mounted after it.
pub(in super::super) fn in_mount_order(shares: &[PlannedShare]) -> Vec<PlannedShare> {
    let mut ordered = shares.to_vec();
    ordered.sort_by_key(|share| share.guest.split('/').filter(|part| !part.is_empty()).count());
    ordered
}

/// The value of `systemd.mount-extra=`, which systemd 254 and later mounts at boot.
pub(super) fn mount_extra(share: &PlannedShare) -> String {
    format!("{}:{}:{}:{}", share.tag, share.guest, share.fs_type(), share.mount_options())
}

/// Describes the mechanism of a share and the reason for it.
pub(super) fn chosen(share: &PlannedShare) -> String {
    format!("{} is shared with {} ({})", share.guest, share.fs_type(), share.reason)
}
