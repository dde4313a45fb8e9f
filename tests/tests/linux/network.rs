//! The network of real guests under the real QEMU: their DHCP clients, names and addresses.

use std::time::Duration;

use capsa::testing::{self, TestResult};
use capsa::{Capsa, DiskImage, LinuxBootConfig, NetworkMode};
use capsa_testkit::{guest, skip, vm};

/// For emulation on a loaded host.
const PATIENCE: Duration = Duration::from_secs(900);

/// The guest sees the link go down and up, and its connections work afterwards.
#[test]
fn link_down_and_up_changes_the_carrier() -> TestResult {
    let Some(guest) = vm::linux_guest() else { return Ok(()) };
    let vm = vm::linux(&guest).network(NetworkMode::Nat).build_blocking()?;
    let _shown = testing::show_on_failure(&vm);
    vm.start()?;
    let mut console = vm.console()?;
    console.login_timeout("root", None, PATIENCE)?;
    let mut run = |command: &str| -> Result<String, capsa::Error> {
        Ok(console.run(command, Some(PATIENCE))?.text().trim().to_owned())
    };
    let routed = "for i in $(seq 300); do ip -4 route | grep -q default && break; sleep 0.1; done";
    run(routed)?;
    assert_eq!(run("cat /sys/class/net/eth0/carrier")?, "1");
    for (is_up, carrier) in [(false, "0"), (true, "1"), (false, "0"), (true, "1")] {
        vm.set_network_link(is_up)?;
        let wait = format!(
            "for i in $(seq 300); do [ $(cat /sys/class/net/eth0/carrier) = {carrier} ] && break; \
             sleep 0.1; done; cat /sys/class/net/eth0/carrier"
        );
        assert_eq!(run(&wait)?, carrier);
    }
    let host = run("nslookup host.capsa.internal 10.0.2.3")?;
    assert!(host.contains("10.0.2.2"), "{host}");
    vm.stop()?;
    Ok(())
}

/// The two DHCP clients of Debian, and IPv6 by router advertisement.
#[test]
fn debian_clients_get_addresses_and_names() -> TestResult {
    let Ok(guest) = guest::debian().map_err(skip) else { return Ok(()) };
    let disk = DiskImage::new(guest.disk).ephemeral();
    let config = LinuxBootConfig::new(guest.kernel).initrd(guest.initrd).disk(disk);
    let builder = Capsa::vm(config).backend("qemu").cpus(2).memory_mb(512);
    let builder = builder.cmdline_args(["rw", "quiet", "mitigations=off"]);
    let vm = builder.console_enabled().build_blocking()?;
    let _shown = testing::show_on_failure(&vm);
    vm.start()?;
    let mut console = vm.console()?;
    console.login_timeout("root", Some("capsa"), PATIENCE)?;
    let mut run = |command: &str| -> Result<String, capsa::Error> {
        let reply = console.run(command, Some(PATIENCE))?;
        assert!(reply.success(), "{command}: {}", reply.text());
        Ok(reply.text().into_owned())
    };
    let card = run("basename $(echo /sys/class/net/e*)")?;
    let card = card.trim();
    let lease = format!("ip -o addr show dev {card}");

    // systemd-networkd.
    run(
        "printf '[Match]\\nName=e*\\n[Network]\\nDHCP=ipv4\\nIPv6AcceptRA=yes\\n[DHCPv4]\\nUseMTU=yes\\n' \
         >/etc/systemd/network/10.network && systemctl start systemd-networkd && \
         /lib/systemd/systemd-networkd-wait-online --ipv4 --timeout=300",
    )?;
    let addresses = run(&lease)?;
    assert!(addresses.contains("inet 10.0.2.15/24"), "{addresses}");
    let state = run("cat /run/systemd/netif/leases/*")?;
    for line in ["ROUTER=10.0.2.2", "DNS=10.0.2.3", "MTU=65520"] {
        assert!(state.contains(line), "{state}");
    }
    run(
        "for n in $(seq 1 100); do ip -6 -o addr show scope global | grep -q fd00 && exit; sleep 0.2; done; exit 1",
    )?;

    // dhclient, the client of ifupdown.
    run(&format!("systemctl stop systemd-networkd; ip addr flush dev {card}"))?;
    run(&format!("dhclient -1 {card}"))?;
    let addresses = run(&lease)?;
    assert!(addresses.contains("inet 10.0.2.15/24"), "{addresses}");
    let servers = run("cat /etc/resolv.conf")?;
    assert!(servers.contains("nameserver 10.0.2.3"), "{servers}");

    // The name server of the network. glibc asks it through `getent`.
    let host = run("getent ahostsv4 host.capsa.internal")?;
    assert!(host.starts_with("10.0.2.2 "), "{host}");
    let unknown = console.run("getent hosts none.capsa.internal", Some(PATIENCE))?;
    assert_eq!(unknown.status, Some(2), "{}", unknown.text());
    // The host is closed: a refusal, not a time limit.
    let closed = "timeout 10 bash -c '</dev/tcp/host.capsa.internal/22' 2>&1";
    let reply = console.run(closed, Some(PATIENCE))?;
    assert!(reply.text().contains("Connection refused"), "{:?} {}", reply.status, reply.text());
    vm.stop()?;
    Ok(())
}
