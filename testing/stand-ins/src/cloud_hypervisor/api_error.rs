//! The error of an API call: a status and a chain of causes, with the texts of v53.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::config::{ChvVmConfig, DiskConfig, ImageType};
use super::http::ApiResponse;

/// The error of an API call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    status: u16,
    /// Outermost first.
    chain: Vec<String>,
}

impl ApiError {
    pub(super) fn new(status: u16, chain: &[&str]) -> Self {
        Self { status, chain: chain.iter().map(ToString::to_string).collect() }
    }

    /// Adds `what` as the outer errors of the chain.
    pub(super) fn within(mut self, what: &[&str]) -> Self {
        self.chain.splice(0..0, what.iter().map(ToString::to_string));
        self
    }

    fn io(what: &[&str], error: &io::Error) -> Self {
        let cause = error.to_string();
        Self::new(500, &[what, &[&cause]].concat())
    }
}

impl From<ApiError> for ApiResponse {
    fn from(error: ApiError) -> Self {
        let body = serde_json::to_string(&error.chain).expect("strings are plain data");
        Self::new(error.status, body)
    }
}

/// Checks that the real one makes before it creates the VM.
///
/// # Errors
///
/// The first error, in the order of the real one.
pub(super) fn check_before_creation(config: &ChvVmConfig) -> Result<(), ApiError> {
    validate(config).map_err(|error| error.within(&["Failed to validate config"]))?;
    for disk in config.disks.iter().flatten() {
        let checked = check_disk(disk).and_then(|()| check_backing_files(disk, config));
        checked.map_err(|error| error.within(&["Error from device manager"]))?;
    }
    let payload = config.payload.as_ref();
    if let Some(initramfs) = payload.and_then(|payload| payload.initramfs.as_ref()) {
        File::open(initramfs).map_err(|e| ApiError::io(&["Cannot open initramfs file"], &e))?;
    }
    Ok(())
}

/// Checks the kernel, as the real one does after it has created the VM. After an error the VM exists but
/// does not run.
///
/// # Errors
///
/// When the kernel cannot be read, or is neither ELF nor bzImage.
pub(super) fn check_kernel(config: &ChvVmConfig) -> Result<(), ApiError> {
    let kernel = config.payload.as_ref().and_then(|payload| payload.kernel.as_ref());
    let Some(kernel) = kernel else { return Ok(()) };
    let reject = |why: &str| {
        let load = format!("Kernel Loader: failed to load bzImage kernel image: {why}");
        Err(ApiError::new(500, &["Cannot load the kernel into memory", &load, why]))
    };
    File::open(kernel).map_err(|error| ApiError::io(&["Cannot open kernel file"], &error))?;
    match fs::read(kernel) {
        Err(_) => reject("Kernel Loader: Unable to read bzImage header"),
        Ok(image) if is_elf(&image) || is_bz_image(&image) => Ok(()),
        Ok(_) => reject("Kernel Loader: Invalid bzImage"),
    }
}

fn is_elf(image: &[u8]) -> bool {
    // The whole header of the 64-bit class.
    image.len() >= 64 && image.starts_with(b"\x7fELF\x02")
}

fn is_bz_image(image: &[u8]) -> bool {
    image.get(0x202..0x206) == Some(b"HdrS")
}

fn validate(config: &ChvVmConfig) -> Result<(), ApiError> {
    let reject = |chain: &[&str]| Err(ApiError::new(400, chain));
    if let Some(payload) = &config.payload {
        let why = match (&payload.firmware, &payload.kernel) {
            (None, None) => Some("No bootitem provided: neither firmware nor kernel"),
            (Some(_), Some(_)) => {
                Some("Specifying a kernel is not supported when a firmware is provided")
            }
            _ => None,
        };
        if let Some(why) = why {
            return reject(&["Payload configuration is not bootable", why]);
        }
    }
    let (boot, max) = (config.cpus.boot_vcpus, config.cpus.max_vcpus);
    if max < boot {
        return reject(&[&format!("Max CPUs ({max}) lower than boot CPUs ({boot})")]);
    }
    let needs_shared = config.fs.iter().flatten().count() > 0
        || config.net.iter().flatten().any(|net| net.vhost_user);
    if needs_shared && !config.memory.shared {
        return reject(&["Using vhost-user requires using shared memory or huge pages"]);
    }
    for net in config.net.iter().flatten() {
        if net.vhost_user && net.vhost_socket.is_none() {
            return reject(&["No socket provided when using vhost-user"]);
        }
    }
    if let Some(vsock) = &config.vsock
        && [0, 1, 2, u32::MAX].contains(&vsock.cid)
    {
        return reject(&[&format!("{} is a special VSOCK CID", vsock.cid)]);
    }
    for rule in config.landlock_rules.iter().flatten() {
        if !rule.path.exists() {
            let path = &rule.path;
            return reject(&[&format!("Path {path:?} provided in landlock-rules does not exist")]);
        }
    }
    Ok(())
}

