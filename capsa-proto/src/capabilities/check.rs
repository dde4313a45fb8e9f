//! The check: one pass over the specification, every problem collected.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{CacheMode, Checked, PlannedMechanism, PlannedShare, Violation, ViolationKind as Kind};
use crate::backend::{HypervisorBackend, ProbeReport};
use crate::cmdline::{CmdlineArg, CmdlineError, KernelCmdline, MAX_LEN};
use crate::host::{Arch, FileFacts, HostFacts, Reason};
use crate::path::HostPath;
use crate::plan::{LONGEST_SOCKET_NAME, Note};
use crate::spec::{
    ConsoleMode, ImageFormat, MountMode, NetworkMode, RebootPolicy, ShareMechanism, VmSpec,
};

/// Checks `spec` against a backend and a host.
///
/// # Errors
///
/// Every problem there is, in the order of the fields. Never empty.
pub fn check(
    spec: VmSpec,
    backend: &dyn HypervisorBackend,
    host: &HostFacts,
    found: &ProbeReport,
) -> Result<Checked, Vec<Violation>> {
    let mut pass = Pass { spec: &spec, backend, host, found, out: Vec::new(), notes: Vec::new() };
    pass.boot_files();
    pass.disks();
    pass.resources();
    let shares = pass.shares();
    pass.modes();
    let cmdline = pass.cmdline(&shares);
    pass.run_dir();
    let Pass { mut out, notes, .. } = pass;
    out.extend(backend.refuse(&spec, host, found));
    if out.is_empty() { Ok(Checked { cmdline, shares, notes, spec }) } else { Err(out) }
}

struct Pass<'a> {
    spec: &'a VmSpec,
    backend: &'a dyn HypervisorBackend,
    host: &'a HostFacts,
    found: &'a ProbeReport,
    out: Vec<Violation>,
    notes: Vec<Note>,
}

