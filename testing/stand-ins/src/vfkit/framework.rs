//! The state of a VM in macOS' Virtualization.framework, and the errors of the framework and its bindings.
//!
//! The error texts come from issues and from the source of the bindings where it is known. Do not rely on
//! more than the presence of an error.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::sys::termios::{InputFlags, LocalFlags, SetArg, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use super::config::{Bootloader, Config, Linux};
use super::device::{Device, DiskDevice, go_error};
use super::rest_uri::Endpoint;
use capsa_fixtures::nano::Nano;

/// The maximal length of a share's tag.
const MAX_TAG: usize = 36;

/// The state of a VM, as in `VZVirtualMachine.State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VzState {
    Stopped,
    Starting,
    Running,
    Paused,
    Error,
}

impl VzState {
    /// The reply to `GET /vm/state`.
    pub(super) fn reply(self) -> Value {
        use VzState::{Error, Paused, Running, Stopped};
        json!({
            "state": format!("VirtualMachineState{self:?}"),
            "canStart": matches!(self, Stopped | Error),
            "canPause": self == Running,
            "canResume": self == Paused,
            "canStop": self == Running,
            "canHardStop": matches!(self, Running | Paused),
        })
    }

    /// The error of an invalid transition from this state to `next`.
    pub(super) fn invalid_transition(self, next: &str) -> String {
        error(
            3,
            &format!(
                "Invalid virtual machine state transition. Transition from state \
                 “VZVirtualMachineState{self:?}” to state “VZVirtualMachineState{next}” is \
                 invalid."
            ),
        )
    }
}

/// An error of the framework, in the form of its bindings.
fn error(code: u8, text: &str) -> String {
    let (failure, reason) = text.split_once(". ").unwrap_or((text, ""));
    format!(
        "Error Domain=VZErrorDomain Code={code} Description=\"{text}\" UserInfo={{\n    \
         NSLocalizedFailure = \"{failure}.\";\n    NSLocalizedFailureReason = \"{reason}\";\n}}"
    )
}

fn invalid(why: &str) -> String {
    error(2, &format!("Invalid virtual machine configuration. {why}"))
}

/// Makes the checks before the start of a VM, and sets the terminal.
///
/// # Errors
///
/// The first invalid part of the configuration.
pub(super) fn check(config: &Config) -> Result<(), String> {
    if let Bootloader::Linux(Linux { kernel, initrd, .. }) = &config.bootloader {
        for (what, path) in [("linux kernel", kernel), ("initial RAM disk", initrd)] {
            fs::metadata(path).map_err(|error| {
                format!("invalid {what} path: stat {path}: {}", go_error(&error.to_string()))
            })?;
        }
    }
    if config.vcpus == 0 {
        return Err(invalid("The number of virtual CPUs is too low."));
    }
    let mut tags = Vec::new();
    for device in &config.devices {
        match device {
            Device::Blk(disk) => check_disk(disk)?,
            Device::Fs(share) => {
                let dir = Path::new(&share.shared_dir);
                let tag = share.tag();
                if share.shared_dir.is_empty() {
                    return Err("missing mandatory 'sharedDir' option for virtio-fs device".into());
                }
                if !dir.is_dir() {
                    return Err(invalid("The directory to share is not one."));
                }
                if tag.is_empty() || tag.len() > MAX_TAG || tags.contains(&tag) {
                    return Err(invalid(&format!("The tag “{tag}” is invalid.")));
                }
                tags.push(tag);
            }
            Device::Serial(serial) if serial.uses_stdio => {
                set_terminal().map_err(|error| go_error(&error.to_string()))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_disk(disk: &DiskDevice) -> Result<(), String> {
    let path = Path::new(&disk.image_path);
    if disk.r#type == "dev" {
        let is_device = fs::symlink_metadata(path).is_ok_and(|at| at.file_type().is_block_device());
        if !is_device {
            return Err(format!("file {} is not a block device", disk.image_path));
        }
    }
    let opened = fs::File::options().read(true).write(!disk.read_only).open(path);
    opened.map(drop).map_err(|_| invalid("The storage device attachment is invalid."))
}

/// Sets the terminal as vfkit does: nearly raw. All other settings keep their values.
fn set_terminal() -> io::Result<()> {
    let stdin = io::stdin();
    let mut settings = tcgetattr(&stdin)?;
    settings.input_flags.remove(InputFlags::ICRNL);
    settings.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSANOW, &settings)?;
    Ok(())
}

/// A kernel that the framework or the stand-in boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// A bzImage, the only format on an Intel Mac.
    Linux,
    /// The nano guest, which a Mac does not boot. It has no virtio driver, so its console is a serial port,
    /// which VMs on a Mac do not have.
    Nano,
}

impl Kernel {
    /// Detects the format of the file.
    ///
    /// # Errors
    ///
    /// When the VM would not start with this kernel.
    pub(super) fn at(path: &str) -> Result<Self, String> {
        let image = fs::read(path).unwrap_or_default();
        let is_nano = [true, false].map(|power_button| Nano { power_button }.elf() == image);
        match image.get(0x202..0x206) {
            _ if is_nano.contains(&true) => Ok(Self::Nano),
            Some(b"HdrS") => Ok(Self::Linux),
            _ => {
                Err(error(1, "Internal Virtualization error. The virtual machine failed to start."))
            }
        }
    }
}

/// Checks that the stand-in supports the configuration. Otherwise it exits with an error.
///
/// # Errors
///
/// The first option that the real one supports and the stand-in does not.
pub(super) fn check_supported(config: &Config) -> Result<(), String> {
    if !matches!(config.bootloader, Bootloader::Linux(_)) {
        return Err("bootloaders other than that of Linux".into());
    }
    let is_stdio = |device: &&Device| matches!(device, Device::Serial(serial) if serial.uses_stdio);
    if config.devices.iter().filter(is_stdio).count() > 1 {
        return Err("two consoles on one terminal".into());
    }
    for device in &config.devices {
        let is_supported = match device {
            Device::Blk(_) | Device::Fs(_) | Device::Vsock(_) | Device::Rng | Device::Balloon => {
                true
            }
            Device::Net(net) => net.fd.is_some(),
            Device::Serial(serial) => !serial.uses_pty,
            _ => false,
        };
        if !is_supported {
            return Err(format!("the device {}", json!(device)));
        }
    }
    let unsupported = [
        (config.timesync.is_some(), "--timesync"),
        (config.ignition.is_some(), "--ignition"),
        (!config.cloud_init.is_empty(), "--cloud-init"),
        (config.nested, "--nested"),
        (config.gui, "--gui"),
        (matches!(config.endpoint, Endpoint::Tcp(_)), "a REST service over TCP"),
    ];
    match unsupported.iter().find(|(is_set, _)| *is_set) {
        Some((_, what)) => Err((*what).to_owned()),
        None => Ok(()),
    }
}
