//! Every public future is dropped at any await: no console byte is lost or read twice, and the VM runs on.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use capsa::console::Pattern;
use capsa::embed::{TokioVm, VmEvent};
use capsa::testing::{self, GuestReply, ScriptedGuest};
use capsa::{Accelerator, VmConsole, VmHandle, VmStatus};
use capsa_conformance::Subject;
use capsa_testkit::drop_futures::RandomDrops;
use capsa_testkit::fake;
use capsa_testkit::nano::Nano;
use capsa_testkit::run_isolated;
use capsa_testkit::vm::{NanoGuest, PATIENCE, eventually};
use capsa_testkit::{processes, skip};
use futures_lite::future::block_on;
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};

/// Makes one of the calls that read, and returns its result.
async fn read_somehow(console: &mut VmConsole, random: &mut RandomDrops) -> Vec<u8> {
    let soon = Some(Duration::from_millis(1));
    let text = |text: Option<capsa::Result<String>>| {
        text.and_then(capsa::Result::ok).unwrap_or_default().into_bytes()
    };
    let dot = Pattern::literal(".");
    match random.below(10) {
        0 => {
            let mut buf = [0; 3];
            let read = random.poll_and_drop(console.read(&mut buf)).await;
            buf[..read.map_or(0, Result::unwrap)].to_vec()
        }
        1 => text(random.poll_and_drop(console.wait_for(".")).await),
        2 => text(
            random.poll_and_drop(console.wait_for_timeout(".", Duration::from_millis(1))).await,
        ),
        3 => {
            let found = random.poll_and_drop(console.wait_for_any(&["never", "."])).await;
            text(found.map(|found| found.map(|(_, output)| output)))
        }
        4 => {
            let found = random.poll_and_drop(console.wait_for_pattern(&dot, soon)).await;
            text(found.map(|found| found.map(|found| found.output)))
        }
        5 => {
            let patterns = [Pattern::literal("never"), dot];
            let found = random.poll_and_drop(console.wait_for_any_pattern(&patterns, None)).await;
            text(found.map(|found| found.map(|found| found.output)))
        }
        6 => text(
            random.poll_and_drop(console.wait_for_silence(Duration::from_micros(200), soon)).await,
        ),
        7 => text(random.poll_and_drop(console.read_available()).await),
        // Neither succeeds with a guest that echoes its input, so neither consumes output.
        8 => {
            assert!(random.poll_and_drop(console.login("root", None)).await.is_none());
            Vec::new()
        }
        _ => {
            assert!(random.poll_and_drop(console.wait_for("never")).await.is_none());
            Vec::new()
        }
    }
}

async fn write_somehow(console: &mut VmConsole, random: &mut RandomDrops) {
    let long = ".0123456789".repeat(2000);
    match random.below(6) {
        0 => drop(random.poll_and_drop(console.write(b"write.")).await),
        1 => drop(random.poll_and_drop(console.write_str("text.")).await),
        2 => drop(random.poll_and_drop(console.write_line("line.")).await),
        3 => drop(random.poll_and_drop(console.send_interrupt()).await),
        4 => drop(random.poll_and_drop(console.send_eof()).await),
        _ => drop(random.poll_and_drop(console.write_str(&long)).await),
    }
}

#[test]
fn console_futures_dropped_lose_nothing() {
    run_isolated!();
    let random = &mut RandomDrops::new(0x5eed_cafe);
    block_on(async {
        let vm =
            fake::vm("up echo serve").scrollback(64 << 20, capsa::console::Overflow::DropOldest);
        let vm = vm.build().await.unwrap();
        vm.start().await.unwrap();
        let mut console = vm.console().await.unwrap();
        let mut all = console.reader();
        let mut read = Vec::new();
        for _ in 0..3000 {
            write_somehow(&mut console, random).await;
            read.extend(read_somehow(&mut console, random).await);
            look_somehow(&vm, random).await;
        }
        console.write_str("THE END").await.unwrap();
        read.extend(console.wait_for_timeout("THE END", PATIENCE).await.unwrap().into_bytes());
        let mut expected = vec![0; read.len()];
        all.read_exact(&mut expected).await.unwrap();
        assert!(read == expected, "{} bytes differ from the output", read.len());
        assert!(read.ends_with(b"THE END") && read.len() > 10_000);
        vm.kill().await.unwrap();
    });
}

async fn look_somehow(vm: &VmHandle, random: &mut RandomDrops) {
    match random.below(4) {
        0 => assert!(random.poll_and_drop(vm.wait()).await.is_none()),
        1 => assert!(random.poll_and_drop(vm.wait_timeout(Duration::from_secs(9))).await.is_none()),
        2 => drop(random.poll_and_drop(vm.console()).await),
        _ => {}
    }
}

