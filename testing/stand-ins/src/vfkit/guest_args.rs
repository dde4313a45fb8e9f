//! The arguments of QEMU: a q35 with the virtio devices that Virtualization.framework gives a guest, in the
//! order of the command line.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::child;
use super::super::emulator::EmulatedVm;
use super::config::{Bootloader, Config, Linux};
use super::device::{Device, DiskDevice, FsDevice, NetDevice, SerialDevice};
use super::framework::Kernel;

/// The CID of the guest. It is not visible on the host.
const CID: u32 = 3;

/// The directory of the sockets of QEMU's device processes. File names in it are short, because Capsa
/// checks the length of socket paths only for its own names.
#[derive(Debug, Clone)]
pub(super) struct Sockets(pub(super) PathBuf);

impl Sockets {
    fn share(&self, n: usize) -> PathBuf {
        self.0.join(format!("f{n}"))
    }

    fn vsock_device(&self) -> PathBuf {
        self.0.join("d")
    }

    /// The socket through which the host connects to a port of the guest. The guest connects to a port of
    /// the host at this path with `_PORT` appended.
    pub(super) fn vsock(&self) -> PathBuf {
        self.0.join("v")
    }
}

/// The programs that emulate the VM, which boots `kernel`.
pub(super) fn emulated_vm(config: &Config, kernel: Kernel, at: &Sockets) -> EmulatedVm {
    let mut args = EmulatedVmBuilder::default();
    let Bootloader::Linux(linux) = &config.bootloader else { return args.0 };
    // A guest that reboots boots again, without an event.
    args.push("-action reboot=reset,shutdown=pause,panic=none -machine q35,memory-backend=ram");
    let is_outside = |device: &Device| matches!(device, Device::Fs(_) | Device::Vsock(_));
    // Unlike in the real one, shares and vsock are processes, which need shared memory.
    let shared = if config.devices.iter().any(is_outside) { "on" } else { "off" };
    let size = config.memory_bytes;
    args.push(&format!(
        "-smp {} -m {size}B -object memory-backend-memfd,id=ram,size={size},share={shared}",
        config.vcpus
    ));
    let Linux { kernel: path, cmdline, initrd } = linux;
    for (flag, value) in [("-kernel", path), ("-initrd", initrd), ("-append", cmdline)] {
        args.0.arguments.extend([flag.to_owned(), value.clone()]);
    }
    for (n, device) in config.devices.iter().enumerate() {
        match device {
            Device::Blk(disk) => args.disk(n, disk),
            Device::Fs(share) => args.share(n, share, &at.share(n)),
            Device::Net(net) => args.net(n, net),
            Device::Serial(serial) => args.serial(n, serial, kernel),
            Device::Rng => args.push("-device virtio-rng-pci"),
            Device::Balloon => args.push("-device virtio-balloon-pci"),
            _ => {}
        }
    }
    // One device for all ports.
    if config.devices.iter().any(|device| matches!(device, Device::Vsock(_))) {
        args.vsock(at);
    }
    args.0
}

#[derive(Default)]
struct EmulatedVmBuilder(EmulatedVm);

impl EmulatedVmBuilder {
    /// Adds arguments that are separated by one space.
    fn push(&mut self, words: &str) {
        self.0.arguments.extend(words.split(' ').map(str::to_owned));
    }

    fn device(&mut self, device: &serde_json::Value) {
        self.0.arguments.extend(["-device".to_owned(), device.to_string()]);
    }

    fn chardev(&mut self, options: &str) {
        self.0.arguments.extend(["-chardev".to_owned(), options.to_owned()]);
    }

    fn disk(&mut self, n: usize, disk: &DiskDevice) {
        let node = json!({
            "driver": "raw",
            "node-name": format!("disk{n}"),
            "read-only": disk.read_only,
            "file": {
                "driver": if disk.r#type == "dev" { "host_device" } else { "file" },
                "filename": disk.image_path,
            },
        });
        self.0.arguments.extend(["-blockdev".to_owned(), node.to_string()]);
        let drive = format!("disk{n}");
        let mut device = json!({ "driver": "virtio-blk-pci", "drive": drive, "werror": "report" });
        if !disk.device_identifier.is_empty() {
            device["serial"] = json!(disk.device_identifier);
        }
        self.device(&device);
    }

    fn share(&mut self, n: usize, share: &FsDevice, socket: &Path) {
        let path = show(socket);
        let words = [
            "virtiofsd",
            "--log-level=error",
            "--socket-path",
            &path,
            "--shared-dir",
            &share.shared_dir,
        ];
        let words = words.map(str::to_owned).into();
        self.0.devices.push(child::DeviceProcess { words, socket: socket.to_owned() });
        self.chardev(&format!("socket,id=fs{n},path={}", path.replace(',', ",,")));
        self.device(&json!({
            "driver": "vhost-user-fs-pci",
            "chardev": format!("fs{n}"),
            "tag": share.tag(),
        }));
    }

    fn net(&mut self, n: usize, net: &NetDevice) {
        // The stand-in serves no network itself.
        let Some(fd) = net.fd else { return };
        // QEMU inherits the socket under the same number.
        self.push(&format!("-netdev dgram,id=net{n},local.type=fd,local.str={fd}"));
        let netdev = format!("net{n}");
        let mut device = json!({ "driver": "virtio-net-pci", "netdev": netdev, "romfile": "" });
        if !net.mac_address.is_empty() {
            device["mac"] = json!(net.mac_address);
        }
        self.device(&device);
    }

    fn serial(&mut self, n: usize, serial: &SerialDevice, kernel: Kernel) {
        // QEMU opens standard input and output itself, because its `stdio` would change the settings of
        // the terminal. If both are the same terminal, it is opened as one `pipe`. Otherwise output is a
        // file with an `input-path`, which needs QEMU 8.1 or later.
        let to = match serial.uses_stdio {
            true if stdio_is_one_terminal() => format!("pipe,id=console{n},path=/proc/self/fd/0"),
            true => {
                let paths = "path=/proc/self/fd/1,append=on,input-path=/proc/self/fd/0";
                format!("file,id=console{n},{paths}")
            }
            false => format!("file,id=console{n},path={}", serial.log_file.replace(',', ",,")),
        };
        self.chardev(&to);
        match kernel {
            Kernel::Nano => self.push(&format!("-serial chardev:console{n}")),
            Kernel::Linux => {
                self.push(&format!("-device virtio-serial-pci,id=serial{n},max_ports=1"));
                self.push(&format!("-device virtconsole,bus=serial{n}.0,chardev=console{n}"));
            }
        }
    }

    fn vsock(&mut self, at: &Sockets) {
        let (socket, path) = (at.vsock_device(), show(&at.vsock()));
        let vm = format!("guest-cid={CID},socket={},uds-path={path}", show(&socket));
        self.chardev(&format!("socket,id=vsock,path={}", show(&socket).replace(',', ",,")));
        self.device(&json!({ "driver": "vhost-user-vsock-pci", "chardev": "vsock" }));
        let words = vec!["vhost-device-vsock".to_owned(), "--vm".to_owned(), vm];
        self.0.devices.push(child::DeviceProcess { words, socket });
    }
}

/// Whether standard input and output are the same terminal.
fn stdio_is_one_terminal() -> bool {
    let of = |n: u8| fs::metadata(format!("/proc/self/fd/{n}"));
    match (of(0), of(1)) {
        (Ok(input), Ok(output)) => {
            input.file_type().is_char_device()
                && (input.dev(), input.ino()) == (output.dev(), output.ino())
        }
        _ => false,
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
