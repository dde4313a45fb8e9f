//! The program under "Basic Usage" of the specification, unchanged.

use std::path::Path;

use capsa_testkit::{host, run_isolated, skip, vm};

/// The program. Only its name and its module differ.
mod program {
    use capsa::{Capsa, DiskImage, LinuxDirectBootConfig, MountMode};

    #[tokio::main]
    pub(super) async fn main() -> capsa::Result<()> {
        // Configuration struct has required params
        let config = LinuxDirectBootConfig {
            kernel: "./bzImage".into(),
            initrd: "./initrd".into(),
            disk: DiskImage::new("./rootfs.qcow2"),
        };

        // Generic vm() method, builder determined by config type
        let vm = Capsa::vm(config)
            .cpus(2)
            .memory_mb(2048)
            .share("./workspace", "/workspace", MountMode::ReadWrite)
            .console_enabled()
            .build()
            .await?;

        // Start the VM
        vm.start().await?;

        // Interact with console
        let mut console = vm.console().await?;
        console.wait_for("login:").await?;
        console.write_line("root").await?;
        console.wait_for("#").await?;
        console.write_line("echo hello from VM").await?;

        // Graceful shutdown
        vm.stop().await?;

        Ok(())
    }
}

#[test]
fn specification_program_runs() {
    // Its paths are relative, and its QEMU is the real one.
    run_isolated!(["env", "-u", "CAPSA_QEMU"]);
    if host::find_program("virtiofsd").is_none() {
        return skip("virtiofsd is not installed, and the guest's kernel has no 9p");
    }
    let Some(guest) = vm::linux_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    let link = |from: &Path, to: &str| std::os::unix::fs::symlink(from, dir.path().join(to));
    link(&guest.kernel, "bzImage").unwrap();
    link(&guest.initrd, "initrd").unwrap();
    std::fs::copy(&guest.disk_qcow2, dir.path().join("rootfs.qcow2")).unwrap();
    std::fs::create_dir(dir.path().join("workspace")).unwrap();
    std::env::set_current_dir(dir.path()).unwrap();
    program::main().unwrap();
}
