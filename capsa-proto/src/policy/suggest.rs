//! [`suggest`]: the smallest policy for what was seen.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};

use super::target::IpNetwork;
use super::{AddressClass, NetworkPolicy, PolicyDestination};

/// The smallest policy that allows these destinations: one rule for each name or address with its port, in
/// the order of the alphabet. No wildcard is guessed.
///
/// A name that was only looked up is left out. A name with a private address needs two rules, one of
/// them for the address.
pub fn suggest(seen: impl IntoIterator<Item = PolicyDestination>) -> NetworkPolicy {
    let mut targets: BTreeSet<String> = BTreeSet::new();
    for destination in seen {
        match destination {
            PolicyDestination::Query { .. } => {}
            PolicyDestination::Resolved { protocol, name, address, port } => {
                if AddressClass::of(address) != AddressClass::Public {
                    targets.insert(address_target(protocol.prefix(), address, port));
                }
                let name = PolicyDestination::Name { protocol, name, port };
                targets.insert(name.to_string());
            }
            PolicyDestination::Address { protocol, address, port } => {
                targets.insert(address_target(protocol.prefix(), address, port));
            }
            other => {
                targets.insert(other.to_string());
            }
        }
    }
    targets.into_iter().fold(NetworkPolicy::new(), NetworkPolicy::allow)
}

fn address_target(prefix: &str, address: core::net::IpAddr, port: u16) -> String {
    let network = IpNetwork::host(address);
    match port {
        0 => alloc::format!("{prefix}{network}"),
        port => alloc::format!("{prefix}{network}:{port}"),
    }
}
