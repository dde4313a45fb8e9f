//! DNS messages (RFC 1035) with EDNS (RFC 6891) and extended errors (RFC 8914).
//!
//! [`DnsQuery`] is what a name server receives and [`DnsResponse`] what it answers; a resolver writes the
//! first with [`write_query`] and reads the second with [`parse_answer`]. The parser is strict: a message
//! has exactly one question, of class IN, and no bytes after its last record. A compressed name points
//! only backwards, and at most 16 times. It does not know which names exist.

mod name;
mod response;

use alloc::vec::Vec;

use super::{ParseError, bytes_at, u16_at};

pub use name::DnsName;
pub use response::{DnsRecord, DnsResponse, ExtendedError, UpstreamAnswer, parse_answer};

/// The length of the header.
pub const HEADER_LEN: usize = 12;

/// The port of name servers.
pub const PORT: u16 = 53;

/// The largest message over UDP: fits the smallest MTU of IPv6 with its headers.
pub const UDP_MAX: u16 = 1232;

/// The largest message over UDP of a client without EDNS.
const UDP_MAX_PLAIN: u16 = 512;

/// Records after the question of a query, at most: one is in use.
const ADDITIONAL_MAX: u16 = 4;

const CLASS_IN: u16 = 1;

/// Record types that this crate uses.
pub mod record_type {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// A name server.
    pub const NS: u16 = 2;
    /// Another name of the owner.
    pub const CNAME: u16 = 5;
    /// The start of a zone.
    pub const SOA: u16 = 6;
    /// The name of an address.
    pub const PTR: u16 = 12;
    /// A mail server.
    pub const MX: u16 = 15;
    /// Text.
    pub const TXT: u16 = 16;
    /// An AFS database server.
    pub const AFSDB: u16 = 18;
    /// A router.
    pub const RT: u16 = 21;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// The server of a service.
    pub const SRV: u16 = 33;
    /// A key exchanger.
    pub const KX: u16 = 36;
    /// Another name of the names below the owner.
    pub const DNAME: u16 = 39;
    /// The pseudo-record of EDNS.
    pub const OPT: u16 = 41;
    /// The end points of a service.
    pub const SVCB: u16 = 64;
    /// The end points of a web server.
    pub const HTTPS: u16 = 65;
    /// The types from this one on belong to the protocol: transfers, signatures, `ANY`.
    pub const FIRST_META: u16 = 128;
    /// The last of them.
    pub const LAST_META: u16 = 255;
}

mod flag {
    pub(super) const RESPONSE: u16 = 1 << 15;
    pub(super) const AUTHORITATIVE: u16 = 1 << 10;
    pub(super) const TRUNCATED: u16 = 1 << 9;
    pub(super) const RECURSION_DESIRED: u16 = 1 << 8;
    pub(super) const RECURSION_AVAILABLE: u16 = 1 << 7;
    pub(super) const CHECKING_DISABLED: u16 = 1 << 4;
}

/// The result of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseCode {
    /// The name exists. It may have no record of the type.
    NoError = 0,
    /// The query is malformed.
    FormatError = 1,
    /// The server could not find out.
    ServerFailure = 2,
    /// There is no such name.
    NameError = 3,
    /// The server does not support this kind of query.
    NotImplemented = 4,
    /// The server does not answer this query.
    Refused = 5,
    /// The server does not support this version of EDNS.
    BadVersion = 16,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsQuestion {
    /// The name, as it was written.
    pub name: DnsName,
    /// The record type.
    pub record_type: u16,
}

impl DnsQuestion {
    fn parse(message: &[u8]) -> Result<(Self, u16, usize), ParseError> {
        let (name, at) = DnsName::parse(message, HEADER_LEN)?;
        let (record_type, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
        Ok((Self { name, record_type }, class, at + 4))
    }

    fn write(&self, message: &mut Vec<u8>) {
        message.extend_from_slice(self.name.as_bytes());
        message.extend_from_slice(&self.record_type.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
    }
}

/// A query with one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsQuery {
    /// Its number, for the answer.
    pub id: u16,
    /// The flags that an answer repeats.
    flags: u16,
    /// The question.
    pub question: DnsQuestion,
    /// With EDNS: the largest UDP message that the client takes.
    edns_size: Option<u16>,
}

/// Why a message is not a query that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidQuery {
    /// It is not a query: it has no header, or it is an answer. An answer to an answer could start a loop.
    NoQuery,
    /// This is the answer to it.
    Answer(Vec<u8>),
}

