//! The DHCP server of a network (RFC 2131): the guest's address is a constant, so it keeps no leases.
//!
//! It answers the guest's own hardware address. A request for another address, e.g. of an image that was
//! on another network, gets a NAK, so that the client starts again at once.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use crate::wire::ethernet::MacAddress;
use crate::wire::{ParseError, bytes_at};

/// The server's port.
pub(crate) const SERVER_PORT: u16 = 67;
/// The client's port.
pub(crate) const CLIENT_PORT: u16 = 68;

/// The shortest message that every client accepts (RFC 1542, 2.1).
const MESSAGE_MIN: usize = 300;

/// Bytes before the options: the header of BOOTP and the magic cookie.
const HEADER_LEN: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// A lease: 1 day.
const LEASE: u32 = 24 * 60 * 60;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

mod option {
    pub(super) const PAD: u8 = 0;
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const MTU: u8 = 26;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const RENEWAL_TIME: u8 = 58;
    pub(super) const REBINDING_TIME: u8 = 59;
    pub(super) const END: u8 = 255;
}

/// What the server hands out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DhcpServer {
    /// The guest's hardware address.
    pub(crate) guest_mac: MacAddress,
    /// The guest's address.
    pub(crate) guest: Ipv4Addr,
    /// The length of the network prefix.
    pub(crate) prefix: u8,
    /// The gateway, which is also the server.
    pub(crate) gateway: Ipv4Addr,
    /// The name server.
    pub(crate) dns: Ipv4Addr,
    /// The MTU of the link.
    pub(crate) mtu: u16,
}

/// An answer of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DhcpAnswer {
    /// Where to send it: the client has an address, or does not have one yet.
    pub(crate) to: Ipv4Addr,
    /// The UDP payload.
    pub(crate) message: Vec<u8>,
}

/// The parts of a client's message that matter here.
#[derive(Debug, Clone, Copy)]
struct DhcpRequest {
    transaction: [u8; 4],
    flags: [u8; 2],
    /// The address that the client uses.
    client: Ipv4Addr,
    hardware: [u8; 16],
    kind: u8,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl DhcpRequest {
    fn parse(message: &[u8], guest: MacAddress) -> Result<Self, ParseError> {
        let [operation, hardware_type, hardware_len, _] = bytes_at(message, 0)?;
        // A boot request from Ethernet.
        if [operation, hardware_type, hardware_len] != [1, 1, 6] {
            return Err(ParseError::Unsupported);
        }
        if bytes_at::<4>(message, HEADER_LEN - 4)? != COOKIE {
            return Err(ParseError::Unsupported);
        }
        let hardware = bytes_at::<16>(message, 28)?;
        if hardware[..6] != guest.0 {
            return Err(ParseError::Unsupported);
        }
        let mut request = Self {
            transaction: bytes_at(message, 4)?,
            flags: bytes_at(message, 10)?,
            client: bytes_at::<4>(message, 12)?.into(),
            hardware,
            kind: 0,
            requested: None,
            server: None,
        };
        let mut options = &message[HEADER_LEN..];
        loop {
            options = match *options {
                [] | [option::END, ..] => break,
                [option::PAD, ref rest @ ..] => rest,
                [kind, len, ref rest @ ..] => {
                    let (value, rest) =
                        rest.split_at_checked(usize::from(len)).ok_or(ParseError::Truncated)?;
                    let address = || value.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes));
                    match kind {
                        option::MESSAGE_TYPE => {
                            request.kind = *value.first().ok_or(ParseError::Malformed)?;
                        }
                        option::REQUESTED_ADDRESS => request.requested = address(),
                        option::SERVER => request.server = address(),
                        _ => {}
                    }
                    rest
                }
                [_] => return Err(ParseError::Truncated),
            };
        }
        Ok(request)
    }
}

impl DhcpServer {
    /// Answers a message of a client, the payload of a datagram to [`SERVER_PORT`]. `None` for messages
    /// that have no answer.
    ///
    /// # Errors
    ///
    /// See [`ParseError`].
    pub(crate) fn answer(&self, message: &[u8]) -> Result<Option<DhcpAnswer>, ParseError> {
        let request = DhcpRequest::parse(message, self.guest_mac)?;
        let is_for_another = request.server.is_some_and(|server| server != self.gateway);
        let wanted = request.requested.unwrap_or(request.client);
        let kind = match request.kind {
            DISCOVER => OFFER,
            REQUEST if is_for_another => return Ok(None),
            REQUEST if wanted == self.guest => ACK,
            REQUEST => NAK,
            INFORM => ACK,
            _ => return Ok(None),
        };
        let has_address = request.client == self.guest && kind != NAK;
        let to = if has_address { self.guest } else { Ipv4Addr::BROADCAST };
        Ok(Some(DhcpAnswer { to, message: self.message(&request, kind) }))
    }

