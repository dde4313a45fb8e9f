//! `VmHandle::exec` and its blocking and embedded versions.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use capsa::agent::AgentMode;
use capsa::exec::ExecStdio;
use capsa::{Accelerator, Capsa, Error, LinuxBootConfig, VmHandle, blocking};
use capsa_fixtures::nano;
use capsa_testkit::run_isolated;
use capsa_testkit::vm::{PATIENCE, eventually};
use futures_lite::future::{block_on, poll_once};
use futures_lite::{AsyncReadExt, AsyncWriteExt};

/// A builder of a VM on the fake QEMU, whose agent is a process of this host.
fn builder() -> capsa::LinuxVmBuilder {
    let base = PathBuf::from(std::env::var_os("CAPSA_RUN_DIR").unwrap());
    let (kernel, initrd) = (base.join("kernel.elf"), base.join("initrd"));
    std::fs::write(&kernel, nano::elf()).unwrap();
    let trailer = ["070701", &"0".repeat(8 * 11), "0000000b", "00000000", "TRAILER!!!\0\0\0\0"];
    std::fs::write(&initrd, trailer.concat()).unwrap();
    Capsa::vm(LinuxBootConfig::new(kernel).initrd(initrd))
        .backend("qemu")
        .accelerator(Accelerator::Emulation)
        .memory_mb(64)
        .no_network()
        .agent(AgentMode::Required)
}

async fn started() -> VmHandle {
    let vm = builder().build().await.unwrap();
    vm.start().await.unwrap();
    vm
}

#[test]
fn output_has_streams_status_and_environment() {
    run_isolated!();
    block_on(async {
        let vm = started().await;
        let script = "echo $A; pwd; echo err >&2; exit 7";
        let mut command = vm.exec(["sh", "-c", script]);
        let output = command.env("A", "b=c").current_dir("/tmp").output().await.unwrap();
        assert_eq!(output.status.code(), Some(7));
        assert_eq!((&*output.stdout, &*output.stderr), (&b"b=c\n/tmp\n"[..], &b"err\n"[..]));
        let status = vm.exec(["sh", "-c", "kill -15 $$"]).status().await.unwrap();
        assert_eq!((status.signal(), status.success()), (Some(15), false));
        let missing = vm.exec(["no-such-program"]).output().await.unwrap_err();
        let text = "running `no-such-program` failed in the guest: no such file or directory";
        assert!(missing.to_string().starts_with(text), "{missing}");
        let cut = vm.exec(["echo", "abc"]).output_limit(2).output().await.unwrap();
        assert_eq!((&*cut.stdout, cut.truncated), (&b"ab"[..], true));
    });
}

#[test]
fn files_are_written_and_read() {
    run_isolated!();
    block_on(async {
        let vm = started().await;
        let dir = PathBuf::from(std::env::var_os("CAPSA_RUN_DIR").unwrap());
        let (path, absent) = (dir.join("file"), dir.join("absent/file"));
        let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        vm.write_file(&path, &content).await.unwrap();
        assert_eq!(vm.read_file(&path).await.unwrap(), content);
        vm.write_file(&path, b"short").await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
        let error = vm.read_file(&absent).await.unwrap_err();
        assert!(matches!(error, Error::GuestErrno { errno: 2, .. }), "{error:?}");
        assert!(error.to_string().starts_with(&format!("reading {}", absent.display())), "{error}");
        let error = vm.write_file(&absent, &content).await.unwrap_err();
        assert!(matches!(error, Error::GuestErrno { errno: 2, .. }), "{error:?}");
        // One byte more than is read.
        std::fs::File::create(&path).unwrap().set_len((64 << 20) + 1).unwrap();
        let error = vm.read_file(&path).await.unwrap_err();
        assert!(matches!(error, Error::GuestErrno { errno: 27, .. }), "{error:?}");
    });
}

#[test]
fn input_passes_through_both_windows() {
    run_isolated!();
    block_on(async {
        let vm = started().await;
        let mut child = vm.exec(["cat"]).stdin(ExecStdio::Piped).spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let input: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        let write = async {
            stdin.write_all(&input).await.unwrap();
            stdin.close().await.unwrap();
        };
        let mut output = Vec::new();
        futures_lite::future::zip(write, stdout.read_to_end(&mut output)).await.1.unwrap();
        assert!(output == input, "{} bytes", output.len());
        assert!(child.wait().await.unwrap().success());
    });
}

