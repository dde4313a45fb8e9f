//! NAT. The scenario of [`boot`](super::boot) checks that a VM without a network has no device.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};

use capsa::{NetworkMode, RebootPolicy};

use super::vm::TestVm;
use super::{Fixture, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::linux("nat_assigns_address_and_reaches_host", nat).uses(&["network_modes.nat"]),
    Scenario::linux("nat_carries_streams_whole", streams).uses(&["network_modes.nat"]),
    Scenario::linux("nat_works_after_guest_reboots", reboots)
        .uses(&["network_modes.nat", "reboot_restart"]),
];

/// The bytes of a stream.
const LEN: usize = 24 << 20;

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// The guest requests its address during the boot and does not wait for it. Returns the gateway.
fn wait_for_gateway(vm: &mut TestVm) -> String {
    let routed = "ip -4 route | sed -n 's/^default via \\([0-9.]*\\) .*/\\1/p'";
    let gateway = vm.sh(&format!(
        "for i in $(seq 300); do gw=$({routed}); [ -n \"$gw\" ] && break; sleep 0.1; done; echo $gw"
    ));
    assert!(!gateway.is_empty(), "no default route: {}", vm.sh("cat /var/log/dhcp.log; ip addr"));
    gateway
}

/// Serves one connection: sends `greeting`, and returns what it received.
fn serve(listener: &TcpListener, greeting: &[u8]) -> Vec<u8> {
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(greeting).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    received
}

fn nat(fixture: &Fixture<'_>) {
    let ((listener, port), (closed, closed_port)) = (listen(), listen());
    let builder = fixture.builder().network(NetworkMode::Nat).allow_host_port(port);
    let mut vm = fixture.boot(builder);
    assert_eq!(vm.sh("ls -1 /sys/class/net"), "eth0\nlo");
    assert_eq!(wait_for_gateway(&mut vm), "10.0.2.2");
    let address = vm.sh("ip -4 addr show eth0 | sed -n 's/.*inet \\([0-9.]*\\).*/\\1/p'");
    assert_eq!(address, "10.0.2.15");
    let host = std::thread::spawn(move || serve(&listener, b"hello guest\n"));
    let received = vm.sh(&format!("echo hello host | nc -w 30 10.0.2.2 {port}"));
    assert_eq!(received, "hello guest");
    assert_eq!(host.join().unwrap(), b"hello host\n");
    // A port that is not allowed is refused at once.
    closed.set_nonblocking(true).unwrap();
    let refused = format!("nc -w 30 10.0.2.2 {closed_port} </dev/null || echo refused");
    assert_eq!(vm.sh(&refused).lines().last(), Some("refused"));
    assert!(closed.accept().is_err());
}

fn streams(fixture: &Fixture<'_>) {
    let (listener, port) = listen();
    let builder = fixture.builder().network(NetworkMode::Nat).allow_host_port(port);
    let mut vm = fixture.boot(builder);
    wait_for_gateway(&mut vm);
    let host = std::thread::spawn(move || {
        let body: Vec<u8> = (0..LEN).map(|n| (n >> 7) as u8 ^ n as u8).collect();
        let mut at = std::time::Instant::now();
        let mut lap = |what: &str| {
            let rate = (LEN >> 20) as f64 / at.elapsed().as_secs_f64();
            at = std::time::Instant::now();
            println!("{what}: {rate:.0} MiB/s");
        };
        serve(&listener, &body);
        lap("download");
        assert!(serve(&listener, b"") == body, "the guest sent other bytes than it received");
        lap("upload");
    });
    let command = format!("nc -w 60 10.0.2.2 {port} </dev/null >/tmp/body; wc -c </tmp/body");
    assert_eq!(vm.sh(&command), LEN.to_string());
    vm.sh(&format!("nc -w 60 10.0.2.2 {port} </tmp/body"));
    host.join().unwrap();
}

fn reboots(fixture: &Fixture<'_>) {
    let (listener, port) = listen();
    let builder = fixture.builder().network(NetworkMode::Nat).allow_host_port(port);
    let mut vm = fixture.boot(builder.on_reboot(RebootPolicy::Restart));
    let count = std::env::var("CAPSA_REBOOTS").map_or(2, |count| count.parse().unwrap());
    for n in 0..=count {
        if n > 0 {
            vm.reset();
            vm.wait_until_rebooted();
        }
        wait_for_gateway(&mut vm);
        let listener = listener.try_clone().unwrap();
        let host = std::thread::spawn(move || serve(&listener, b"hello guest\n"));
        assert_eq!(vm.sh(&format!("echo {n} | nc -w 30 10.0.2.2 {port}")), "hello guest");
        assert_eq!(host.join().unwrap(), format!("{n}\n").as_bytes());
    }
}
