//! The policy and the events of a VM's network, through each interface of the library.

use capsa::network::{NetworkEvent, NetworkEventKind, NetworkPolicy};
use capsa::{Error, NetworkMode};
use capsa_testkit::{fake, run_isolated};

fn policy() -> NetworkPolicy {
    NetworkPolicy::new().allow("a.org:443")
}

/// A rule without a port.
fn invalid() -> NetworkPolicy {
    NetworkPolicy::new().allow("a.org")
}

fn kinds(events: Vec<NetworkEvent>) -> Vec<NetworkEventKind> {
    events.into_iter().map(|event| event.kind).collect()
}

#[test]
fn policy_of_a_handle_is_replaced() {
    run_isolated!();
    let vm = fake::vm("up serve").network(NetworkMode::Nat).build_blocking().unwrap();
    vm.start().unwrap();
    let (blocking, handle) = (vm.clone(), vm.as_async().clone());
    assert!(matches!(blocking.set_network_policy(invalid()), Err(Error::InvalidConfig { .. })));
    assert!(matches!(handle.set_network_policy(invalid()), Err(Error::InvalidConfig { .. })));
    assert_eq!(kinds(vm.network_events()), []);
    blocking.set_network_policy(policy()).unwrap();
    assert_eq!(kinds(handle.network_events()), [NetworkEventKind::PolicyChanged]);
    handle.set_network_policy(policy()).unwrap();
    vm.kill().unwrap();
    assert_eq!(kinds(blocking.network_events()), [NetworkEventKind::PolicyChanged]);
    assert!(matches!(handle.set_network_policy(policy()), Err(Error::NotRunning)));
}

#[test]
fn policy_of_an_embedded_vm_is_replaced() {
    run_isolated!();
    let mut vm = fake::vm("up serve").network(NetworkMode::Nat).build_embedded().unwrap();
    assert!(matches!(vm.set_network_policy(invalid()), Err(Error::InvalidConfig { .. })));
    assert_eq!(kinds(vm.network_events()), []);
    vm.set_network_policy(policy()).unwrap();
    assert_eq!(kinds(vm.network_events()), [NetworkEventKind::PolicyChanged]);
    assert_eq!(kinds(vm.network_events()), []);
}

#[test]
fn policy_without_a_network_is_an_error() {
    run_isolated!();
    let mut vm = fake::vm("up serve").network(NetworkMode::None).build_embedded().unwrap();
    assert!(matches!(vm.set_network_policy(policy()), Err(Error::NetworkNotEnabled)));
    assert_eq!(kinds(vm.network_events()), []);
}
