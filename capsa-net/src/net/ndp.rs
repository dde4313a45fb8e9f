//! Neighbor discovery and router advertisements: what ARP and DHCP are for IPv4.
//!
//! The network answers for its own addresses only. An answer to a probe for duplicate addresses would
//! take the guest's address away from it. The guest's addresses are not kept: there is one card.

use core::net::IpAddr;
use core::time::Duration;

use capsa_proto::time::Instant;

use super::{GATEWAY_LINK_LOCAL, Ipv6Network, Net, NetAction};
use crate::wire::ParseError;
use crate::wire::ethernet::EtherType;
use crate::wire::ip::IpHeader;
use crate::wire::ndp::{ALL_NODES, NeighborAdvertisement, RouterAdvertisement, Solicitation};

/// The lifetime of the default route, in seconds: the longest possible (RFC 8319).
const ROUTER_LIFETIME: u16 = u16::MAX;
/// The lifetime of the prefix and of the name server, in seconds: 1 day, as of a DHCP lease.
const LIFETIME: u32 = 24 * 60 * 60;
/// After this time the next frame of the guest causes another advertisement. There is no timer, so that
/// an idle guest stays idle; it renews its DHCP lease before the shortest lifetime is over.
const AGAIN: Duration = Duration::from_secs(600);

/// What the guest knows of the router.
#[derive(Debug, Default)]
pub(super) struct RouterState {
    /// The host has a route to the internet over IPv6.
    has_route: bool,
    /// When the guest got the last advertisement. `None`: it has not asked.
    announced_at: Option<Instant>,
    /// An advertisement waits for [`Net::set_ipv6_route`].
    is_due: bool,
}

impl Net {
    /// Whether the host has a route to the internet over IPv6: the answer to
    /// [`NetAction::FindIpv6Route`], which may also come without a question. Without a route, router
    /// advertisements offer no default route, so that programs in the guest use IPv4 at once.
    pub fn set_ipv6_route(&mut self, has_route: bool) {
        let is_news = self.router.has_route != has_route && self.router.announced_at.is_some();
        self.router.has_route = has_route;
        if core::mem::take(&mut self.router.is_due) || is_news {
            self.advertise();
        }
    }

    /// Sends a router advertisement without a question of the guest, e.g. after the link came up.
    pub fn announce_router(&mut self) {
        if self.config.ipv6.is_some() && !self.router.is_due {
            self.router.is_due = true;
            self.actions.push_back(NetAction::FindIpv6Route);
        }
    }

    /// Repeats the advertisement if the last one is old.
    pub(super) fn refresh_router(&mut self, now: Instant) {
        if self.router.announced_at.is_some_and(|at| now >= at + AGAIN) {
            self.announce_router();
            self.router.announced_at = Some(now);
        }
    }

    /// A message of neighbor discovery.
    pub(super) fn solicitation(
        &mut self,
        ipv6: &Ipv6Network,
        header: &IpHeader,
        message: &[u8],
        now: Instant,
    ) -> Result<(), ParseError> {
        let solicitation = Solicitation::parse(header, message)?;
        let IpAddr::V6(source) = header.source else { return Err(ParseError::Unsupported) };
        // A node without an address asks from the unspecified one.
        let to = match source.is_unspecified() {
            true => ALL_NODES,
            false if self.is_guest_address(source) => source,
            false => return Err(ParseError::Unsupported),
        };
        match solicitation {
            Solicitation::Router => {
                self.announce_router();
                self.router.announced_at = Some(now);
            }
            Solicitation::Neighbor { target } if self.is_own_address(target.into()) => {
                let is_router = target != ipv6.dns;
                let mac = self.config.gateway_mac;
                let advertisement = NeighborAdvertisement { target, mac, is_router };
                self.answer(EtherType::Ipv6, |frame| advertisement.write(to, frame));
            }
            Solicitation::Neighbor { .. } => {}
        }
        Ok(())
    }

    fn advertise(&mut self) {
        let Some(ipv6) = self.config.ipv6 else { return };
        let advertisement = RouterAdvertisement {
            source: GATEWAY_LINK_LOCAL,
            mac: self.config.gateway_mac,
            router_lifetime: if self.router.has_route { ROUTER_LIFETIME } else { 0 },
            prefix: ipv6.prefix(),
            dns: ipv6.dns,
            lifetime: LIFETIME,
            mtu: self.config.mtu,
        };
        self.answer(EtherType::Ipv6, |frame| advertisement.write(frame));
    }
}
