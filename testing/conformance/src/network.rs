//! The guest's network by NAT. That a machine without one has no device is shown where it is shown
//! what else arrives, in [`boot`](super::boot).

use std::io::{Read, Write};
use std::net::TcpListener;

use capsa::NetworkMode;

use super::{Scenario, Stage};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario::linux("nat_gives_an_address_and_reaches_the_host", nat)
        .uses(&["network_modes.nat"])];

fn nat(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.builder().network(NetworkMode::Nat));
    assert_eq!(machine.sh("ls -1 /sys/class/net"), "eth0\nlo");
    // The guest asks for its address while it boots, and nobody waits for the answer.
    let routed = "ip -4 route | sed -n 's/^default via \\([0-9.]*\\) .*/\\1/p'";
    let gateway = machine.sh(&format!(
        "for i in $(seq 300); do gw=$({routed}); [ -n \"$gw\" ] && break; sleep 0.1; done; echo $gw"
    ));
    assert!(!gateway.is_empty(), "no route came: {}", machine.sh("cat /var/log/dhcp.log; ip addr"));
    let address = machine.sh("ip -4 addr show eth0 | sed -n 's/.*inet \\([0-9.]*\\).*/\\1/p'");
    assert!(!address.is_empty(), "{}", machine.sh("ip addr"));
    // Without a promise about the loopback, the host is the gateway and listens on all it has.
    let (mut host_at, mut listens_on) = (gateway.as_str(), "0.0.0.0");
    if let Some((guests, host)) = stage.subject.nature.nat {
        assert!(guests.contains(&&*address), "{address} is none of {guests:?}");
        (host_at, listens_on) = (host, "127.0.0.1");
    }
    let listener = TcpListener::bind((listens_on, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello guest\n").unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    });
    let said = machine.sh(&format!("echo hello host | nc -w 30 {host_at} {port}"));
    assert_eq!(said, "hello guest");
    assert_eq!(host.join().unwrap(), "hello host\n");
}
