//! vsock streams between host and guest.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use capsa::vsock::VsockDirection;
use capsa::{EndedBy, Error, MountMode};

use super::vm::TestVm;
use super::{Fixture, Scenario};
use capsa_fixtures::programs::TestProgram;
use capsa_testkit::vm::PATIENCE;

pub(super) const SCENARIOS: &[Scenario] = &[
    // The share makes the test program available in the guest.
    Scenario::linux("vsock_carries_many_streams_both_ways", both_ways)
        .uses(&["vsock", "virtio_fs"]),
    Scenario::any("vsock_disabled_returns_error", without),
];

const TO_GUEST: u32 = 5000;
const TO_HOST: u32 = 77;
const SILENT: u32 = 5001;

fn both_ways(fixture: &Fixture<'_>) {
    let named = [
        (TO_GUEST, VsockDirection::ToGuest),
        (SILENT, VsockDirection::ToGuest),
        (TO_HOST, VsockDirection::ToHost),
    ];
    let mode = match fixture.subject.supports("share_read_only") {
        true => MountMode::ReadOnly,
        false => MountMode::ReadWrite,
    };
    let builder = fixture.builder().share("/", "/host", mode);
    let builder = named
        .into_iter()
        .fold(builder, |builder, (port, direction)| builder.vsock_port(port, direction));
    let mut vm = fixture.vm(builder);
    assert!(matches!(vm.handle.vsock_connect(TO_GUEST), Err(Error::NotRunning)));
    // A listener may exist before the start.
    let listener = vm.handle.vsock_listen(TO_HOST).unwrap();
    let twice = vm.handle.vsock_listen(TO_HOST).unwrap_err();
    assert!(matches!(&twice, Error::Io(why) if why.kind() == std::io::ErrorKind::AddrInUse));
    vm.start();
    vm.wait_until_ready();
    let peer = format!("chroot /host {}", TestProgram::new("vsock-peer").path().display());
    vm.sh(&format!("({peer} listen {TO_GUEST} >/dev/null 2>&1 &)"));

    // From the host: as soon as the guest listens, several streams, more bytes than any buffer.
    let connect = || vm.handle.vsock_connect_timeout(TO_GUEST, PATIENCE).unwrap();
    let streams: Vec<_> = (0..4).map(|_| connect()).collect();
    for stream in &streams {
        echoes(stream, 1 << 20);
    }
    let refused = vm.handle.vsock_connect(SILENT).unwrap_err();
    assert!(matches!(refused, Error::VsockRefused { port: SILENT }), "{refused}");
    let short = Duration::from_millis(300);
    let late = vm.handle.vsock_connect_timeout(SILENT, short).unwrap_err();
    assert!(matches!(late, Error::Timeout { waited, .. } if waited >= short), "{late}");

    // From the guest: several streams to one listener.
    vm.sh(&format!(
        "for n in 1 2 3; do ({peer} connect {TO_HOST} word$n >/tmp/answer$n 2>&1 &); done"
    ));
    let mut words: Vec<_> = (0..3).map(|_| read_and_answer(listener.accept().unwrap())).collect();
    words.sort();
    assert_eq!(words, ["word1", "word2", "word3"]);
    for n in 1..=3 {
        let got = format!(
            "i=0; until grep -q . /tmp/answer{n}; do [ $((i+=1)) -lt 300 ] && sleep 0.1; done"
        );
        vm.sh(&format!("{got}; cat /tmp/answer{n}"));
        assert_eq!(vm.sh(&format!("cat /tmp/answer{n}")), format!("received word{n}"));
    }
    drop(listener);
    assert!(!vm.succeeds(&format!("{peer} connect {TO_HOST} unanswered")));

    // The streams end with the VM.
    vm.handle.stop().unwrap();
    assert_eq!(vm.wait_for_end().ended_by, EndedBy::GuestPowerOff);
    for mut stream in streams {
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    }
    assert!(matches!(vm.handle.vsock_connect(TO_GUEST), Err(Error::NotRunning)));
    assert!(matches!(vm.handle.vsock_listen(TO_HOST), Err(Error::NotRunning)));
}

fn without(fixture: &Fixture<'_>) {
    let vm: TestVm = fixture.vm(fixture.builder());
    assert!(matches!(vm.handle.vsock_connect(1), Err(Error::VsockNotEnabled)));
    assert!(matches!(vm.handle.vsock_listen(1), Err(Error::VsockNotEnabled)));
}

/// Sends `len` bytes and reads the echo at the same time.
fn echoes(stream: &UnixStream, len: usize) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..len).map(|n| (n / 251) as u8).collect();
    let (mut to, mut from) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
    let mut back = vec![0; len];
    thread::scope(|scope| {
        scope.spawn(|| to.write_all(&sent).unwrap());
        from.read_exact(&mut back).unwrap();
    });
    assert!(back == sent, "the echo differs");
}

/// Reads a word from the guest and answers.
fn read_and_answer(mut stream: UnixStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut word = String::new();
    BufReader::new(&stream).read_line(&mut word).unwrap();
    write!(stream, "received {word}").unwrap();
    word.trim_end().to_owned()
}