impl Pass<'_> {
    fn refuse(
        &mut self,
        field: impl Into<String>,
        kind: Kind,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.out.push(Violation::new(field, kind, reason, remedy));
    }

    fn unsupported(&mut self, field: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        let violation = Violation::new(field, Kind::Unsupported, reason, remedy);
        self.out.push(violation.on(self.backend.name()));
    }

    fn boot_files(&mut self) {
        let spec = self.spec;
        if let Some(head) = self.regular_file("kernel", &spec.kernel)
            && !is_kernel(self.host.arch, &head)
        {
            self.refuse(
                "kernel",
                Kind::WrongFormat,
                format!("{} is not a kernel that can be booted directly", spec.kernel),
                match self.host.arch {
                    Arch::X86_64 => "give a bzImage (usually called vmlinuz) or an ELF vmlinux",
                    _ => "give an uncompressed arm64 Image (decompress a vmlinuz with zcat)",
                },
            );
        }
        let methods = &self.backend.capabilities().boot_methods;
        match &spec.initrd {
            Some(initrd) => {
                self.regular_file("initrd", initrd);
            }
            None if !methods.linux_direct_without_initrd => {
                self.unsupported("initrd", "this backend needs an initrd", "give one");
            }
            None => {}
        }
    }

    /// Refuses what is not a readable, non-empty file, and returns its first bytes.
    fn regular_file(&mut self, field: &str, path: &HostPath) -> Option<Vec<u8>> {
        match self.host.file(path) {
            FileFacts::File { size: 0, .. } => {
                self.refuse(
                    field,
                    Kind::Empty,
                    format!("{path} is empty"),
                    "check how it was made",
                );
                None
            }
            FileFacts::File { head, .. } => Some(head.clone()),
            FileFacts::Missing => {
                self.refuse(
                    field,
                    Kind::Missing,
                    format!("{path} does not exist"),
                    "check the path",
                );
                None
            }
            FileFacts::Unreadable(why) => {
                self.refuse(
                    field,
                    Kind::NoAccess,
                    format!("{path} cannot be read: {why}"),
                    "make it readable for this user",
                );
                None
            }
            FileFacts::Directory { .. } => {
                self.refuse(
                    field,
                    Kind::WrongType,
                    format!("{path} is a directory"),
                    "name the file in it",
                );
                None
            }
            FileFacts::Special => {
                self.refuse(
                    field,
                    Kind::WrongType,
                    format!("{path} is neither a file nor a block device"),
                    "name a file",
                );
                None
            }
        }
    }

    fn disks(&mut self) {
        let spec = self.spec;
        let capabilities = self.backend.capabilities().clone();
        let mut writers = BTreeSet::new();
        for (n, disk) in spec.disks.iter().enumerate() {
            let field = format!("disks[{n}].path");
            let Some(head) = self.regular_file(&field, &disk.path) else { continue };
            self.disk_format(&field, disk.format, &disk.path, &head);
            let writes = !disk.read_only && !disk.ephemeral;
            if writes && let FileFacts::File { writable: false, .. } = self.host.file(&disk.path) {
                self.refuse(
                    &field,
                    Kind::NoAccess,
                    format!("{} cannot be written", disk.path),
                    "make it writable for this user, or attach it read-only or ephemeral",
                );
            }
            if writes && !writers.insert(&disk.path) {
                self.refuse(
                    &field,
                    Kind::Duplicate,
                    format!("{} is attached for writing twice", disk.path),
                    "attach it once, or attach the others read-only or ephemeral",
                );
            }
            let formats = &capabilities.image_formats;
            if disk.format == ImageFormat::Qcow2 && !formats.qcow2 {
                self.unsupported(
                    &field,
                    "qcow2 images are not supported",
                    format!("convert it: qemu-img convert -O raw {} disk.raw", disk.path),
                );
            }
            if disk.format == ImageFormat::Raw && !formats.raw {
                self.unsupported(
                    &field,
                    "raw images are not supported",
                    "convert it with qemu-img",
                );
            }
            if disk.ephemeral && !capabilities.disk_ephemeral {
                self.unsupported(
                    &format!("disks[{n}].ephemeral"),
                    "throw-away overlays are not supported",
                    "copy the image and attach the copy, or use the qemu backend",
                );
            }
            if disk.read_only && !capabilities.disk_read_only {
                self.unsupported(
                    &format!("disks[{n}].read_only"),
                    "read-only disks are not supported",
                    "use another backend",
                );
            }
        }
    }

    /// The header must say what the format says. A guest can write a qcow2 header, with a backing
    /// file of its choice, into a raw disk: it must never turn into one.
    fn disk_format(&mut self, field: &str, format: ImageFormat, path: &HostPath, head: &[u8]) {
        let is_qcow2 = head.starts_with(b"QFI\xfb");
        match format {
            ImageFormat::Raw if is_qcow2 => self.refuse(
                field,
                Kind::WrongFormat,
                format!("{path} is taken for a raw image but has a qcow2 header"),
                "name the format qcow2 if you made it so; if a guest wrote it, do not trust it",
            ),
            ImageFormat::Qcow2 if !is_qcow2 => self.refuse(
                field,
                Kind::WrongFormat,
                format!("{path} is taken for a qcow2 image but has no qcow2 header"),
                "name the format raw, or check how the image was made",
            ),
            _ => {}
        }
    }

    fn resources(&mut self) {
        let capabilities = self.backend.capabilities();
        let (max_cpus, max_memory) = (capabilities.max_cpus, capabilities.max_memory_mb);
        let resources = &self.spec.resources;
        if resources.cpus == 0 {
            self.refuse("cpus", Kind::OutOfRange, "a machine needs a CPU", "give 1 or more");
        } else if let Some(max) = max_cpus
            && resources.cpus > max
        {
            let reason = format!("{} CPUs are more than the {max} it can have", resources.cpus);
            self.unsupported("cpus", reason, format!("give {max} or fewer"));
        }
        if resources.memory_mb == 0 {
            self.refuse(
                "memory",
                Kind::OutOfRange,
                "a machine needs memory",
                "give 128 MiB or more",
            );
        } else if u64::from(resources.memory_mb) > self.host.memory_mb {
            self.refuse(
                "memory",
                Kind::OutOfRange,
                format!(
                    "{} MiB are more than the {} MiB this host has",
                    resources.memory_mb, self.host.memory_mb
                ),
                "give less",
            );
        } else if let Some(max) = max_memory
            && resources.memory_mb > max
        {
            let reason = format!("{} MiB are more than the {max} it can have", resources.memory_mb);
            self.unsupported("memory", reason, format!("give {max} or less"));
        }
        if self.spec.time_limit.is_some_and(|limit| limit.is_zero()) {
            self.refuse(
                "timeout",
                Kind::OutOfRange,
                "a machine with no time cannot run",
                "give a duration above zero, or none",
            );
        }
    }

    fn modes(&mut self) {
        let capabilities = self.backend.capabilities();
        let modes = capabilities.network_modes.clone();
        let restart = capabilities.reboot_restart;
        match self.spec.network {
            NetworkMode::None if !modes.none => {
                self.unsupported("network", "it cannot leave the network out", "ask for nat");
            }
            NetworkMode::Nat if !modes.nat => self.unsupported(
                "network",
                "NAT is not supported",
                "ask for no network, or use the qemu backend",
            ),
            _ => {}
        }
        if self.spec.on_reboot == RebootPolicy::Restart && !restart {
            self.unsupported("on_reboot", "a reboot ends the machine", "start a new one");
        }
    }

    fn shares(&mut self) -> Vec<PlannedShare> {
        let spec = self.spec;
        let mut tags = BTreeSet::new();
        let mut targets = BTreeSet::new();
        let mut planned = Vec::new();
        for (n, share) in spec.shares.iter().enumerate() {
            let field = |part: &str| format!("shares[{n}].{part}");
            self.share_host(&field("host"), &share.host, share.mode);
            self.share_guest(&field("guest"), &share.guest);
            if !targets.insert(share.guest.trim_end_matches('/').to_owned()) {
                self.refuse(
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
                self.refuse(
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
                .refuse(
                    field,
                    Kind::NoAccess,
                    format!("{path} is shared read-write but cannot be written"),
                    "share it read-only, or make it writable for this user",
                ),
            FileFacts::Directory { .. } => {}
            FileFacts::Missing => {
                self.refuse(
                    field,
                    Kind::Missing,
                    format!("{path} does not exist"),
                    "make it first",
                );
            }
            FileFacts::Unreadable(why) => self.refuse(
                field,
                Kind::NoAccess,
                format!("{path} cannot be read: {why}"),
                "make it readable for this user",
            ),
            FileFacts::File { .. } | FileFacts::Special => self.refuse(
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
        self.refuse(
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
        let against_fs = self.backend.against_virtio_fs(self.host, self.found);
        let field = format!("shares[{n}].mechanism");
        let tag = format!("capsa{n}");
        let fs = PlannedMechanism::VirtioFs { cache: CacheMode::Auto };
        let p9 = PlannedMechanism::Virtio9p { msize: DEFAULT_MSIZE };
        match asked {
            ShareMechanism::Auto if has_fs && against_fs.is_empty() => {
                Some((tag, fs, "virtio-fs is the fastest this backend has".into()))
            }
            ShareMechanism::Auto if has_9p => {
                let why = match against_fs.first() {
                    Some(reason) => format!("virtio-fs cannot be used: {}", reason.what),
                    None => "this backend has no virtio-fs".into(),
                };
                Some((tag, p9, why))
            }
            ShareMechanism::Auto => {
                self.virtio_fs_refused(&field, has_fs, &against_fs);
                None
            }
            ShareMechanism::VirtioFs(config) => {
                self.virtio_fs_refused(&field, has_fs, &against_fs);
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
                    self.refuse(
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

    fn virtio_fs_refused(&mut self, field: &str, has_fs: bool, against: &[Reason]) {
        if !has_fs {
            self.unsupported(field, "virtio-fs is not supported", "use another backend");
        }
        for reason in against {
            self.unsupported(field, reason.what.clone(), reason.remedy.clone());
        }
    }

    fn cache_mode(&mut self, n: usize, asked: Option<&str>) -> CacheMode {
        match asked {
            None | Some("auto") => CacheMode::Auto,
            Some("always") => CacheMode::Always,
            Some("none" | "never") => CacheMode::None,
            Some(other) => {
                self.refuse(
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
            self.refuse(
                format!("shares[{n}].tag"),
                Kind::Malformed,
                format!("{tag:?} is not a mount tag"),
                format!("give 1 to {max} letters, digits, '-', '_' or '.'"),
            );
        }
        tag.to_string()
    }

    fn cmdline(&mut self, shares: &[PlannedShare]) -> String {
        let user = &self.spec.cmdline;
        let mut whole = KernelCmdline::new();
        if let Some(text) = user.override_text() {
            whole.override_with(text);
            if user.iter().next().is_some() || !user.init_args().is_empty() {
                self.refuse(
                    "cmdline",
                    Kind::Duplicate,
                    "arguments are added to a kernel command line that is overridden",
                    "put them into the override, or leave it out",
                );
            }
            for share in shares {
                let mount = mount_command(share);
                self.notes.push(Note::warning(format!(
                    "{}; the kernel command line is overridden, so the guest has to run: {mount}",
                    chosen(share)
                )));
            }
        } else {
            let mut defaults = self.backend.kernel_cmdline_defaults(self.host);
            if self.spec.console == ConsoleMode::Disabled {
                defaults.remove("console");
            }
            whole.merge(&defaults);
            if !self.spec.disks.is_empty() {
                whole.root(self.backend.default_root_device());
            }
            for share in shares {
                whole.append(CmdlineArg::kv("systemd.mount-extra", mount_extra(share)));
                let mount = mount_command(share);
                self.notes.push(Note::info(format!(
                    "{}; a guest with systemd 254 or later mounts it by itself, others run: {mount}",
                    chosen(share)
                )));
            }
            // The user's own mounts come beside ours, not in their place.
            let (mounts, rest) = split_mounts(user);
            whole.merge(&rest);
            for mount in mounts {
                whole.append(mount);
            }
        }
        whole.build_checked(MAX_LEN).unwrap_or_else(|error| {
            let (kind, remedy) = match error {
                CmdlineError::TooLong { .. } => {
                    (Kind::TooLong, "shorten it: the kernel would cut it silently")
                }
                _ => (
                    Kind::Malformed,
                    "pass arguments one by one, without control characters or quotes",
                ),
            };
            self.refuse("cmdline", kind, error.to_string(), remedy);
            String::new()
        })
    }

    fn run_dir(&mut self) {
        let length = self.host.run_dir.as_str().len() + 1 + LONGEST_SOCKET_NAME;
        if length > self.host.socket_path_max {
            self.refuse(
                "run_dir",
                Kind::TooLong,
                format!(
                    "a socket in {} would have a path of {length} bytes, and {} are the most a \
                     unix socket can have",
                    self.host.run_dir, self.host.socket_path_max
                ),
                "set CAPSA_RUN_DIR to a shorter directory, such as /tmp/capsa",
            );
        }
    }
}

const DEFAULT_MSIZE: u32 = 262_144;
/// The tag field of the virtio-fs device's configuration (virtio 1.2, 5.11.4).
const VIRTIOFS_TAG_MAX: usize = 36;
/// QEMU's `MAX_TAG_LEN` is 32 with its NUL.
const P9_TAG_MAX: usize = 31;

/// What systemd 254 and later, and other willing guests, mount by themselves.
fn mount_extra(share: &PlannedShare) -> String {
    format!("{}:{}:{}:{}", share.tag, share.guest, share.fs_type(), share.mount_options())
}

/// Which mechanism a share has, and why.
fn chosen(share: &PlannedShare) -> String {
    format!("{} is shared by {} ({})", share.guest, share.fs_type(), share.why)
}

/// What a guest runs that does not mount by itself.
fn mount_command(share: &PlannedShare) -> String {
    let (fs_type, options) = (share.fs_type(), share.mount_options());
    format!("mount -t {fs_type} -o {options} {} {}", share.tag, share.guest)
}

fn split_mounts(user: &KernelCmdline) -> (Vec<CmdlineArg>, KernelCmdline) {
    let mounts = user.get_all("systemd.mount-extra");
    let mounts = mounts.map(|value| CmdlineArg::kv("systemd.mount-extra", value)).collect();
    let mut rest = user.clone();
    while rest.remove("systemd.mount-extra").is_some() {}
    (mounts, rest)
}

/// bzImage (`HdrS` at 0x202) or ELF on x86-64, `ARM\x64` at 0x38 on arm64.
fn is_kernel(arch: Arch, head: &[u8]) -> bool {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    match arch {
        Arch::X86_64 => at(0x202, b"HdrS") || at(0, b"\x7fELF"),
        Arch::Aarch64 => at(0x38, b"ARM\x64"),
        Arch::Other => true,
    }
}