fn check_disk(disk: &DiskConfig) -> Result<(), ApiError> {
    let Some(path) = &disk.path else { return Ok(()) };
    let shown = path.display();
    let opened = fs::OpenOptions::new().read(true).write(!disk.readonly).open(path);
    let file = opened.map_err(|error| cannot_open(path, &error))?;
    let header = qcow2_header(&file);
    match (disk.image_type, &header) {
        (ImageType::Qcow2, None) => Err(ApiError::new(
            500,
            &["Disk image type does not match expected type: specified = qcow2, detected = raw"],
        )),
        (ImageType::Qcow2, Some(header))
            if backing_file(header).is_some() && !disk.backing_files =>
        {
            let what = format!("Unsupported feature (path={shown} op=open)");
            let why = "Maximum disk nesting depth exceeded";
            Err(ApiError::new(500, &["Cannot open disk path", &what, why]))
        }
        _ => Ok(()),
    }
}

fn cannot_open(path: &Path, error: &io::Error) -> ApiError {
    let what = format!("I/O error (path={} op=open)", path.display());
    ApiError::io(&["Cannot open disk path", &what], error)
}

/// Checks that Landlock rules cover the backing files. With Landlock the real one can open only the files
/// in its configuration and in the rules, and the name of a backing file is only in the disk image. The
/// stand-in does not use Landlock, so it checks the rules itself.
fn check_backing_files(disk: &DiskConfig, config: &ChvVmConfig) -> Result<(), ApiError> {
    let mut next = disk.path.clone().filter(|_| config.landlock_enable);
    while let Some(path) = next {
        let header = File::open(&path).ok().and_then(|file| qcow2_header(&file));
        next = header.and_then(|header| backing_file(&header)).map(|name| {
            let directory = fs::canonicalize(&path).unwrap_or_default();
            directory.parent().unwrap_or(Path::new("/")).join(name)
        });
        let mut rules = config.landlock_rules.iter().flatten();
        if let Some(backing) = &next
            && !rules.any(|rule| rule.access.contains('r') && backing.starts_with(&rule.path))
        {
            return Err(cannot_open(backing, &Errno::EACCES.into()));
        }
    }
    Ok(())
}

/// The first 64 KiB of a qcow2 image, which contain the name of the backing file. `None`: another format.
fn qcow2_header(file: &File) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    file.take(1 << 16).read_to_end(&mut head).ok()?;
    (head.len() > 104 && head.starts_with(b"QFI\xfb")).then_some(head)
}

/// The name of the backing file.
fn backing_file(header: &[u8]) -> Option<PathBuf> {
    let offset = u64::from_be_bytes(header.get(8..16)?.try_into().ok()?);
    let length = u32::from_be_bytes(header.get(16..20)?.try_into().ok()?);
    let start = usize::try_from(offset).ok().filter(|offset| *offset != 0)?;
    let name = header.get(start..start + usize::try_from(length).ok()?)?;
    Some(String::from_utf8_lossy(name).into_owned().into())
}

/// Checks that the stand-in supports the configuration. Otherwise it exits with an error.
///
/// # Errors
///
/// The first option that the real one supports and the stand-in does not.
pub(super) fn check_supported(config: &ChvVmConfig) -> Result<(), String> {
    use super::config::ConsoleOutputMode as Mode;
    let disk_types = config.disks.iter().flatten().map(|disk| disk.image_type);
    for image_type in disk_types {
        if !matches!(image_type, ImageType::Raw | ImageType::Qcow2) {
            // The real one detects the format of a disk without a type, and then protects its first
            // sector.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn backing_file_without_rule_is_denied() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let image = |name: &str, backing: &str| {
            let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
            header.extend_from_slice(&112u64.to_be_bytes());
            header.extend_from_slice(&u32::try_from(backing.len()).unwrap().to_be_bytes());
            header.resize(112, 0);
            header.extend_from_slice(backing.as_bytes());
            fs::write(dir.join(name), header).unwrap();
        };
        image("over", "middle");
        image("middle", "base/raw");
        fs::create_dir(dir.join("base")).unwrap();
        fs::write(dir.join("base/raw"), [0; 4096]).unwrap();
        let boot = |landlock: bool, rules: &[&str]| {
            let rule = |name: &&str| json!({ "path": dir.join(name), "access": "r" });
            let config = json!({
                "payload": { "kernel": "/k" },
                "disks": [{ "path": dir.join("over"), "image_type": "Qcow2", "backing_files": true }],
                "landlock_enable": landlock,
                "landlock_rules": rules.iter().map(rule).collect::<Vec<_>>(),
            });
            check_before_creation(&serde_json::from_value(config).unwrap())
        };
        assert_eq!(boot(false, &[]), Ok(()));
        assert_eq!(boot(true, &["middle", "base"]), Ok(()));
        for (rules, denied) in [(&[][..], "middle"), (&["middle"], "base/raw")] {
            let error = boot(true, rules).unwrap_err();
            let path = dir.join(denied).display().to_string();
            assert!(error.chain[2].contains(&path), "{error:?}");
            assert_eq!(error.chain[3], "Permission denied (os error 13)");
        }
    }
}
