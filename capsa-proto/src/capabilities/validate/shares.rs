//! The check's part on shares: what is refused, and the mechanism and tag each one gets.

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
use crate::spec::{MountMode, ShareMechanism};

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
            if !targets.insert(share.guest.trim_end_matches('/').to_owned()) {
                self.reject(
                    field("guest"),
                    Kind::Duplicate,
                    format!("two shares are mounted at {}", share.guest),
                    "mount each at a place of its own",
                );
            }
            if share.mode == MountMode::ReadOnly && !self.backend.capabilities().share_read_only {
                self.unsupported(
                    &field("mode"),
                    "it cannot keep a share read-only, and would share it writable",
                    "share it read-write, or use another backend",
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
                    "give each its own tag, or none",
                );
            }
            planned.push(PlannedShare {
                host: share.host.clone(),
                guest: share.guest.clone(),
                mode: share.mode,
                tag,
                mechanism,
                why,
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
                    format!("{path} is shared read-write but cannot be written"),
                    "share it read-only, or make it writable for this user",
                ),
            FileFacts::Directory { .. } => {}
            FileFacts::Missing => {
                self.reject(
                    field,
                    Kind::Missing,
                    format!("{path} does not exist"),
                    "make it first",
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
                "share the directory it is in",
            ),
        }
    }

    fn share_guest(&mut self, field: &str, guest: &str) {
        let reason = if !guest.starts_with('/') || guest.trim_end_matches('/').is_empty() {
            "must be an absolute path below the root"
        } else if guest.split('/').any(|part| part == "..") {
            "must not climb with .."
        } else if guest.bytes().any(|b| b <= b' ' || b == 0x7f || b":\"\\%,".contains(&b)) {
            // The mount is asked for on the kernel command line, where these have a meaning.
            "must not hold blanks, control characters or any of : \" \\ % ,"
        } else {
            return;
        };
        self.reject(
            field,
            Kind::Malformed,
            format!("{guest:?} {reason}"),
            "give a path such as /workspace",
        );
    }

    fn share_mechanism(
        &mut self,
        n: usize,
        asked: &ShareMechanism,
    ) -> Option<(String, PlannedMechanism, String)> {
        let capabilities = self.backend.capabilities();
        let (has_fs, has_9p) = (capabilities.virtio_fs, capabilities.virtio_9p);
        let fs_blockers = self.backend.virtio_fs_blockers(self.host, self.found);
        let field = format!("shares[{n}].mechanism");
        let tag = format!("capsa{n}");
        let fs = PlannedMechanism::VirtioFs { cache: CacheMode::Auto };
        let p9 = PlannedMechanism::Virtio9p { msize: DEFAULT_MSIZE };
        match asked {
            ShareMechanism::Auto if has_fs && fs_blockers.is_empty() => {
                Some((tag, fs, "virtio-fs is the fastest this backend has".into()))
            }
            ShareMechanism::Auto if has_9p => {
                let why = match fs_blockers.first() {
                    Some(reason) => {
                        // Without the driver the guest has an empty directory, and says so on a
                        // console that perhaps nobody reads.
                        let guest = &self.spec.shares[n].guest;
                        self.notes.push(Note::warning(format!(
                            "{guest} is shared by 9p, which not every kernel can mount (Debian's \
                             cloud kernels cannot), as virtio-fs cannot be used: {reason}"
                        )));
                        format!("virtio-fs cannot be used: {}", reason.what)
                    }
                    None => "this backend has no virtio-fs".into(),
                };
                Some((tag, p9, why))
            }
            ShareMechanism::Auto => {
                self.require_virtio_fs(&field, has_fs, &fs_blockers);
                None
            }
            ShareMechanism::VirtioFs(config) => {
                self.require_virtio_fs(&field, has_fs, &fs_blockers);
                let cache = self.cache_mode(n, config.cache.as_deref());
                let tag = self.tag(n, config.tag.as_deref(), VIRTIOFS_TAG_MAX);
                Some((tag, PlannedMechanism::VirtioFs { cache }, "asked for".into()))
            }
            ShareMechanism::Virtio9p(config) => {
                if !has_9p {
                    self.unsupported(
                        &field,
                        "virtio-9p is not supported",
                        "ask for virtio-fs or auto, or use the qemu backend",
                    );
                }
                let msize = config.msize.unwrap_or(DEFAULT_MSIZE);
                if !(4096..=16 << 20).contains(&msize) {
                    self.reject(
                        format!("shares[{n}].msize"),
                        Kind::OutOfRange,
                        format!("a message size of {msize} bytes is not between 4 KiB and 16 MiB"),
                        "leave it out for 262144",
                    );
                }
                let tag = self.tag(n, config.tag.as_deref(), P9_TAG_MAX);
                Some((tag, PlannedMechanism::Virtio9p { msize }, "asked for".into()))
            }
        }
    }

    fn require_virtio_fs(&mut self, field: &str, has_fs: bool, blockers: &[Reason]) {
        if !has_fs {
            self.unsupported(field, "virtio-fs is not supported", "use another backend");
        }
        for reason in blockers {
            self.unsupported(field, reason.what.clone(), reason.remedy.clone());
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
                    format!("{other:?} is not a cache mode"),
                    "give auto, always or none",
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
                format!("{tag:?} is not a mount tag"),
                format!("give 1 to {max} letters, digits, '-', '_' or '.'"),
            );
        }
        tag.to_string()
    }
}

/// What systemd 254 and later, and other willing guests, mount by themselves.
pub(super) fn mount_extra(share: &PlannedShare) -> String {
    format!("{}:{}:{}:{}", share.tag, share.guest, share.fs_type(), share.mount_options())
}

/// Which mechanism a share has, and why.
pub(super) fn chosen(share: &PlannedShare) -> String {
    format!("{} is shared by {} ({})", share.guest, share.fs_type(), share.why)
}

/// What a guest runs that does not mount by itself.
pub(super) fn mount_command(share: &PlannedShare) -> String {
    let (fs_type, options) = (share.fs_type(), share.mount_options());
    format!("mount -t {fs_type} -o {options} {} {}", share.tag, share.guest)
}