#[test]
fn split_console_futures_dropped_lose_nothing() {
    run_isolated!();
    let random = &mut RandomDrops::new(0xfeed);
    block_on(async {
        let vm = fake::vm("up echo serve").build().await.unwrap();
        vm.start().await.unwrap();
        let (reader, mut writer) = vm.console().await.unwrap().split();
        let (mut lines, mut received) = (reader.lines(), Vec::new());
        for n in 0..500 {
            let line = format!("line {n}\n");
            let mut rest = line.as_bytes();
            while !rest.is_empty() {
                let wrote = random.poll_and_drop(writer.write(rest)).await;
                rest = &rest[wrote.map_or(0, Result::unwrap)..];
            }
            received.extend(random.poll_and_drop(lines.next()).await.flatten());
        }
        while received.len() < 500 {
            received.push(lines.next().await.unwrap());
        }
        for (n, line) in received.iter().enumerate() {
            assert_eq!(*line, format!("line {n}"));
        }
        vm.kill().await.unwrap();
    });
}

#[test]
fn shell_usable_after_dropped_futures() {
    let random = &mut RandomDrops::new(0x0dd);
    for _ in 0..60 {
        block_on(async {
            let guest =
                ScriptedGuest::new().print("booting\r\n").login("root", Some("pw")).shell("# ");
            let guest = guest.on("uname -r", GuestReply::output("6.1.0\n"));
            let vm =
                testing::vm(guest.on("id -u", GuestReply::output("0\n"))).build().await.unwrap();
            random.poll_and_drop(vm.start()).await;
            if vm.status() == VmStatus::Created {
                vm.start().await.unwrap(); // The future was never polled.
            }
            let mut console = vm.console().await.unwrap();
            console.login_timeout("root", Some("pw"), PATIENCE).await.unwrap();
            for _ in 0..random.below(5) {
                random.poll_and_drop(console.run("uname -r", None)).await;
                random.poll_and_drop(console.run_command("uname -r", "# ")).await;
                random.poll_and_drop(console.run_command_timeout("uname -r", "# ", PATIENCE)).await;
            }
            let reply = console.run("id -u", Some(PATIENCE)).await.unwrap();
            assert_eq!((reply.output.as_slice(), reply.status), (&b"0\n"[..], Some(0)));
            vm.stop().await.unwrap();
        });
    }
}

#[test]
fn start_stop_kill_are_cancel_safe() {
    run_isolated!();
    let random = &mut RandomDrops::new(0xbeef);
    for _ in 0..40 {
        block_on(async {
            drop(random.poll_and_drop(fake::vm("up serve").build()).await);
            drop(random.poll_and_drop(fake::vm("up serve").build_driven()).await);
            let vm = fake::vm("up serve").build().await.unwrap();
            // A stop that has begun continues.
            random.poll_and_drop(vm.start()).await;
            if vm.status() == VmStatus::Created {
                vm.start().await.unwrap();
            }
            random.poll_and_drop(vm.stop_with_timeout(Duration::from_millis(1))).await;
            random.poll_and_drop(vm.kill()).await;
            vm.stop_with_timeout(Duration::from_millis(1)).await.unwrap();
            assert!(vm.wait().await.unwrap().is_terminal());
        });
    }
    eventually("all VMMs have exited", || {
        let children = processes::children(std::process::id());
        children.iter().all(|child| !child.arguments.contains("-append"))
    });
}

#[test]
fn tokio_events_in_select_are_not_lost() {
    run_isolated!();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let orders = fake::vm("up console*100000 console=END serve").read_budget(100);
        let mut vm = TokioVm::new(orders.build_embedded().unwrap()).unwrap();
        let reader = vm.add_reader();
        vm.start().unwrap();
        let mut output = Vec::new();
        loop {
            let event = tokio::select! {
                biased;
                event = vm.next_event() => event.unwrap(),
                () = tokio::time::sleep(Duration::from_micros(50)) => continue,
            };
            match event {
                Some(VmEvent::ConsoleData) => {
                    output.extend(vm.take(reader));
                    if output.ends_with(b"END") {
                        vm.kill().unwrap();
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        assert!(output[..100_000] == fake::flood(100_000), "the output differs from the flood");
    });
}

#[test]
fn vsock_accept_dropped_loses_no_connection() {
    let guest = NanoGuest::for_any(Nano::default());
    let subject = match Subject::cloud_hypervisor_stand_in() {
        Ok(subject) => subject,
        Err(why) => return skip(why),
    };
    let random = &mut RandomDrops::new(0xacce);
    block_on(async {
        let builder = subject.on_backend(guest.builder()).accelerator(Accelerator::Auto).vsock();
        let vm = builder.build().await.unwrap();
        let listener = vm.vsock_listen(7).await.unwrap();
        let socket = capsa::internal::parts(vm.launch_plan())
            .vsock
            .as_ref()
            .unwrap()
            .listener(7)
            .unwrap()
            .to_string();
        let mut received = Vec::new();
        for n in 0..200_u8 {
            // As the device does for the guest.
            UnixStream::connect(&socket).unwrap().write_all(&[n]).unwrap();
            if let Some(stream) = random.poll_and_drop(listener.accept()).await {
                received.push(stream.unwrap());
            }
        }
        while received.len() < 200 {
            received.push(listener.accept().await.unwrap());
        }
        for (n, mut stream) in (0..200).zip(received) {
            let mut byte = [0];
            AsyncReadExt::read_exact(&mut stream, &mut byte).await.unwrap();
            assert_eq!(byte, [n]);
        }
    });
}
