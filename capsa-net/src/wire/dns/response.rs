//! Answers: those for a client, and those of an upstream server.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::{
    CLASS_IN, DnsName, DnsQuery, DnsQuestion, HEADER_LEN, RawRecord, ResponseCode, UDP_MAX, flag,
    record_type, write_header,
};
use crate::wire::{ParseError, u16_at};

/// Records of an answer, at most; further ones are left out.
const RECORDS_MAX: usize = 64;
/// Records of an upstream answer that are looked at.
const UPSTREAM_RECORDS_MAX: u16 = 256;
/// Aliases that lead from the asked name to its records, at most.
const ALIASES_MAX: usize = 8;

/// The longest compressed name can point to this position.
const POINTER_MAX: usize = 0x3fff;

/// The option of an extended error.
const OPTION_ERROR: u16 = 15;

/// A record of class IN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsRecord {
    /// Whose record it is.
    pub owner: DnsName,
    /// Its type.
    pub record_type: u16,
    /// How many seconds it may be kept.
    pub ttl: u32,
    /// Its data. Names in it are not compressed.
    pub data: Vec<u8>,
}

impl DnsRecord {
    /// A record of type A or AAAA.
    pub fn address(owner: DnsName, address: IpAddr, ttl: u32) -> Self {
        let (record_type, data) = match address {
            IpAddr::V4(v4) => (record_type::A, v4.octets().to_vec()),
            IpAddr::V6(v6) => (record_type::AAAA, v6.octets().to_vec()),
        };
        Self { owner, record_type, ttl, data }
    }

    /// A record of type PTR.
    pub fn pointer(owner: DnsName, name: &DnsName, ttl: u32) -> Self {
        let data = name.as_bytes().to_vec();
        Self { owner, record_type: record_type::PTR, ttl, data }
    }

    fn parse(message: &[u8], raw: RawRecord) -> Result<Self, ParseError> {
        let RawRecord { owner, record_type, ttl, data, .. } = raw;
        let data = expand(message, record_type, data)?;
        // The highest bit of a TTL counts as zero seconds (RFC 2181, 8).
        Ok(Self { owner, record_type, ttl: if ttl >> 31 == 0 { ttl } else { 0 }, data })
    }
}

/// Why a query failed (RFC 8914).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedError {
    /// The registered number: 0 for one without a number.
    pub code: u16,
    /// A text for a person.
    pub text: &'static str,
}

/// The answer to a query.
#[derive(Debug, Clone)]
pub struct DnsResponse<'a> {
    /// The query.
    pub query: &'a DnsQuery,
    /// Its result.
    pub code: ResponseCode,
    /// Whether the server is the source of the answer, rather than an upstream server.
    pub is_authoritative: bool,
    /// The records, at most 64.
    pub records: &'a [DnsRecord],
    /// How many seconds the answer may be kept that the name, or a record of the type, does not exist.
    pub negative_ttl: Option<u32>,
    /// The reason of a failure.
    pub error: Option<ExtendedError>,
}

impl DnsResponse<'_> {
    /// The message, of at most `limit` bytes: where the records do not fit, it has none and says that it
    /// is truncated.
    pub fn write(&self, limit: usize) -> Vec<u8> {
        self.try_write(limit, false).or_else(|| self.try_write(limit, true)).unwrap_or_default()
    }

    /// `None` when it does not fit.
    fn try_write(&self, limit: usize, is_truncated: bool) -> Option<Vec<u8>> {
        let DnsQuery { id, flags, question, edns_size } = self.query;
        let records = if is_truncated { &[] } else { self.records };
        let negative = self.negative_ttl.filter(|_| !is_truncated);
        let flags = flag::RESPONSE
            | flag::RECURSION_AVAILABLE
            | flags
            | if self.is_authoritative { flag::AUTHORITATIVE } else { 0 }
            | if is_truncated { flag::TRUNCATED } else { 0 }
            | self.code as u16 & 0xf;
        let count = records.len().min(RECORDS_MAX);
        let mut message = Vec::with_capacity(limit.min(usize::from(UDP_MAX)));
        let opt = u16::from(edns_size.is_some());
        write_header(
            *id,
            flags,
            [1, count as u16, u16::from(negative.is_some()), opt],
            &mut message,
        );
        question.write(&mut message);
        let mut names = alloc::vec![(&question.name, HEADER_LEN)];
        for record in &records[..count] {
            write_owner(&record.owner, &mut names, &mut message);
            write_record(record.record_type, record.ttl, &record.data, &mut message)?;
            if message.len() > limit {
                return None;
            }
        }
        if let Some(ttl) = negative {
            // The root is above each name, so the record covers all that were asked.
            message.push(0);
            write_record(record_type::SOA, ttl, &start_of_authority(ttl), &mut message)?;
        }
        if edns_size.is_some() {
            write_opt(self.code, self.error, &mut message);
        }
        (message.len() <= limit).then_some(message)
    }
}