#[test]
fn unread_output_stops_its_command_only() {
    run_isolated!();
    block_on(async {
        let vm = started().await;
        let mut flood = vm.exec(["yes"]).spawn().unwrap();
        for n in 0..100 {
            let output = vm.exec(["echo", &n.to_string()]).output().await.unwrap();
            assert_eq!(output.stdout, format!("{n}\n").into_bytes());
        }
        let mut some = vec![0; 1_000_000];
        flood.stdout.as_mut().unwrap().read_exact(&mut some).await.unwrap();
        assert!(some.chunks(2).all(|line| line == b"y\n"));
        flood.kill();
        assert_eq!(flood.wait().await.unwrap().signal(), Some(9));
    });
}

#[test]
fn dropped_future_kills_process_group() {
    run_isolated!();
    block_on(async {
        let vm = started().await;
        let child = vm.exec(["sh", "-c", "sleep 987 & echo $$; wait"]).spawn();
        let mut child = child.unwrap();
        let mut pid = [0; 2];
        child.stdout.as_mut().unwrap().read_exact(&mut pid).await.unwrap();
        let group = child.id().unwrap();
        let group = nix::unistd::Pid::from_raw(group as i32);
        let runs = || nix::sys::signal::killpg(group, None).is_ok();
        assert!(runs());
        drop(child);
        eventually("the group is killed", || !runs());
        let command = vm.exec(["sleep", "987"]);
        let mut future = Box::pin(command.output());
        assert!(poll_once(&mut future).await.is_none());
        drop(future);
        assert!(vm.exec(["true"]).status().await.unwrap().success());
    });
}

#[test]
fn timeout_and_end_of_vm_have_errors() {
    run_isolated!();
    block_on(async {
        let vm = started().await;
        let error = vm.exec(["sleep", "987"]).timeout(Duration::from_millis(300)).output().await;
        let Err(Error::Timeout { expected, .. }) = &error else { panic!("{error:?}") };
        assert_eq!(expected, "the end of running `sleep` in the guest");
        let mut child = vm.exec(["sleep", "987"]).spawn().unwrap();
        vm.kill().await.unwrap();
        let error = child.wait().await;
        assert!(matches!(error, Err(Error::GuestEnded { .. })), "{error:?}");
        let error = vm.exec(["true"]).spawn();
        assert!(matches!(error, Err(Error::NotRunning)), "{error:?}");
    });
}

#[test]
fn killed_agent_ends_commands_with_an_error() {
    run_isolated!();
    block_on(async {
        let vm = started().await;
        let mut child = vm.exec(["sh", "-c", "kill -9 $PPID; sleep 987"]).spawn().unwrap();
        let error = child.wait().await;
        let Err(Error::Agent(error)) = &error else { panic!("{error:?}") };
        assert!(error.to_string().contains("closed the connection"), "{error}");
    });
}

#[test]
fn vm_without_agent_refuses_exec() {
    run_isolated!();
    block_on(async {
        let vm = builder().agent(AgentMode::Off).build().await.unwrap();
        let error = vm.exec(["true"]).spawn();
        assert!(matches!(error, Err(Error::AgentNotEnabled)), "{error:?}");
    });
}

#[test]
fn blocking_child_has_streams_and_terminal() {
    run_isolated!();
    let vm: blocking::VmHandle = builder().build_blocking().unwrap();
    vm.start().unwrap();
    let mut child =
        vm.exec(["sh", "-c", "read line; echo got $line"]).stdin(ExecStdio::Piped).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"text\n").unwrap();
    let mut output = String::new();
    child.stdout.as_mut().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!((output.as_str(), child.wait().unwrap().code()), ("got text\n", Some(0)));
    let size = vm.exec(["stty", "size"]).terminal(33, 99).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&size.stdout), "33 99\r\n");
}

#[test]
fn fifty_commands_at_once_all_end() {
    run_isolated!();
    block_on(async {
        let vm = started().await;
        let children: Vec<_> = (0..50)
            .map(|n| vm.exec(["sh", "-c", &format!("sleep 0.2; echo {n}")]).spawn().unwrap())
            .collect();
        let begun = std::time::Instant::now();
        for (n, child) in children.into_iter().enumerate() {
            let output = child.wait_with_output().await.unwrap();
            assert_eq!(output.stdout, format!("{n}\n").into_bytes());
        }
        assert!(begun.elapsed() < PATIENCE);
    });
}