impl DnsQuery {
    /// Parses a message of a client.
    ///
    /// # Errors
    ///
    /// See [`InvalidQuery`].
    pub fn parse(message: &[u8]) -> Result<Self, InvalidQuery> {
        let (Ok(id), Ok(flags)) = (u16_at(message, 0), u16_at(message, 2)) else {
            return Err(InvalidQuery::NoQuery);
        };
        if message.len() < HEADER_LEN || flags & flag::RESPONSE != 0 {
            return Err(InvalidQuery::NoQuery);
        }
        let opcode = flags & 0x7800;
        if opcode != 0 {
            let flags = opcode | flags & flag::RECURSION_DESIRED;
            return Err(invalid(id, flags, ResponseCode::NotImplemented));
        }
        let flags = flags & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED | flag::TRUNCATED);
        Self::parse_body(id, flags, message).map_err(|code| {
            invalid(id, flags & !flag::TRUNCATED, code.unwrap_or(ResponseCode::FormatError))
        })
    }

    /// The error is the code of the answer, or `None` for a malformed message.
    fn parse_body(id: u16, flags: u16, message: &[u8]) -> Result<Self, Option<ResponseCode>> {
        let count = |at| u16_at(message, at).map_err(drop);
        let counts = [4, 6, 8, 10].map(|at| count(at).unwrap_or(u16::MAX));
        let [1, 0, 0, additional @ ..=ADDITIONAL_MAX] = counts else { return Err(None) };
        if flags & flag::TRUNCATED != 0 {
            return Err(None);
        }
        let (question, class, mut at) = DnsQuestion::parse(message).map_err(|_| None)?;
        if class != CLASS_IN {
            return Err(Some(ResponseCode::NotImplemented));
        }
        let mut edns = None;
        for _ in 0..additional {
            let record = RawRecord::parse(message, at).map_err(|_| None)?;
            at = record.data.end;
            if record.record_type == record_type::OPT {
                // A second one is an error (RFC 6891, 6.1.1).
                if !record.owner.is_root() || edns.is_some() {
                    return Err(None);
                }
                check_options(&message[record.data]).map_err(|_| None)?;
                edns = Some((record.class, (record.ttl >> 16) as u8));
            }
        }
        if at != message.len() {
            return Err(None);
        }
        let edns_size = match edns {
            Some((size, 0)) => Some(size),
            Some(_) => return Err(Some(ResponseCode::BadVersion)),
            None => None,
        };
        Ok(Self { id, flags, question, edns_size })
    }

    /// The largest UDP message that the client takes.
    pub fn udp_limit(&self) -> u16 {
        self.edns_size.unwrap_or(0).clamp(UDP_MAX_PLAIN, UDP_MAX)
    }
}

/// An answer to a query whose question is not known.
fn invalid(id: u16, flags: u16, code: ResponseCode) -> InvalidQuery {
    let is_version = code == ResponseCode::BadVersion;
    let flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | flags | code as u16 & 0xf;
    let mut message = Vec::new();
    write_header(id, flags, [0, 0, 0, u16::from(is_version)], &mut message);
    if is_version {
        response::write_opt(code, None, &mut message);
    }
    InvalidQuery::Answer(message)
}

/// A query for an upstream server.
pub fn write_query(id: u16, question: &DnsQuestion) -> Vec<u8> {
    let mut message = Vec::new();
    write_header(id, flag::RECURSION_DESIRED, [1, 0, 0, 1], &mut message);
    question.write(&mut message);
    response::write_opt(ResponseCode::NoError, None, &mut message);
    message
}

/// Whether a message is the answer to the query with this number and question; `Some(true)` when it is
/// incomplete, and has to be asked for over TCP.
pub fn answers_query(message: &[u8], id: u16, question: &DnsQuestion) -> Option<bool> {
    let flags = u16_at(message, 2).ok()?;
    if u16_at(message, 0) != Ok(id) || flags & flag::RESPONSE == 0 || flags & 0x7800 != 0 {
        return None;
    }
    let (echoed, class, _) = DnsQuestion::parse(message).ok()?;
    let is_same = u16_at(message, 4) == Ok(1)
        && class == CLASS_IN
        && echoed.record_type == question.record_type
        && echoed.name.is_same(&question.name);
    is_same.then_some(flags & flag::TRUNCATED != 0)
}

fn write_header(id: u16, flags: u16, counts: [u16; 4], message: &mut Vec<u8>) {
    for word in [id, flags].into_iter().chain(counts) {
        message.extend_from_slice(&word.to_be_bytes());
    }
}

/// A record, with its data where it is in the message.
struct RawRecord {
    owner: DnsName,
    record_type: u16,
    class: u16,
    ttl: u32,
    data: core::ops::Range<usize>,
}

impl RawRecord {
    fn parse(message: &[u8], at: usize) -> Result<Self, ParseError> {
        let (owner, at) = DnsName::parse(message, at)?;
        let start = at + 10;
        let end = start + usize::from(u16_at(message, at + 8)?);
        if end > message.len() {
            return Err(ParseError::Truncated);
        }
        Ok(Self {
            owner,
            record_type: u16_at(message, at)?,
            class: u16_at(message, at + 2)?,
            ttl: u32::from_be_bytes(bytes_at(message, at + 4)?),
            data: start..end,
        })
    }
}

/// Checks that the options of EDNS fill their record.
fn check_options(mut data: &[u8]) -> Result<(), ParseError> {
    while !data.is_empty() {
        let end = 4 + usize::from(u16_at(data, 2)?);
        data = data.get(end..).ok_or(ParseError::Truncated)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
