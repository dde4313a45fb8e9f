//! NAT. The scenario of [`boot`](super::boot) checks that a VM without a network has no device.

use std::io::{Read, Write};
use std::net::TcpListener;

use capsa::NetworkMode;

use super::{Fixture, Scenario};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario::linux("nat_assigns_address_and_reaches_host", nat).uses(&["network_modes.nat"])];

fn nat(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder().network(NetworkMode::Nat));
    assert_eq!(vm.sh("ls -1 /sys/class/net"), "eth0\nlo");
    // The guest requests its address during the boot and does not wait for it.
    let routed = "ip -4 route | sed -n 's/^default via \\([0-9.]*\\) .*/\\1/p'";
    let gateway = vm.sh(&format!(
        "for i in $(seq 300); do gw=$({routed}); [ -n \"$gw\" ] && break; sleep 0.1; done; echo $gw"
    ));
    assert!(!gateway.is_empty(), "no default route: {}", vm.sh("cat /var/log/dhcp.log; ip addr"));
    let address = vm.sh("ip -4 addr show eth0 | sed -n 's/.*inet \\([0-9.]*\\).*/\\1/p'");
    assert!(!address.is_empty(), "{}", vm.sh("ip addr"));
    // If the backend does not forward to the loopback, connect to the gateway.
    let (mut host_at, mut listens_on) = (gateway.as_str(), "0.0.0.0");
    if let Some((guests, host)) = fixture.subject.traits.nat {
        assert!(guests.contains(&&*address), "{address} is not in {guests:?}");
        (host_at, listens_on) = (host, "127.0.0.1");
    }
    let listener = TcpListener::bind((listens_on, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello guest\n").unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        received
    });
    let received = vm.sh(&format!("echo hello host | nc -w 30 {host_at} {port}"));
    assert_eq!(received, "hello guest");
    assert_eq!(host.join().unwrap(), "hello host\n");
}
