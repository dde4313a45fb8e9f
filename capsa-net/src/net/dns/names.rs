//! Names of the guest's network itself, which no resolver is asked for.
//!
//! `host`, `gateway`, `guest` and `dns` in the domain `capsa.internal`, the names of services, and
//! `localhost`; the names of the network's own addresses. Addresses that the guest may not reach have no
//! name.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{KnownName, OWN_TTL};
use crate::net::Net;
use crate::wire::dns::{DnsName, DnsQuestion, DnsRecord, record_type};

/// The domain of the network.
const DOMAIN: &str = "capsa.internal";

impl Net {
    /// What is known about a name of the network. `None` for the name of another network.
    pub(super) fn own_name(&self, question: &DnsQuestion) -> Option<KnownName> {
        let name = question.name.to_text()?;
        let is_address = [record_type::A, record_type::AAAA].contains(&question.record_type);
        let no_name = KnownName::NoName(Vec::new());
        if let Some(addresses) = self.own_addresses(&name) {
            return Some(match is_address {
                true => KnownName::Addresses(addresses),
                false => KnownName::Records(Vec::new()),
            });
        }
        if name == DOMAIN || name.strip_suffix(DOMAIN).is_some_and(|rest| rest.ends_with('.')) {
            // A domain exists if a name in it does.
            let suffix = format!(".{name}");
            let is_domain = name == DOMAIN
                || self.services.names().any(|(service, _)| service.ends_with(&suffix));
            return Some(if is_domain { KnownName::Records(Vec::new()) } else { no_name });
        }
        if question.record_type == record_type::PTR {
            let address = reverse(&name)?;
            let pooled = self.names.name(address).map(|(_, name)| name.to_string());
            if let Some(own) = self.own_reverse(address).or(pooled) {
                let target = DnsName::from_text(&own)?;
                let record = DnsRecord::pointer(question.name.clone(), &target, OWN_TTL);
                return Some(KnownName::Records(vec![record]));
            }
            if self.check_remote(address).is_err() {
                return Some(no_name);
            }
        }
        None
    }

    fn own_addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        if let Some(service) = self.services.address(name) {
            return Some(vec![service.into()]);
        }
        if name == "localhost" || name.ends_with(".localhost") {
            return Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let host = name.strip_suffix(DOMAIN)?.strip_suffix('.')?;
        let address = match host {
            "host" | "gateway" => self.config.gateway,
            "guest" => self.config.guest,
            "dns" => self.config.dns,
            _ => return None,
        };
        Some(vec![address.into()])
    }

    fn own_reverse(&self, address: IpAddr) -> Option<String> {
        let config = &self.config;
        let mut own = vec![
            (IpAddr::from(config.gateway), "gateway"),
            (config.guest.into(), "guest"),
            (config.dns.into(), "dns"),
        ];
        if let Some(ipv6) = config.ipv6 {
            own.extend([(ipv6.gateway.into(), "gateway"), (ipv6.dns.into(), "dns")]);
        }
        if let Some((_, host)) = own.iter().find(|(own, _)| *own == address) {
            return Some(format!("{host}.{DOMAIN}"));
        }
        let service = self.services.names().find(|(_, own)| IpAddr::from(*own) == address);
        service.map(|(name, _)| name.to_string())
    }
}

/// The address that a name of the reverse tree belongs to (RFC 1035, 3.5; RFC 3596, 2.5).
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = rest.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts.next().is_none().then_some(octets.into());
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut parts = rest.split('.');
    let mut bits = 0u128;
    for shift in 0..32 {
        let [digit] = parts.next()?.as_bytes() else { return None };
        let digit = char::from(*digit).to_digit(16)?;
        bits |= u128::from(digit) << (4 * shift);
    }
    parts.next().is_none().then_some(Ipv6Addr::from_bits(bits).into())
}
