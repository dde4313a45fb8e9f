//! [`suggest`]: the smallest policy for what was seen.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};

use super::target::{IpNetwork, PolicyProtocol, PolicyTarget, TargetHost};
use super::{AddressClass, NetworkPolicy, PolicyDestination};

/// The smallest policy that allows these destinations: one rule for each name or address with its port, in
/// the order of the alphabet. No wildcard is guessed.
///
/// A name that was only looked up is left out, and so is one that a rule would read as an address, such as
/// `10.0.0.1`. A name with a private address needs two rules, one of them for the address.
pub fn suggest(seen: impl IntoIterator<Item = PolicyDestination>) -> NetworkPolicy {
    let mut targets: BTreeSet<String> = BTreeSet::new();
    for destination in seen {
        match destination {
            PolicyDestination::Query { .. } => {}
            PolicyDestination::Resolved { protocol, name, address, port } => {
                if AddressClass::of(address) != AddressClass::Public {
                    targets.insert(address_target(protocol.prefix(), address, port));
                }
                targets.extend(name_target(protocol, name, port));
            }
            PolicyDestination::Name { protocol, name, port } => {
                targets.extend(name_target(protocol, name, port));
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

/// `None` if the name is no name in a rule.
fn name_target(protocol: PolicyProtocol, name: String, port: u16) -> Option<String> {
    let text = PolicyDestination::Name { protocol, name, port }.to_string();
    let is_address = matches!(text.parse(), Ok(PolicyTarget { host: TargetHost::Network(_), .. }));
    (!is_address).then_some(text)
}

fn address_target(prefix: &str, address: core::net::IpAddr, port: u16) -> String {
    let network = IpNetwork::host(address);
    match port {
        0 => alloc::format!("{prefix}{network}"),
        port => alloc::format!("{prefix}{network}:{port}"),
    }
}
