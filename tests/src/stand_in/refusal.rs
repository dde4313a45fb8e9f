//! What a call of the API is refused with: a status and a chain of causes, in the words of v53.

use std::fs::{self, File};
use std::io::{self, Read};

use super::config::{DiskConfig, ImageType, VmConfig};
use super::http::Response;

/// A refused call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: u16,
    /// Outermost first.
    chain: Vec<String>,
}

impl Refusal {
    pub(super) fn new(status: u16, chain: &[&str]) -> Self {
        Self { status, chain: chain.iter().map(ToString::to_string).collect() }
    }

    /// The same, as the cause of `what`.
    pub(super) fn within(mut self, what: &[&str]) -> Self {
        self.chain.splice(0..0, what.iter().map(ToString::to_string));
        self
    }

    fn io(what: &[&str], error: &io::Error) -> Self {
        let said = error.to_string();
        Self::new(500, &[what, &[&said]].concat())
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        let body = serde_json::to_string(&refusal.chain).expect("strings are plain data");
        Self::new(refusal.status, body)
    }
}

/// What the boot checks before there is a machine.
///
/// # Errors
///
/// The first thing that is wrong, in the order of the real one.
pub(super) fn before_the_machine(config: &VmConfig) -> Result<(), Refusal> {
    validate(config).map_err(|refusal| refusal.within(&["Failed to validate config"]))?;
    for disk in config.disks.iter().flatten() {
        check_disk(disk).map_err(|refusal| refusal.within(&["Error from device manager"]))?;
    }
    let payload = config.payload.as_ref();
    if let Some(initramfs) = payload.and_then(|payload| payload.initramfs.as_ref()) {
        File::open(initramfs).map_err(|e| Refusal::io(&["Cannot open initramfs file"], &e))?;
    }
    Ok(())
}

/// What the boot finds wrong when there is a machine already, which stays, not running.
///
/// # Errors
///
/// When the kernel is not there, or neither ELF nor bzImage.
pub(super) fn within_the_machine(config: &VmConfig) -> Result<(), Refusal> {
    let kernel = config.payload.as_ref().and_then(|payload| payload.kernel.as_ref());
    let Some(kernel) = kernel else { return Ok(()) };
    let refuse = |why: &str| {
        let load = format!("Kernel Loader: failed to load bzImage kernel image: {why}");
        Err(Refusal::new(500, &["Cannot load the kernel into memory", &load, why]))
    };
    File::open(kernel).map_err(|error| Refusal::io(&["Cannot open kernel file"], &error))?;
    match fs::read(kernel) {
        Err(_) => refuse("Kernel Loader: Unable to read bzImage header"),
        Ok(image) if is_elf(&image) || is_bz_image(&image) => Ok(()),
        Ok(_) => refuse("Kernel Loader: Invalid bzImage"),
    }
}

fn is_elf(image: &[u8]) -> bool {
    // The whole header of the 64-bit class.
    image.len() >= 64 && image.starts_with(b"\x7fELF\x02")
}

fn is_bz_image(image: &[u8]) -> bool {
    image.get(0x202..0x206) == Some(b"HdrS")
}

fn validate(config: &VmConfig) -> Result<(), Refusal> {
    let refuse = |chain: &[&str]| Err(Refusal::new(400, chain));
    if let Some(payload) = &config.payload {
        let why = match (&payload.firmware, &payload.kernel) {
            (None, None) => Some("No bootitem provided: neither firmware nor kernel"),
            (Some(_), Some(_)) => {
                Some("Specifying a kernel is not supported when a firmware is provided")
            }
            _ => None,
        };
        if let Some(why) = why {
            return refuse(&["Payload configuration is not bootable", why]);
        }
    }
    let (boot, max) = (config.cpus.boot_vcpus, config.cpus.max_vcpus);
    if max < boot {
        return refuse(&[&format!("Max CPUs ({max}) lower than boot CPUs ({boot})")]);
    }
    let needs_shared = config.fs.iter().flatten().count() > 0
        || config.net.iter().flatten().any(|net| net.vhost_user);
    if needs_shared && !config.memory.shared {
        return refuse(&["Using vhost-user requires using shared memory or huge pages"]);
    }
    for net in config.net.iter().flatten() {
        if net.vhost_user && net.vhost_socket.is_none() {
            return refuse(&["No socket provided when using vhost-user"]);
        }
    }
    if let Some(vsock) = &config.vsock
        && [0, 1, 2, u32::MAX].contains(&vsock.cid)
    {
        return refuse(&[&format!("{} is a special VSOCK CID", vsock.cid)]);
    }
    for rule in config.landlock_rules.iter().flatten() {
        if !rule.path.exists() {
            let path = &rule.path;
            return refuse(&[&format!("Path {path:?} provided in landlock-rules does not exist")]);
        }
    }
    Ok(())
}

fn check_disk(disk: &DiskConfig) -> Result<(), Refusal> {
    let Some(path) = &disk.path else { return Ok(()) };
    let shown = path.display();
    let opened = fs::OpenOptions::new().read(true).write(!disk.readonly).open(path);
    let mut file = opened.map_err(|error| {
        let what = format!("I/O error (path={shown} op=open)");
        Refusal::io(&["Cannot open disk path", &what], &error)
    })?;
    let mut head = [0; 16];
    let is_qcow2 = file.read_exact(&mut head).is_ok() && head.starts_with(b"QFI\xfb");
    match (disk.image_type, is_qcow2) {
        (ImageType::Qcow2, false) => Err(Refusal::new(
            500,
            &["Disk image type does not match expected type: specified = qcow2, detected = raw"],
        )),
        (ImageType::Qcow2, true) if has_backing_file(&head) && !disk.backing_files => {
            let what = format!("Unsupported feature (path={shown} op=open)");
            let why = "Maximum disk nesting depth exceeded";
            Err(Refusal::new(500, &["Cannot open disk path", &what, why]))
        }
        _ => Ok(()),
    }
}

/// Whether a qcow2 header has the offset of a backing file's name.
fn has_backing_file(head: &[u8; 16]) -> bool {
    head[8..].iter().any(|byte| *byte != 0)
}

/// What the stand-in cannot do although the real one could: said, not skipped.
///
/// # Errors
///
/// The first such thing.
pub(super) fn beyond_the_stand_in(config: &VmConfig) -> Result<(), String> {
    use super::config::ConsoleOutputMode as Mode;
    let disk_types = config.disks.iter().flatten().map(|disk| disk.image_type);
    for image_type in disk_types {
        if !matches!(image_type, ImageType::Raw | ImageType::Qcow2) {
            // The real one guesses the format of a disk whose type is not said, and then protects
            // its first sector.
            return Err(format!("disks of the type {image_type:?}"));
        }
    }
    if config.net.iter().flatten().any(|net| !net.vhost_user || net.num_queues != 2) {
        return Err("networks other than vhost-user with two queues".into());
    }
    match (config.serial.common.mode, &config.serial.common.file) {
        (Mode::Off | Mode::Null | Mode::Tty, None) | (Mode::File, Some(_)) => Ok(()),
        (mode, _) => Err(format!("a serial port in the mode {mode:?}")),
    }
}
