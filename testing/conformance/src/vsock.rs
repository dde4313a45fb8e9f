//! Sockets between host and guest without a network.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use capsa::{EndedBy, Error, MountMode, VsockDirection};

use super::machine::Machine;
use super::{Scenario, Stage};
use capsa_fixtures::programs::TestProgram;
use capsa_testkit::vm::PATIENCE;

pub(super) const SCENARIOS: &[Scenario] = &[
    // The share only brings a program into the guest.
    Scenario::linux("vsock_streams_go_both_ways_many_at_once", both_ways)
        .uses(&["vsock", "virtio_fs"]),
    Scenario::any("a_machine_without_vsock_says_so", without),
];

const TO_GUEST: u32 = 5000;
const TO_HOST: u32 = 77;
const SILENT: u32 = 5001;

fn both_ways(stage: &Stage<'_>) {
    let named = [
        (TO_GUEST, VsockDirection::ToGuest),
        (SILENT, VsockDirection::ToGuest),
        (TO_HOST, VsockDirection::ToHost),
    ];
    let mode = match stage.subject.claims("share_read_only") {
        true => MountMode::ReadOnly,
        false => MountMode::ReadWrite,
    };
    let builder = stage.builder().share("/", "/host", mode);
    let builder = named
        .into_iter()
        .fold(builder, |builder, (port, direction)| builder.vsock_port(port, direction));
    let mut machine = stage.machine(builder);
    assert!(matches!(machine.vm.vsock_connect(TO_GUEST), Err(Error::NotRunning)));
    // A listener may be there before the guest is.
    let listener = machine.vm.vsock_listen(TO_HOST).unwrap();
    let twice = machine.vm.vsock_listen(TO_HOST).unwrap_err();
    assert!(matches!(&twice, Error::Io(why) if why.kind() == std::io::ErrorKind::AddrInUse));
    machine.start();
    machine.listens();
    let peer = format!("chroot /host {}", TestProgram::new("vsock-peer").path().display());
    machine.sh(&format!("({peer} listen {TO_GUEST} >/dev/null 2>&1 &)"));

    // From the host: as soon as it listens, several at once, and more than any buffer holds.
    let connect = || machine.vm.vsock_connect_timeout(TO_GUEST, PATIENCE).unwrap();
    let streams: Vec<_> = (0..4).map(|_| connect()).collect();
    for stream in &streams {
        echoes(stream, 1 << 20);
    }
    let refused = machine.vm.vsock_connect(SILENT).unwrap_err();
    assert!(matches!(refused, Error::VsockRefused { port: SILENT }), "{refused}");
    let short = Duration::from_millis(300);
    let late = machine.vm.vsock_connect_timeout(SILENT, short).unwrap_err();
    assert!(matches!(late, Error::Timeout { waited, .. } if waited >= short), "{late}");

    // From the guest: several at once, heard on one listener.
    machine.sh(&format!(
        "for n in 1 2 3; do ({peer} connect {TO_HOST} word$n >/tmp/answer$n 2>&1 &); done"
    ));
    let mut words: Vec<_> = (0..3).map(|_| answer(listener.accept().unwrap())).collect();
    words.sort();
    assert_eq!(words, ["word1", "word2", "word3"]);
    for n in 1..=3 {
        let got = format!(
            "i=0; until grep -q . /tmp/answer{n}; do [ $((i+=1)) -lt 300 ] && sleep 0.1; done"
        );
        machine.sh(&format!("{got}; cat /tmp/answer{n}"));
        assert_eq!(machine.sh(&format!("cat /tmp/answer{n}")), format!("heard word{n}"));
    }
    drop(listener);
    assert!(!machine.succeeds(&format!("{peer} connect {TO_HOST} nobody")));

    // The end of the machine is the end of its streams.
    machine.vm.stop().unwrap();
    assert_eq!(machine.ended().ended_by, EndedBy::GuestPowerOff);
    for mut stream in streams {
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    }
    assert!(matches!(machine.vm.vsock_connect(TO_GUEST), Err(Error::NotRunning)));
    assert!(matches!(machine.vm.vsock_listen(TO_HOST), Err(Error::NotRunning)));
}

fn without(stage: &Stage<'_>) {
    let machine: Machine = stage.machine(stage.builder());
    assert!(matches!(machine.vm.vsock_connect(1), Err(Error::VsockNotEnabled)));
    assert!(matches!(machine.vm.vsock_listen(1), Err(Error::VsockNotEnabled)));
}

/// Sends this many bytes, and reads as many back while it does.
fn echoes(stream: &UnixStream, len: usize) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..len).map(|n| (n / 251) as u8).collect();
    let (mut to, mut from) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
    let mut back = vec![0; len];
    thread::scope(|scope| {
        scope.spawn(|| to.write_all(&sent).unwrap());
        from.read_exact(&mut back).unwrap();
    });
    assert!(back == sent, "what came back is not what was sent");
}

/// Hears a word, and says that it did.
fn answer(mut stream: UnixStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut word = String::new();
    BufReader::new(&stream).read_line(&mut word).unwrap();
    write!(stream, "heard {word}").unwrap();
    word.trim_end().to_owned()
}
