//! The program under "Basic Usage" of the specification, as it stands there, on any executor.

use std::path::Path;

use capsa_testkit::vm::{self, NanoGuest};
use capsa_testkit::{host, skip};

/// The program. Only its name and its place differ.
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
fn the_program_of_the_specification_runs() {
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
    // Nothing else in this program has a relative path.
    std::env::set_current_dir(dir.path()).unwrap();
    program::main().unwrap();
}

/// What every executor has to be able to run.
async fn scenario(builder: capsa::LinuxVmBuilder) -> capsa::Result<capsa::VmStatus> {
    let vm = builder.build().await?;
    vm.start().await?;
    let mut console = vm.console().await?;
    console.wait_for("NANO READY\r\n").await?;
    console.write_line("hello").await?;
    console.wait_for("hello\n").await?;
    vm.stop().await?;
    vm.wait().await
}

const CLEAN: capsa::VmStatus = capsa::VmStatus::Stopped { exit_code: Some(0) };

#[test]
fn futures_need_no_runtime() {
    let Some(guest) = NanoGuest::new() else { return };
    let status = futures_lite::future::block_on(scenario(guest.builder())).unwrap();
    assert_eq!(status, CLEAN);
}

#[test]
fn futures_run_on_tokio_with_one_thread_and_with_several() {
    let Some(guest) = NanoGuest::new() else { return };
    let one = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(one.block_on(scenario(guest.builder())).unwrap(), CLEAN);
    let several = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let task = several.spawn(scenario(guest.builder()));
    assert_eq!(several.block_on(task).unwrap().unwrap(), CLEAN);
}

#[test]
fn a_driven_machine_needs_no_hidden_thread() {
    let Some(guest) = NanoGuest::new() else { return };
    futures_lite::future::block_on(async {
        let (vm, driver) = guest.builder().build_driven().await.unwrap();
        let user = async {
            vm.start().await?;
            let mut console = vm.console().await?;
            console.wait_for("NANO READY\r\n").await?;
            console.write_line("hello").await?;
            console.wait_for("hello\n").await?;
            vm.stop().await
        };
        let (driven, used) = futures_lite::future::zip(driver, user).await;
        used.unwrap();
        assert_eq!(driven.unwrap(), CLEAN);
    });
}

#[test]
fn a_dropped_wait_loses_nothing() {
    let Some(guest) = NanoGuest::new() else { return };
    futures_lite::future::block_on(async {
        let vm = guest.builder().build().await.unwrap();
        vm.start().await.unwrap();
        let mut console = vm.console().await.unwrap();
        console.wait_for("NANO READY\r\n").await.unwrap();
        console.write_line("one two").await.unwrap();
        // Begun and given up while the answer is on its way, over and over.
        for _ in 0..100 {
            let wait = console.wait_for("never comes");
            assert!(futures_lite::future::poll_once(wait).await.is_none());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(console.wait_for("two\n").await.unwrap(), "one two\n");
        vm.kill().await.unwrap();
    });
}

#[test]
fn an_embedded_machine_runs_in_a_bare_poll_loop() {
    use capsa::embed::VmEvent;
    let Some(guest) = NanoGuest::new() else { return };
    let mut vm = guest.builder().build_embedded().unwrap();
    let reader = vm.add_reader();
    vm.start().unwrap();
    let mut said = Vec::new();
    let mut calls = 0;
    while !vm.status().is_terminal() {
        calls += 1;
        assert!(calls < 5_000, "it spins");
        capsa_testkit::vm::poll_fd(&vm, vm.next_timeout());
        vm.on_ready().unwrap();
        while let Some(event) = vm.poll_event() {
            if event == VmEvent::ConsoleData {
                said.extend(vm.take(reader));
                if said.ends_with(b"NANO READY\r\n") {
                    vm.stop().unwrap();
                }
            }
        }
    }
    assert!(said.ends_with(b"NANO READY\r\n"));
    assert_eq!(vm.status(), CLEAN);
}
