//! [`PolicyTarget`]: the grammar of rules.
//!
//! ```text
//! target   = [ "tcp://" | "udp://" ] host ":" port | "icmp://" host
//! host     = name | "*." name | "**." name | address | network | "internet" | "private" | "host"
//! network  = address "/" length, an IPv6 one in brackets
//! port     = 1 to 65535 | "*"
//! ```

use alloc::string::{String, ToString};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use serde::{Serialize, Serializer};
use thiserror::Error;

use super::address::{is_within_v4, is_within_v6};
use super::punycode;
use super::verdict::PolicyDestination;

/// A name may have at most this many bytes, without the trailing dot.
const NAME_MAX: usize = 253;
/// A label of a name may have at most this many bytes.
const LABEL_MAX: usize = 63;

/// What a rule allows or denies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTarget {
    /// TCP, UDP, or echo requests.
    pub protocol: PolicyProtocol,
    /// The hosts.
    pub host: TargetHost,
    /// The ports; any for echo requests.
    pub port: TargetPort,
}

/// The protocol of a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests.
    Icmp,
}

impl PolicyProtocol {
    /// As before the host in a rule: nothing for TCP.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Tcp => "",
            Self::Udp => "udp://",
            Self::Icmp => "icmp://",
        }
    }
}

/// The hosts of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetHost {
    /// A name, or names.
    Name(NamePattern),
    /// Addresses.
    Network(IpNetwork),
    /// Every public address, and every name whose addresses are public.
    Internet,
    /// Every private address, and every name whose addresses are private.
    Private,
    /// The host's loopback.
    Host,
}

/// The names of a rule, in lower case and without a trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamePattern {
    /// `example.org`: this name only.
    Exact(String),
    /// `*.example.org`: one label more.
    OneLabel(String),
    /// `**.example.org`: one label more, or several.
    AnyDepth(String),
}

/// An address with the length of a prefix. The bits after the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpNetwork {
    address: IpAddr,
    prefix: u8,
}

/// The ports of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetPort {
    /// One port.
    One(u16),
    /// Every port: `*`.
    Any,
}

/// Why a text is no target.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TargetError {
    /// It is empty.
    #[error("the host is missing")]
    NoHost,
    /// It has no port.
    #[error("the port is missing")]
    NoPort,
    /// The port is not a number from 1 to 65535, and not `*`.
    #[error("invalid port {0:?}")]
    Port(String),
    /// An echo request has no port.
    #[error("ICMP has no port")]
    IcmpPort,
    /// The protocol is not known.
    #[error("unknown protocol {0:?}")]
    Protocol(String),
    /// The name is not one of a host.
    #[error("invalid name {0:?}")]
    Name(String),
    /// The name is not in ASCII.
    #[error("the name {name:?} is not ASCII")]
    NotAscii {
        /// The name.
        name: String,
    },
    /// The wildcard covers too much: `*`, `*.com`.
    #[error("the wildcard {0:?} covers too many names")]
    Wildcard(String),
    /// A wildcard is not the first label.
    #[error("a wildcard is possible as the first label only, not in {0:?}")]
    WildcardPlace(String),
    /// It looks like an address, and is none.
    #[error("invalid address {0:?}")]
    Address(String),
    /// Bits after the prefix are set.
    #[error("{address} has bits after the prefix of {prefix}")]
    HostBits {
        /// The address.
        address: IpAddr,
        /// The length of the prefix.
        prefix: u8,
    },
}

impl TargetError {
    /// What to write in place.
    pub fn remedy(&self) -> String {
        match self {
            Self::NoHost => "write a name, an address, internet, private or host".into(),
            Self::NoPort => {
                "add a port, as in \"example.org:443\"; :* stands for every port".into()
            }
            Self::Port(_) => "use a number from 1 to 65535, or *".into(),
            Self::IcmpPort => "remove the port".into(),
            Self::Protocol(_) => "use tcp://, udp:// or icmp://; without one it is TCP".into(),
            Self::Name(_) => {
                "use letters, digits, - and _ in labels of at most 63 bytes, 253 bytes in all"
                    .into()
            }
            Self::NotAscii { name } => match punycode::to_ascii(name) {
                Some(ascii) => alloc::format!("write {ascii}, the form of the name in the DNS"),
                None => "write the form of the name in the DNS, which starts with xn--".into(),
            },
            Self::Wildcard(_) => "name at least two labels after it, as in *.example.org; \
                 internet stands for every public host"
                .into(),
            Self::WildcardPlace(_) => "write *.example.org (one label) or **.example.org".into(),
            Self::Address(_) => {
                "write 192.0.2.1, 192.0.2.0/24, [2001:db8::1] or [2001:db8::/32]".into()
            }
            Self::HostBits { address, prefix } => {
                alloc::format!("write {}", IpNetwork::masked(*address, *prefix))
            }
        }
    }
}

impl IpNetwork {
    /// One address.
    pub const fn host(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }

