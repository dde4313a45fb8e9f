//! The arguments of QEMU for a VM of `vm.create`.

use std::env::consts::ARCH;
use std::path::Path;

use serde_json::{Value, json};

use super::super::child::DeviceProcess;
use super::super::emulator::EmulatedVm;
use super::config::{ChvVmConfig, ConsoleOutputMode, DiskConfig, ImageType};

/// The socket between QEMU and the vsock device, beside the VM's vsock socket.
fn vsock_backend(socket: &Path) -> std::path::PathBuf {
    // A short name: Capsa checks the length of socket paths only for its own names.
    socket.with_file_name("vu")
}

/// The programs that emulate the VM. `terminal`: standard input is a terminal.
pub(super) fn emulated_vm(config: &ChvVmConfig, terminal: bool) -> EmulatedVm {
    let devices = vsock_device(config).into_iter().collect();
    EmulatedVm { arguments: arguments(config, terminal), devices }
}

fn arguments(config: &ChvVmConfig, terminal: bool) -> Vec<String> {
    let mut args = GuestArgs::default();
    args.push("-action reboot=shutdown,shutdown=pause,panic=none");
    args.push(&format!("-smp {}", config.cpus.boot_vcpus));
    let size = config.memory.size;
    // Unlike in the real one, the vsock device is a process, which needs shared memory.
    let shared = if config.memory.shared || config.vsock.is_some() { "on" } else { "off" };
    args.push(&format!(
        "-m {size}B -object memory-backend-memfd,id=ram,size={size},share={shared}"
    ));
    let machine = if ARCH == "aarch64" { "virt" } else { "q35" };
    args.push(&format!("-machine {machine},memory-backend=ram -device virtio-rng-pci"));
    if config.pvpanic {
        args.push("-device pvpanic-pci");
    }
    if let Some(payload) = &config.payload {
        let kernel = payload.kernel.as_deref().or(payload.firmware.as_deref());
        let mut path = |flag, path: Option<&Path>| {
            args.0.extend(path.iter().flat_map(|path| [String::from(flag), show(path)]));
        };
        path("-kernel", kernel);
        path("-initrd", payload.initramfs.as_deref());
        if let Some(cmdline) = &payload.cmdline {
            args.0.extend(["-append".to_owned(), cmdline.clone()]);
        }
    }
    args.serial(config, terminal);
    args.console(config, terminal);
    for (n, disk) in config.disks.iter().flatten().enumerate() {
        args.disk(n, disk);
    }
    for (n, fs) in config.fs.iter().flatten().enumerate() {
        args.socket(&format!("fs{n}"), &fs.socket);
        args.device(&json!({
            "driver": "vhost-user-fs-pci",
            "chardev": format!("fs{n}"),
            "tag": fs.tag,
            "queue-size": fs.queue_size,
            "num-request-queues": fs.num_queues,
        }));
    }
    for (n, net) in config.net.iter().flatten().enumerate() {
        let socket = net.vhost_socket.as_deref().unwrap_or_default();
        args.socket(&format!("peer{n}"), Path::new(socket));
        args.push(&format!("-netdev vhost-user,id=net{n},chardev=peer{n}"));
        let mut device = json!({
            "driver": "virtio-net-pci",
            "netdev": format!("net{n}"),
            "romfile": "",
            "rx_queue_size": net.queue_size,
        });
        if let Some(mac) = &net.mac {
            device["mac"] = json!(mac);
        }
        args.device(&device);
    }
    if let Some(vsock) = &config.vsock {
        args.socket("vsock", &vsock_backend(&vsock.socket));
        args.device(&json!({ "driver": "vhost-user-vsock-pci", "chardev": "vsock" }));
    }
    args.0
}

fn vsock_device(config: &ChvVmConfig) -> Option<DeviceProcess> {
    let vsock = config.vsock.as_ref()?;
    let (socket, path) = (vsock_backend(&vsock.socket), show(&vsock.socket));
    let vm = format!("guest-cid={},socket={},uds-path={path}", vsock.cid, show(&socket));
    Some(DeviceProcess { words: vec!["vhost-device-vsock".into(), "--vm".into(), vm], socket })
}

#[derive(Default)]
struct GuestArgs(Vec<String>);

impl GuestArgs {
    /// Adds arguments that are separated by one space.
    fn push(&mut self, words: &str) {
        self.0.extend(words.split(' ').map(str::to_owned));
    }

    fn device(&mut self, device: &Value) {
        self.0.extend(["-device".to_owned(), device.to_string()]);
    }

    fn socket(&mut self, id: &str, path: &Path) {
        let path = show(path).replace(',', ",,");
        self.0.extend(["-chardev".to_owned(), format!("socket,id={id},path={path}")]);
    }

    fn serial(&mut self, config: &ChvVmConfig, terminal: bool) {
        let to = match config.serial.common.mode {
            ConsoleOutputMode::Null => "null,id=com".to_owned(),
            // QEMU's `stdio` does not turn off the translation of line feeds in the terminal. A terminal
            // that QEMU opens itself is set to raw mode.
            ConsoleOutputMode::Tty if terminal => "serial,id=com,path=/proc/self/fd/0".to_owned(),
            // As in the real one, output goes to a pipe, and input from a pipe is ignored.
            ConsoleOutputMode::Tty => "file,id=com,path=/proc/self/fd/1".to_owned(),
            ConsoleOutputMode::File => {
                let path = config.serial.common.file.as_deref().map(show).unwrap_or_default();
                format!("file,id=com,path={}", path.replace(',', ",,"))
            }
            _ => return,
        };
        self.push("-serial chardev:com -chardev");
        self.0.push(to);
    }

    /// The virtio console. Unlike the real one, it drops output while the terminal is full.
    fn console(&mut self, config: &ChvVmConfig, terminal: bool) {
        if config.console.common.mode == ConsoleOutputMode::Tty {
            let to = if terminal { "serial,id=hvc,path=/proc/self/fd/0" } else { "null,id=hvc" };
            self.push("-device virtio-serial-pci -device virtconsole,chardev=hvc -chardev");
            self.0.push(to.to_owned());
        }
    }

    fn disk(&mut self, n: usize, disk: &DiskConfig) {
        let path = disk.path.as_deref().unwrap_or(Path::new(""));
        let is_device = !path.is_file();
        let mut node = json!({
            "driver": if disk.image_type == ImageType::Qcow2 { "qcow2" } else { "raw" },
            "node-name": format!("disk{n}"),
            "read-only": disk.readonly,
            "cache": { "direct": disk.direct },
            "discard": "unmap",
            "file": {
                "driver": if is_device { "host_device" } else { "file" },
                "filename": show(path),
                "cache": { "direct": disk.direct },
                "discard": "unmap",
            },
        });
        if disk.image_type == ImageType::Qcow2 && !disk.backing_files {
            node["backing"] = Value::Null;
        }
        self.0.extend(["-blockdev".to_owned(), node.to_string()]);
        self.device(&json!({
            "driver": "virtio-blk-pci",
            "drive": format!("disk{n}"),
            "werror": "report",
            "num-queues": disk.num_queues,
            "queue-size": disk.queue_size,
        }));
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