    fn message(&self, request: &DhcpRequest, kind: u8) -> Vec<u8> {
        let mut message = Vec::with_capacity(MESSAGE_MIN);
        message.extend_from_slice(&[2, 1, 6, 0]);
        message.extend_from_slice(&request.transaction);
        message.extend_from_slice(&[0, 0]);
        message.extend_from_slice(&request.flags);
        let given = if matches!(kind, OFFER | ACK) && request.kind != INFORM {
            self.guest
        } else {
            Ipv4Addr::UNSPECIFIED
        };
        let client = if kind == ACK { request.client } else { Ipv4Addr::UNSPECIFIED };
        for address in [client, given, self.gateway, Ipv4Addr::UNSPECIFIED] {
            message.extend_from_slice(&address.octets());
        }
        message.extend_from_slice(&request.hardware);
        // The names of a server and of a boot file.
        message.resize(HEADER_LEN - 4, 0);
        message.extend_from_slice(&COOKIE);
        let mut put = |kind: u8, value: &[u8]| {
            message.extend_from_slice(&[kind, value.len() as u8]);
            message.extend_from_slice(value);
        };
        put(option::MESSAGE_TYPE, &[kind]);
        put(option::SERVER, &self.gateway.octets());
        if kind != NAK {
            let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
            put(option::SUBNET_MASK, &mask.to_be_bytes());
            put(option::ROUTER, &self.gateway.octets());
            put(option::DNS, &self.dns.octets());
            put(option::MTU, &self.mtu.to_be_bytes());
            if request.kind != INFORM {
                put(option::LEASE_TIME, &LEASE.to_be_bytes());
                put(option::RENEWAL_TIME, &(LEASE / 2).to_be_bytes());
                put(option::REBINDING_TIME, &(LEASE / 8 * 7).to_be_bytes());
            }
        }
        message.push(option::END);
        message.resize(message.len().max(MESSAGE_MIN), 0);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const SERVER: DhcpServer = DhcpServer {
        guest_mac: MAC,
        guest: Ipv4Addr::new(10, 0, 2, 15),
        prefix: 24,
        gateway: Ipv4Addr::new(10, 0, 2, 2),
        dns: Ipv4Addr::new(10, 0, 2, 3),
        mtu: 1500,
    };

    fn request(kind: u8, client: Ipv4Addr, options: &[(u8, Ipv4Addr)]) -> Vec<u8> {
        let mut message = vec![0; HEADER_LEN];
        message[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
        message[12..16].copy_from_slice(&client.octets());
        message[28..34].copy_from_slice(&MAC.0);
        message[236..240].copy_from_slice(&COOKIE);
        message.extend_from_slice(&[option::PAD, option::MESSAGE_TYPE, 1, kind]);
        for (kind, address) in options {
            message.extend_from_slice(&[*kind, 4]);
            message.extend_from_slice(&address.octets());
        }
        message.push(option::END);
        message
    }

    fn option_of(message: &[u8], kind: u8) -> Option<&[u8]> {
        let mut options = &message[HEADER_LEN..];
        while let [found, len, rest @ ..] = options
            && *found != option::END
        {
            let (value, rest) = rest.split_at(usize::from(*len));
            if *found == kind {
                return Some(value);
            }
            options = rest;
        }
        None
    }

    /// The kind of the answer, where it goes, and the address that it gives.
    fn answer(message: &[u8]) -> Option<(u8, Ipv4Addr, Ipv4Addr)> {
        let answer = SERVER.answer(message).unwrap()?;
        let given = Ipv4Addr::from(*answer.message[16..].first_chunk::<4>().unwrap());
        Some((option_of(&answer.message, option::MESSAGE_TYPE).unwrap()[0], answer.to, given))
    }

    #[test]
    fn discover_then_request_gives_the_address() {
        let (none, all) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        assert_eq!(answer(&request(DISCOVER, none, &[])), Some((OFFER, all, SERVER.guest)));
        let options = [(option::REQUESTED_ADDRESS, SERVER.guest), (option::SERVER, SERVER.gateway)];
        let selecting = request(REQUEST, none, &options);
        assert_eq!(answer(&selecting), Some((ACK, all, SERVER.guest)));
        let message = SERVER.answer(&selecting).unwrap().unwrap().message;
        assert_eq!(message.len(), MESSAGE_MIN);
        assert_eq!(option_of(&message, option::SUBNET_MASK), Some(&[255, 255, 255, 0][..]));
        assert_eq!(option_of(&message, option::ROUTER), Some(&[10, 0, 2, 2][..]));
        assert_eq!(option_of(&message, option::DNS), Some(&[10, 0, 2, 3][..]));
        assert_eq!(option_of(&message, option::MTU), Some(&[5, 220][..]));
        assert_eq!(&message[4..8], &[1, 2, 3, 4]);
    }

    #[test]
    fn request_kinds_have_their_answers() {
        let (none, all) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        let other = Ipv4Addr::new(192, 168, 1, 7);
        // Renewing: the client has the address.
        let renew = request(REQUEST, SERVER.guest, &[]);
        assert_eq!(answer(&renew), Some((ACK, SERVER.guest, SERVER.guest)));
        // Rebooting with an address of another network.
        let reboot = request(REQUEST, none, &[(option::REQUESTED_ADDRESS, other)]);
        assert_eq!(answer(&reboot), Some((NAK, all, none)));
        // Selecting another server.
        assert_eq!(answer(&request(REQUEST, none, &[(option::SERVER, other)])), None);
        // An address of its own: only the options.
        let inform = request(INFORM, SERVER.guest, &[]);
        assert_eq!(answer(&inform), Some((ACK, SERVER.guest, none)));
        for kind in [4, 7, 0, 99] {
            assert_eq!(answer(&request(kind, SERVER.guest, &[])), None, "{kind}");
        }
    }

    #[test]
    fn answer_other_hardware_address_is_unsupported() {
        let mut message = request(DISCOVER, Ipv4Addr::UNSPECIFIED, &[]);
        message[33] = 9;
        assert_eq!(SERVER.answer(&message), Err(ParseError::Unsupported));
    }

    proptest! {
        #[test]
        fn answer_any_options_is_bounded(options in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut message = request(DISCOVER, Ipv4Addr::UNSPECIFIED, &[]);
            message.truncate(HEADER_LEN);
            message.extend(options);
            if let Ok(Some(answer)) = SERVER.answer(&message) {
                prop_assert_eq!(answer.message.len(), MESSAGE_MIN);
            }
        }
    }
}
