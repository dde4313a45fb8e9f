//! [`PolicyVerdict`]: whether a policy allows something, by which rule, and why.

use alloc::string::String;
use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use serde::{Serialize, Serializer};
use thiserror::Error;

use super::target::{self, PolicyProtocol, TargetError};

/// Whether a policy allows something, by which rule, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PolicyVerdict {
    /// Whether it is allowed.
    pub is_allowed: bool,
    /// The rule that decided, as it is written in the policy.
    pub rule: Option<String>,
    /// Why.
    pub reason: VerdictReason,
}

impl PolicyVerdict {
    /// A verdict that no rule decides.
    pub const fn without_rule(is_allowed: bool, reason: VerdictReason) -> Self {
        Self { is_allowed, rule: None, reason }
    }
}

/// Why a flow or a query is allowed or refused. The names are stable: they are in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum VerdictReason {
    /// A rule allows it.
    Allowed,
    /// It belongs to the guest's network itself: its name server, its services.
    OwnNetwork,
    /// A rule denies it.
    Denied,
    /// No rule allows the name or the address.
    NoRule,
    /// A rule allows the name or the address, on another port or with another protocol.
    Port,
    /// The address is special: link-local, a metadata service, reserved.
    SpecialAddress,
    /// The address is private, and no rule allows it.
    PrivateAddress,
    /// The address is the host's.
    HostAddress,
    /// The address stands for no name: it was not handed out, or its time is over.
    UnknownAddress,
    /// The name does not exist, or could not be resolved.
    Unresolved,
    /// Records of this type are not answered under a policy.
    RecordType,
    /// A protocol that a policy never carries: DNS over TLS or QUIC, multicast DNS, LLMNR, NetBIOS.
    Protocol,
    /// The first bytes are not those of a TLS handshake.
    NotTls,
    /// The TLS handshake names no server.
    NoServerName,
    /// The TLS handshake names another server.
    ServerName,
    /// The first bytes are not an HTTP request in an unambiguous form.
    NotHttp,
    /// The HTTP request is for another host.
    HttpHost,
    /// The first bytes did not arrive in time, or are too many.
    Incomplete,
    /// The limit of flows is reached.
    FlowLimit,
    /// The limit of new flows in a second is reached.
    FlowRate,
    /// The limit of bytes is reached.
    TotalBytes,
    /// The limit of DNS queries in a second is reached.
    QueryRate,
    /// The limit of new names under wildcards is reached.
    NameBudget,
    /// The policy was replaced, and the new one does not allow it.
    PolicyChanged,
}

impl VerdictReason {
    /// Whether it is a reason to allow.
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed | Self::OwnNetwork)
    }

    /// For a line of output: what is wrong or right, in a few words.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Allowed => "a rule allows it",
            Self::OwnNetwork => "it belongs to the guest's own network",
            Self::Denied => "a rule denies it",
            Self::NoRule => "no rule allows it",
            Self::Port => "the rule allows other ports or protocols only",
            Self::SpecialAddress => "the address is special (link-local, metadata, reserved)",
            Self::PrivateAddress => "the address is private, and no rule allows it",
            Self::HostAddress => "the address belongs to the host",
            Self::UnknownAddress => "the address stands for no name",
            Self::Unresolved => "the name could not be resolved",
            Self::RecordType => "records of this type are not answered",
            Self::Protocol => "this protocol is never carried under a policy",
            Self::NotTls => "the first bytes are not a TLS handshake",
            Self::NoServerName => "the TLS handshake names no server",
            Self::ServerName => "the TLS handshake names another server",
            Self::NotHttp => "the first bytes are not a clear HTTP request",
            Self::HttpHost => "the HTTP request is for another host",
            Self::Incomplete => "the first bytes are too many or too late",
            Self::FlowLimit => "the limit of flows is reached",
            Self::FlowRate => "the limit of new flows per second is reached",
            Self::TotalBytes => "the limit of bytes is reached",
            Self::QueryRate => "the limit of DNS queries per second is reached",
            Self::NameBudget => "the limit of new names under wildcards is reached",
            Self::PolicyChanged => "the policy was replaced",
        }
    }
}

impl fmt::Display for VerdictReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

/// What [`PolicyRules::explain`](super::PolicyRules::explain) explains: `pypi.org:443`,
/// `udp://9.9.9.9:53`, `10.1.2.3:22`, `icmp://1.1.1.1`, `host:8080`, `dns:pypi.org`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyDestination {
    /// A connection, a datagram or an echo request to a name. The port of an echo request is 0.
    Name {
        /// TCP, UDP or ICMP.
        protocol: PolicyProtocol,
        /// In lower case, without a trailing dot.
        name: String,
        /// The port.
        port: u16,
    },
    /// To an address.
    Address {
        /// TCP, UDP or ICMP.
        protocol: PolicyProtocol,
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// To an address that the host's resolver gave for a name: `pypi.org=192.168.1.1:443`.
    Resolved {
        /// TCP, UDP or ICMP.
        protocol: PolicyProtocol,
        /// In lower case, without a trailing dot.
        name: String,
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// To a port of the host's loopback.
    Host {
        /// TCP or UDP.
        protocol: PolicyProtocol,
        /// The port.
        port: u16,
    },
    /// A DNS query for the addresses of a name.
    Query {
        /// In lower case, without a trailing dot.
        name: String,
    },
}

/// Why a text is no [`PolicyDestination`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("invalid destination {text:?}: {error}")]
#[non_exhaustive]
pub struct DestinationError {
    /// The text.
    pub text: String,
    /// What is wrong.
    pub error: TargetError,
}

impl FromStr for PolicyDestination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        target::parse_destination(text)
            .map_err(|error| DestinationError { text: text.into(), error })
    }
}

impl fmt::Display for PolicyDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = match self {
            Self::Name { protocol, port, .. }
            | Self::Address { protocol, port, .. }
            | Self::Resolved { protocol, port, .. }
            | Self::Host { protocol, port } => (*protocol, *port),
            Self::Query { name } => return write!(f, "dns:{name}"),
        };
        f.write_str(protocol.prefix())?;
        match self {
            Self::Name { name, .. } => f.write_str(&target::name_text(name))?,
            Self::Address { address: IpAddr::V6(v6), .. } => write!(f, "[{v6}]")?,
            Self::Address { address, .. } => write!(f, "{address}")?,
            Self::Resolved { name, address: IpAddr::V6(v6), .. } => write!(f, "{name}=[{v6}]")?,
            Self::Resolved { name, address, .. } => write!(f, "{name}={address}")?,
            Self::Host { .. } => f.write_str("host")?,
            Self::Query { .. } => {}
        }
        if protocol == PolicyProtocol::Icmp { Ok(()) } else { write!(f, ":{port}") }
    }
}

impl Serialize for PolicyDestination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