    /// The network of an address: the bits after the prefix are cleared.
    pub fn masked(address: IpAddr, prefix: u8) -> Self {
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
        };
        Self { address, prefix }
    }

    /// The first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// The length of the prefix.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it has one address.
    pub const fn is_host(&self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Whether the address is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(v4)) => is_within_v4(v4, network, self.prefix),
            (IpAddr::V6(network), IpAddr::V6(v6)) => is_within_v6(v6, network, self.prefix),
            _ => false,
        }
    }
}

impl IpNetwork {
    /// Whether it contains every address of the other.
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }
}

impl NamePattern {
    /// The name, without the wildcard before it.
    pub fn suffix(&self) -> &str {
        let (Self::Exact(name) | Self::OneLabel(name) | Self::AnyDepth(name)) = self;
        name
    }

    /// Whether a name in lower case matches.
    pub fn matches(&self, name: &str) -> bool {
        let before = |suffix: &str| name.strip_suffix(suffix)?.strip_suffix('.');
        match self {
            Self::Exact(exact) => name == exact,
            Self::OneLabel(suffix) => {
                before(suffix).is_some_and(|rest| !rest.is_empty() && !rest.contains('.'))
            }
            Self::AnyDepth(suffix) => before(suffix).is_some_and(|rest| !rest.is_empty()),
        }
    }

    /// Whether every name of the other matches too.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Exact(name)) => self.matches(name),
            (Self::OneLabel(suffix), Self::OneLabel(other)) => suffix == other,
            (Self::AnyDepth(suffix), Self::OneLabel(other) | Self::AnyDepth(other)) => {
                suffix == other || self.matches(other)
            }
            _ => false,
        }
    }
}

impl TargetPort {
    /// Whether it covers the port.
    pub fn contains(self, port: u16) -> bool {
        self == Self::Any || self == Self::One(port)
    }
}

impl FromStr for PolicyTarget {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (protocol, rest) = split_protocol(text)?;
        let (host, port) = split_port(protocol, rest)?;
        let port = match (protocol, port) {
            (PolicyProtocol::Icmp, _) | (_, Some("*")) => TargetPort::Any,
            (_, Some(port)) => TargetPort::One(parse_port(port)?),
            (_, None) => return Err(TargetError::NoPort),
        };
        let host = match group(host) {
            Some(group) => group,
            None => match parse_network(host)? {
                Some(network) => TargetHost::Network(network),
                None => TargetHost::Name(parse_pattern(host)?),
            },
        };
        Ok(Self { protocol, host, port })
    }
}

/// The word before the name of a query: `dns:pypi.org`.
const QUERY: &str = "dns";

/// Parses the form of [`PolicyDestination`].
pub(super) fn parse_destination(text: &str) -> Result<PolicyDestination, TargetError> {
    if let Some((word, name)) = text.split_once(':')
        && word.eq_ignore_ascii_case(QUERY)
    {
        return Ok(PolicyDestination::Query { name: parse_name(name)? });
    }
    let (protocol, rest) = split_protocol(text)?;
    let (host, port) = split_port(protocol, rest)?;
    let port = match (protocol, port) {
        (PolicyProtocol::Icmp, _) => 0,
        // A guest can send to this port, though no rule can name it.
        (_, Some("0")) => 0,
        (_, Some(port)) => parse_port(port)?,
        (_, None) => return Err(TargetError::NoPort),
    };
    if group(host) == Some(TargetHost::Host) {
        return Ok(PolicyDestination::Host { protocol, port });
    }
    if let Some((name, address)) = host.split_once('=') {
        if parse_network(name)?.is_some() {
            return Err(TargetError::Name(name.into()));
        }
        let (name, address) = (parse_name(name)?, parse_address(address)?);
        return Ok(PolicyDestination::Resolved { protocol, name, address, port });
    }
    Ok(match parse_network(host)? {
        Some(network) if network.is_host() => {
            PolicyDestination::Address { protocol, address: network.address, port }
        }
        Some(_) => return Err(TargetError::Address(host.into())),
        None => PolicyDestination::Name { protocol, name: parse_name(host)?, port },
    })
}

