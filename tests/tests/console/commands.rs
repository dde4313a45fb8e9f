//! Commands whose output is read while they run, with each API of the library.

use std::io::Read;
use std::pin::pin;
use std::time::{Duration, Instant};

use capsa::Error;
use capsa::blocking::{VmConsole, VmHandle};
use capsa::console::Overflow;
use capsa::embed::{Vm, VmEvent};
use capsa::testing::{self, GuestReply, ScriptedGuest};
use capsa_testkit::vm::{PATIENCE, in_time, poll_fd};
use futures_lite::AsyncReadExt;
use futures_lite::future::{block_on, poll_once};

/// More than the scrollback below and the read-ahead hold.
const LONG: usize = 3_000_000;

fn long() -> Vec<u8> {
    (0..LONG).map(|n| if n % 71 == 70 { b'\n' } else { b'a' + (n % 23) as u8 }).collect()
}

fn logged_in(guest: ScriptedGuest, overflow: Overflow) -> (VmHandle, VmConsole) {
    let guest = guest.login("root", None).shell("# ");
    let vm = testing::vm(guest).scrollback(100_000, overflow).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.login_timeout("root", None, PATIENCE).unwrap();
    (vm, console)
}

#[test]
fn reader_slow_gets_all_of_paused_guest() {
    let guest = ScriptedGuest::new().on("long", GuestReply::output(long()).with_status(4));
    let (_vm, mut console) = logged_in(guest, Overflow::Pause);
    let mut command = console.spawn("long", Some(PATIENCE)).unwrap();
    let (mut output, mut chunk) = (Vec::new(), vec![0; 50_000]);
    for round in 0.. {
        let n = command.read(&mut chunk).unwrap();
        if n == 0 {
            break;
        }
        output.extend_from_slice(&chunk[..n]);
        if round % 8 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(output == long(), "{} of {LONG} bytes", output.len());
    let reply = command.wait().unwrap();
    assert_eq!((&reply.output[..], reply.status, reply.truncated), (&b""[..], Some(4), false));
    assert_eq!(
        console.run("true", Some(PATIENCE)).unwrap().status,
        Some(127),
        "the shell is usable"
    );
}

#[test]
fn command_output_unread_is_truncated_at_limit() {
    for (length, is_kept) in [(LONG, true), (20_000_000, false)] {
        let guest = ScriptedGuest::new().on("long", GuestReply::output(vec![b'x'; length]));
        let (vm, mut console) = logged_in(guest, Overflow::DropOldest);
        let command = console.spawn("long", Some(PATIENCE)).unwrap();
        // The command ends before the first read.
        console_is_silent(&vm);
        let reply = command.wait().unwrap();
        assert_eq!(reply.truncated, !is_kept, "{} of {length} bytes", reply.output.len());
        assert_eq!((reply.output.len() == length, reply.status), (is_kept, Some(0)));
    }
}

/// Waits until the guest has written all its output.
fn console_is_silent(vm: &VmHandle) {
    let mut other = vm.console().unwrap();
    other.wait_for_silence(Duration::from_millis(500), Some(PATIENCE)).unwrap();
}

#[test]
fn command_wait_returns_unread_output() {
    let guest = ScriptedGuest::new().on("long", GuestReply::output(long()).with_status(1));
    let (_vm, mut console) = logged_in(guest, Overflow::Pause);
    let mut command = console.spawn("long", Some(PATIENCE)).unwrap();
    let mut first = [0; 1000];
    command.read_exact(&mut first).unwrap();
    let reply = command.wait().unwrap();
    assert!([&first[..], &reply.output].concat() == long(), "{} bytes", reply.output.len());
    assert_eq!((reply.status, reply.truncated), (Some(1), false));
}

#[test]
fn command_output_comes_before_its_end() {
    let guest =
        ScriptedGuest::new().on("forever", GuestReply::output("one\ntwo").runs_for(Duration::MAX));
    let (_vm, mut console) = logged_in(guest, Overflow::DropOldest);
    let mut console = in_time("the output comes before the end", move || {
        let mut command = console.spawn("forever", None).unwrap();
        let mut text = [0; 7];
        command.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"one\ntwo");
        drop(command);
        console
    });

    let mut command = console.spawn("forever", Some(Duration::from_millis(300))).unwrap();
    let mut rest = Vec::new();
    command.read_to_end(&mut rest).unwrap();
    assert_eq!(String::from_utf8_lossy(&rest), "one\ntwo");
    let error = command.wait().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn command_dropped_is_interrupted() {
    let guest =
        ScriptedGuest::new().on("forever", GuestReply::output("on and on").runs_for(Duration::MAX));
    let (_vm, mut console) = logged_in(guest, Overflow::DropOldest);
    drop(console.spawn("forever", None).unwrap());
    let mut command = console.spawn("forever", None).unwrap();
    command.read_exact(&mut [0; 9]).unwrap();
    drop(command);
    // Ctrl-C has ended the command.
    assert_eq!(console.run("nonsense", Some(PATIENCE)).unwrap().status, Some(127));
}

#[test]
fn command_output_ends_with_vm() {
    let guest = ScriptedGuest::new()
        .on("forever", GuestReply::output("last words").runs_for(Duration::MAX));
    let (vm, mut console) = logged_in(guest, Overflow::Pause);
    let mut command = console.spawn("forever", None).unwrap();
    let mut output = [0; 10];
    command.read_exact(&mut output).unwrap();
    vm.kill().unwrap();
    assert_eq!(command.read(&mut [0; 9]).unwrap(), 0);
    let error = command.wait().unwrap_err();
    assert!(error.to_string().contains("the command to end"), "{error}");
}

/// A program that reads on events only gets no event for output that the scrollback held at its first read.
#[test]
fn take_output_returns_all_there_is() {
    let guest = ScriptedGuest::new().login("root", None).shell("# ");
    let guest = guest.on("forever", GuestReply::output(long()).runs_for(Duration::MAX));
    let builder = testing::vm(guest).scrollback(LONG + 100_000, Overflow::Pause);
    let mut vm = builder.build_embedded().unwrap();
    let reader = vm.add_reader();
    vm.start().unwrap();
    let login = vm.login(reader, "root", None, Some(PATIENCE)).unwrap();
    drive_until(&mut vm, |_, event| event == VmEvent::Ended(login));
    let before = vm.scrollback().end();
    let run = vm.spawn(reader, "forever", Some(PATIENCE)).unwrap();
    let whole = before + LONG as u64;
    drive_until(&mut vm, |vm, _| vm.scrollback().end() > whole);
    let taken = vm.take_output(run);
    assert!(taken == long(), "{} of {LONG} bytes", taken.len());
    assert_eq!(vm.take_output(run), b"");
}

fn drive_until(vm: &mut Vm, mut is_it: impl FnMut(&mut Vm, VmEvent) -> bool) {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < PATIENCE, "timed out");
        let timeout = vm.next_timeout().unwrap_or(PATIENCE).min(PATIENCE);
        poll_fd(&*vm, Some(timeout));
        vm.on_ready().unwrap();
        while let Some(event) = vm.poll_event() {
            if is_it(vm, event) {
                return;
            }
        }
    }
}