/// Appends a name, or a pointer to where it is written already.
fn write_owner<'a>(
    owner: &'a DnsName,
    names: &mut Vec<(&'a DnsName, usize)>,
    message: &mut Vec<u8>,
) {
    match names.iter().find(|(name, _)| *name == owner) {
        Some((_, at)) => message.extend_from_slice(&(0xc000 | *at as u16).to_be_bytes()),
        None => {
            if message.len() <= POINTER_MAX && !owner.is_root() {
                names.push((owner, message.len()));
            }
            message.extend_from_slice(owner.as_bytes());
        }
    }
}

/// Appends what follows the owner of a record. `None` when the data is too long.
fn write_record(record_type: u16, ttl: u32, data: &[u8], message: &mut Vec<u8>) -> Option<()> {
    let len = u16::try_from(data.len()).ok()?;
    message.extend_from_slice(&record_type.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    message.extend_from_slice(&ttl.to_be_bytes());
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(data);
    Some(())
}

/// The data of the record that says how long a negative answer may be kept (RFC 2308): the primary server
/// and the mailbox are the root, which stands for none.
fn start_of_authority(ttl: u32) -> Vec<u8> {
    let numbers = [1, 3600, 600, 86_400, ttl].map(u32::to_be_bytes);
    [&[0, 0], numbers.as_flattened()].concat()
}

/// Appends the record of EDNS.
pub(super) fn write_opt(code: ResponseCode, error: Option<ExtendedError>, message: &mut Vec<u8>) {
    let code = u32::from(code as u16 >> 4) << 24;
    let mut data = Vec::new();
    if let Some(ExtendedError { code, text }) = error {
        let len = 2 + text.len() as u16;
        for word in [OPTION_ERROR, len, code] {
            data.extend_from_slice(&word.to_be_bytes());
        }
        data.extend_from_slice(text.as_bytes());
    }
    message.push(0);
    for word in [record_type::OPT, UDP_MAX] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    message.extend_from_slice(&code.to_be_bytes());
    message.extend_from_slice(&(data.len() as u16).to_be_bytes());
    message.extend_from_slice(&data);
}

/// What an upstream server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamAnswer {
    /// Its code: a number of [`ResponseCode`], or another.
    pub code: u8,
    /// The aliases from the asked name on, then the records of the asked type.
    pub records: Vec<DnsRecord>,
}

/// Parses the answer of an upstream server to `question`. Only records that belong to the asked name, or
/// to a name that it is an alias of, are returned.
///
/// # Errors
///
/// See [`ParseError`]; [`ParseError::Unsupported`] for an answer to another question, and for too many
/// aliases.
pub fn parse_answer(message: &[u8], question: &DnsQuestion) -> Result<UpstreamAnswer, ParseError> {
    let (id, flags) = (u16_at(message, 0)?, u16_at(message, 2)?);
    if super::answers_query(message, id, question).is_none() {
        return Err(ParseError::Unsupported);
    }
    let (_, _, mut at) = DnsQuestion::parse(message)?;
    let mut all = Vec::new();
    for _ in 0..u16_at(message, 6)?.min(UPSTREAM_RECORDS_MAX) {
        let raw = RawRecord::parse(message, at)?;
        at = raw.data.end;
        let is_wanted = [question.record_type, record_type::CNAME].contains(&raw.record_type);
        if raw.class == CLASS_IN && is_wanted {
            all.push(DnsRecord::parse(message, raw)?);
        }
    }
    let mut records: Vec<DnsRecord> = Vec::new();
    let mut owner = question.name.clone();
    for _ in 0..=ALIASES_MAX {
        let is_asked = |record: &DnsRecord| {
            record.record_type == question.record_type && record.owner.is_same(&owner)
        };
        if all.iter().any(is_asked) {
            records.extend(all.into_iter().filter(is_asked));
            records.truncate(RECORDS_MAX);
            return Ok(UpstreamAnswer { code: flags as u8 & 0xf, records });
        }
        let Some(alias) = all.iter().find(|record| record.owner.is_same(&owner)) else {
            return Ok(UpstreamAnswer { code: flags as u8 & 0xf, records });
        };
        owner = DnsName::from_wire(&alias.data);
        records.push(alias.clone());
    }
    Err(ParseError::Unsupported)
}

/// The data of a record without compressed names. Only the types of RFC 1035 and a few old ones may have
/// compressed names (RFC 3597, 4).
fn expand(
    message: &[u8],
    record_type: u16,
    data: core::ops::Range<usize>,
) -> Result<Vec<u8>, ParseError> {
    // Bytes before the names, names, bytes after them.
    let (before, names, after) = match record_type {
        record_type::NS | record_type::CNAME | record_type::PTR | record_type::DNAME => (0, 1, 0),
        record_type::MX | record_type::AFSDB | record_type::RT | record_type::KX => (2, 1, 0),
        record_type::SRV => (6, 1, 0),
        record_type::SOA => (0, 2, 20),
        _ => return Ok(message[data].to_vec()),
    };
    let mut at = data.start + before;
    let mut expanded = message.get(data.start..at).ok_or(ParseError::Truncated)?.to_vec();
    for _ in 0..names {
        let (name, end) = DnsName::parse(message, at)?;
        expanded.extend_from_slice(name.as_bytes());
        at = end;
    }
    if at + after != data.end {
        return Err(ParseError::Malformed);
    }
    expanded.extend_from_slice(&message[at..data.end]);
    Ok(expanded)
}
