//! [`ServiceTable`]: the addresses of the services of a network.
//!
//! Each distinct name has an address of its own in the guest's network, from host number 32 on, in the
//! order of the configuration. Services with one name share its address and differ in the port.

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::NetworkConfig;

/// The host number of the first name.
const FIRST: u32 = 32;

/// Names with their addresses, and services by address and port.
#[derive(Debug)]
pub(super) struct ServiceTable {
    by_name: BTreeMap<String, Ipv4Addr>,
    by_address: BTreeMap<(Ipv4Addr, u16), usize>,
}

impl ServiceTable {
    /// A name for which the network has no address left gets none: validation limits the number.
    pub(super) fn new(config: &NetworkConfig) -> Self {
        let hosts = u32::MAX.checked_shr(config.prefix.into()).unwrap_or(0);
        let network = u32::from(config.guest) & !hosts;
        let mut table = Self { by_name: BTreeMap::new(), by_address: BTreeMap::new() };
        for (index, service) in config.services.iter().enumerate() {
            let host = FIRST + table.by_name.len() as u32;
            let address = match table.by_name.get(&service.name) {
                Some(address) => *address,
                // The last one is the broadcast address.
                None if host < hosts => Ipv4Addr::from(network | host),
                None => continue,
            };
            table.by_name.insert(service.name.clone(), address);
            table.by_address.entry((address, service.port)).or_insert(index);
        }
        table
    }

    /// The address of a name in lower case.
    pub(super) fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.by_name.get(name).copied()
    }

    /// The names with their addresses.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, Ipv4Addr)> {
        self.by_name.iter().map(|(name, address)| (name.as_str(), *address))
    }

    /// The index of the service at an address and port.
    pub(super) fn service_at(&self, address: SocketAddr) -> Option<usize> {
        let IpAddr::V4(v4) = address.ip() else { return None };
        self.by_address.get(&(v4, address.port())).copied()
    }

    /// Whether a name of the table has this address. Its other ports are closed.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        let IpAddr::V4(v4) = address else { return false };
        self.by_address.range((v4, 0)..=(v4, u16::MAX)).next().is_some()
    }
}