/// Read futures may be dropped at any await, even when the driver is a future too.
#[test]
fn command_reads_dropped_lose_nothing() {
    let guest =
        ScriptedGuest::new().on("long", GuestReply::output(long())).login("root", None).shell("# ");
    let builder = testing::vm(guest).scrollback(100_000, Overflow::Pause);
    let (vm, driver) = block_on(builder.build_driven()).unwrap();
    let session = async {
        vm.start().await.unwrap();
        let mut console = vm.console().await.unwrap();
        console.login_timeout("root", None, PATIENCE).await.unwrap();
        let mut command = console.spawn("long", Some(PATIENCE)).unwrap();
        let (mut output, mut chunk, mut given_up) = (Vec::new(), vec![0; 4096], 0);
        for round in 0.. {
            let most = 1 + round * 997 % chunk.len();
            let read = match round % 2 == 0 {
                true => match poll_once(pin!(command.read(&mut chunk[..most]))).await {
                    Some(read) => read,
                    None => {
                        given_up += 1;
                        continue;
                    }
                },
                false => AsyncReadExt::read(&mut command, &mut chunk[..most]).await.unwrap(),
            };
            if read == 0 {
                break;
            }
            output.extend_from_slice(&chunk[..read]);
        }
        assert!(output == long(), "{} of {LONG} bytes", output.len());
        let reply = command.wait().await.unwrap();
        assert_eq!((reply.status, reply.truncated), (Some(0), false));
        vm.stop().await.unwrap();
        given_up
    };
    let (given_up, driven) = block_on(futures_lite::future::zip(session, driver));
    driven.unwrap();
    assert!(given_up > 0);
}