/// A name as rules compare it: in lower case, without a final dot.
fn normal_form(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// What has a word of its own. With a dot after it, the word is a name: `internet.:443`.
fn group(host: &str) -> Option<TargetHost> {
    let groups = [TargetHost::Internet, TargetHost::Private, TargetHost::Host];
    groups.into_iter().find(|group| group.to_string().eq_ignore_ascii_case(host))
}

/// A name as it is printed: with a dot after it if it would be read as a group or a query.
pub(super) fn name_text(name: &str) -> String {
    let dot = if group(name).is_some() || name == QUERY { "." } else { "" };
    alloc::format!("{name}{dot}")
}

fn split_protocol(text: &str) -> Result<(PolicyProtocol, &str), TargetError> {
    match text.split_once("://") {
        None => Ok((PolicyProtocol::Tcp, text)),
        Some(("tcp", rest)) => Ok((PolicyProtocol::Tcp, rest)),
        Some(("udp", rest)) => Ok((PolicyProtocol::Udp, rest)),
        Some(("icmp", rest)) => Ok((PolicyProtocol::Icmp, rest)),
        Some((other, _)) => Err(TargetError::Protocol(other.into())),
    }
}

/// The host and the port. An IPv6 address is in brackets, except in a target of ICMP.
fn split_port(protocol: PolicyProtocol, text: &str) -> Result<(&str, Option<&str>), TargetError> {
    let after_brackets = text.rfind(']').map_or(0, |end| end + 1);
    let is_bare_ipv6 = after_brackets == 0 && text.matches(':').count() > 1;
    let (host, port) = match text[after_brackets..].rfind(':') {
        Some(colon) if !is_bare_ipv6 => {
            let colon = after_brackets + colon;
            (&text[..colon], Some(&text[colon + 1..]))
        }
        _ => (text, None),
    };
    match (protocol, port) {
        _ if host.is_empty() => Err(TargetError::NoHost),
        (PolicyProtocol::Icmp, Some(_)) => Err(TargetError::IcmpPort),
        _ => Ok((host, port)),
    }
}

fn parse_port(text: &str) -> Result<u16, TargetError> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| *port != 0 && is_number);
    port.ok_or_else(|| TargetError::Port(text.into()))
}

/// An address or a network; `None` for what is a name.
fn parse_network(text: &str) -> Result<Option<IpNetwork>, TargetError> {
    let invalid = || TargetError::Address(text.into());
    let unwrapped: String = text.chars().filter(|char| !matches!(char, '[' | ']')).collect();
    let looks_like_address = text.contains([':', '/', '['])
        || text.strip_suffix('.').unwrap_or(text).rsplit('.').next().is_some_and(|label| {
            let is_number = !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit());
            // Programs take these for an address too.
            is_number || label.starts_with("0x") || label.starts_with("0X")
        });
    if !looks_like_address {
        return Ok(None);
    }
    let (address, prefix) = match unwrapped.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (unwrapped.as_str(), None),
    };
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let Some(prefix) = prefix else { return Ok(Some(IpNetwork::host(address))) };
    let max = IpNetwork::host(address).prefix;
    let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= max).ok_or_else(invalid)?;
    let network = IpNetwork::masked(address, prefix);
    match network.address == address {
        true => Ok(Some(network)),
        false => Err(TargetError::HostBits { address, prefix }),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, TargetError> {
    match parse_network(text)? {
        Some(network) if network.is_host() => Ok(network.address),
        _ => Err(TargetError::Address(text.into())),
    }
}

fn parse_pattern(text: &str) -> Result<NamePattern, TargetError> {
    let (make, suffix): (fn(String) -> NamePattern, _) = match text {
        "*" | "**" => return Err(TargetError::Wildcard(text.into())),
        _ => match (text.strip_prefix("**."), text.strip_prefix("*.")) {
            (Some(suffix), _) => (NamePattern::AnyDepth, suffix),
            (None, Some(suffix)) => (NamePattern::OneLabel, suffix),
            (None, None) => (NamePattern::Exact, text),
        },
    };
    if suffix.contains('*') {
        return Err(TargetError::WildcardPlace(text.into()));
    }
    let name = parse_name(suffix)?;
    if suffix != text && !name.contains('.') {
        return Err(TargetError::Wildcard(text.into()));
    }
    Ok(make(name))
}

/// A name in lower case and without a trailing dot.
fn parse_name(text: &str) -> Result<String, TargetError> {
    if !text.is_ascii() {
        return Err(TargetError::NotAscii { name: text.into() });
    }
    let name = normal_form(text);
    let is_label = |label: &str| {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=LABEL_MAX).contains(&label.len())
            && label.bytes().all(is_letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match name.len() <= NAME_MAX && name.split('.').all(is_label) {
        true => Ok(name),
        false => Err(TargetError::Name(text.into())),
    }
}

impl fmt::Display for PolicyTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.protocol.prefix(), self.host)?;
        match (self.protocol, self.port) {
            (PolicyProtocol::Icmp, _) => Ok(()),
            (_, TargetPort::One(port)) => write!(f, ":{port}"),
            (_, TargetPort::Any) => f.write_str(":*"),
        }
    }
}

impl fmt::Display for TargetHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(pattern) => write!(f, "{pattern}"),
            Self::Network(network) => write!(f, "{network}"),
            Self::Internet => f.write_str("internet"),
            Self::Private => f.write_str("private"),
            Self::Host => f.write_str("host"),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(&name_text(name)),
            Self::OneLabel(suffix) => write!(f, "*.{suffix}"),
            Self::AnyDepth(suffix) => write!(f, "**.{suffix}"),
        }
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.is_host() {
            true => self.address.to_string(),
            false => alloc::format!("{}/{}", self.address, self.prefix),
        };
        match self.address {
            IpAddr::V4(_) => f.write_str(&text),
            IpAddr::V6(_) => write!(f, "[{text}]"),
        }
    }
}

impl Serialize for PolicyTarget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
