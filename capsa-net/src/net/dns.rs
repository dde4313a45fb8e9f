//! The name server of a guest's network, over UDP and TCP.
//!
//! It answers names of the network itself, and asks the driver for all others with
//! [`NetAction::Resolve`]. A connection over TCP ends here: it is a flow like any other whose bytes go to
//! this server in place of a socket, so it has no action for the driver.
//!
//! A query gets an error as its answer when the server is busy, when the resolver has no answer, and when the
//! name does not exist. The server drops messages that are not queries, and queries beyond the rate limit.

mod cache;
mod names;
mod policy;
mod streams;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use capsa_proto::policy::{NetworkEvent, NetworkEventKind, PolicyVerdict, VerdictReason};
use capsa_proto::time::Instant;

use self::cache::AnswerCache;
use self::streams::DnsStream;
use super::{HOP_LIMIT, Net, NetAction, QueryId, QueryType, ResolveError};
use crate::flow_table::FlowId;
use crate::rate_limit::RateLimit;
use crate::wire::dns::{
    self, DnsName, DnsQuery, DnsQuestion, DnsRecord, DnsResponse, ExtendedError, InvalidQuery,
    ResponseCode, record_type,
};
use crate::wire::ethernet::EtherType;
use crate::wire::ip::{self, IpHeader};
use crate::wire::udp;

/// Names that are being resolved, at most.
const RESOLUTIONS: usize = 64;
/// Queries that wait for one name, at most.
const CLIENTS: usize = 16;
/// A query without an answer fails after this time.
const RESOLVE_TIME: Duration = Duration::from_secs(10);

/// A name may be answered from the cache for this time.
const POSITIVE: Duration = Duration::from_secs(30);
/// The same for a name or a record that does not exist.
const NEGATIVE: Duration = Duration::from_secs(5);
/// For how many seconds a guest may keep a name of the network itself.
const OWN_TTL: u32 = 30;

/// The time between two queries, on average: 200 in a second are answered.
const QUERY_INTERVAL: Duration = Duration::from_millis(5);
/// Queries that may come at once.
const QUERY_BURST: u32 = 400;

const UNANSWERED: ExtendedError = ExtendedError { code: 22, text: "no resolver answered" };
const UNUSABLE: ExtendedError = ExtendedError { code: 0, text: "the answer is not usable" };
const BUSY: ExtendedError = ExtendedError { code: 0, text: "too many queries" };

/// The state of the server.
#[derive(Debug)]
pub(super) struct NameServer {
    resolutions: BTreeMap<QueryId, Resolution>,
    by_question: BTreeMap<(String, QueryType), QueryId>,
    cache: AnswerCache,
    streams: BTreeMap<FlowId, DnsStream>,
    next_query: u64,
    rate: RateLimit,
}

/// A name that the driver resolves.
#[derive(Debug)]
struct Resolution {
    question: (String, QueryType),
    clients: Vec<WaitingQuery>,
    /// Flows to the name, under a policy. Some have ended.
    flows: Vec<FlowId>,
    ends_at: Instant,
}

/// A query that waits for a name.
#[derive(Debug, PartialEq, Eq)]
struct WaitingQuery {
    query: DnsQuery,
    reply_to: ReplyTo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyTo {
    Datagram { guest: SocketAddr, server: SocketAddr },
    Stream(FlowId),
}

/// What is known about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KnownName {
    /// Its addresses, of both families.
    Addresses(Vec<IpAddr>),
    /// Its aliases, and its records of one type.
    Records(Vec<DnsRecord>),
    /// There is no such name. It may be an alias of one that does not exist.
    NoName(Vec<DnsRecord>),
    /// Nothing: the resolver failed.
    Unknown(ExtendedError),
}

impl NameServer {
    pub(super) fn new() -> Self {
        Self {
            resolutions: BTreeMap::new(),
            by_question: BTreeMap::new(),
            cache: AnswerCache::default(),
            streams: BTreeMap::new(),
            next_query: 0,
            rate: RateLimit::new(QUERY_INTERVAL, QUERY_BURST),
        }
    }

    /// When [`Net::name_server_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let resolutions = self.resolutions.values().map(|resolution| resolution.ends_at);
        resolutions.chain(self.streams.values().filter_map(DnsStream::ends_at)).min()
    }

    /// The connection of a stream is gone.
    pub(super) fn remove(&mut self, flow: FlowId) {
        self.streams.remove(&flow);
    }

    /// Whether the flow ends in the server.
    pub(super) fn has_stream(&self, flow: FlowId) -> bool {
        self.streams.contains_key(&flow)
    }
}

impl Net {
    /// Whether a flow to this address ends in the name server. Under a policy, this is the only one.
    pub(super) fn is_name_server(&self, remote: SocketAddr) -> bool {
        if self.config.policy.is_some() && remote.port() == dns::PORT {
            return true;
        }
        let is_own = match remote.ip() {
            IpAddr::V4(v4) => v4 == self.config.dns,
            IpAddr::V6(v6) => self.config.ipv6.is_some_and(|ipv6| ipv6.dns == v6),
        };
        is_own && remote.port() == dns::PORT
    }

    /// The addresses of the name of a [`NetAction::Resolve`]: none when it exists without an address.
    pub fn handle_addresses(
        &mut self,
        query: QueryId,
        answer: Result<&[IpAddr], ResolveError>,
        now: Instant,
    ) {
        // An address that is valid on one link of the host only is of no use to the guest.
        let is_usable = |address: &&IpAddr| match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        };
        let known = match answer {
            Ok(all) => KnownName::Addresses(all.iter().filter(is_usable).copied().collect()),
            Err(ResolveError::NoName) => KnownName::NoName(Vec::new()),
            Err(ResolveError::Failed) => KnownName::Unknown(UNANSWERED),
        };
        self.resolved(query, known, now);
    }

    /// The message with which an upstream server answered the query of a [`NetAction::Resolve`].
    pub fn handle_records(
        &mut self,
        query: QueryId,
        answer: Result<&[u8], ResolveError>,
        now: Instant,
    ) {
        let Some(resolution) = self.name_server.resolutions.get(&query) else { return };
        let (name, QueryType::Records(record_type)) = &resolution.question else { return };
        let question =
            DnsName::from_text(name).map(|name| DnsQuestion { name, record_type: *record_type });
        let known = match (answer, question) {
            (Ok(message), Some(question)) => match dns::parse_answer(message, &question) {
                Ok(answer) if answer.code == ResponseCode::NoError as u8 => {
                    KnownName::Records(answer.records)
                }
                Ok(answer) if answer.code == ResponseCode::NameError as u8 => {
                    KnownName::NoName(answer.records)
                }
                Ok(_) => KnownName::Unknown(UNANSWERED),
                Err(_) => KnownName::Unknown(UNUSABLE),
            },
            (Err(ResolveError::NoName), _) => KnownName::NoName(Vec::new()),
            _ => KnownName::Unknown(UNANSWERED),
        };
        self.resolved(query, known, now);
    }

    /// Whether no query waits, and no connection exists.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn is_name_server_idle(&self) -> bool {
        let NameServer { resolutions, by_question, streams, .. } = &self.name_server;
        resolutions.is_empty() && by_question.is_empty() && streams.is_empty()
    }

    /// A datagram for the server.
    pub(super) fn name_server_datagram(
        &mut self,
        guest: SocketAddr,
        server: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) {
        self.query(payload, ReplyTo::Datagram { guest, server }, now);
    }

    /// What has waited too long.
    pub(super) fn name_server_timeout(&mut self, now: Instant) {
        let server = &self.name_server;
        let late = server.resolutions.iter().filter(|(_, resolution)| resolution.ends_at <= now);
        let late: Vec<QueryId> = late.map(|(id, _)| *id).collect();
        for query in late {
            self.resolved(query, KnownName::Unknown(UNANSWERED), now);
        }
        let is_idle = |stream: &DnsStream| stream.ends_at().is_some_and(|at| at <= now);
        let streams = self.name_server.streams.iter().filter(|(_, stream)| is_idle(stream));
        let idle: Vec<(FlowId, bool)> =
            streams.map(|(id, stream)| (*id, stream.is_ended)).collect();
        for (flow, is_ended) in idle {
            match is_ended {
                true => self.abort_stream(flow),
                false => self.end_stream(flow, now),
            }
        }
    }

    /// A message of the guest.
    fn query(&mut self, message: &[u8], reply_to: ReplyTo, now: Instant) {
        self.counters.queries += 1;
        let is_within = match &mut self.limits {
            Some(limits) => limits.allow_query(now),
            None => self.name_server.rate.allow(now),
        };
        if !is_within {
            self.counters.queries_limited += 1;
            let verdict = PolicyVerdict::without_rule(false, VerdictReason::QueryRate);
            self.report(NetworkEvent::new(now, NetworkEventKind::Limit, verdict));
            if let ReplyTo::Stream(flow) = reply_to {
                self.abort_stream(flow);
            }
            return;
        }
        let query = match DnsQuery::parse(message) {
            Ok(query) => query,
            Err(InvalidQuery::Answer(answer)) => return self.reply(reply_to, &answer, now),
            Err(InvalidQuery::NoQuery) => {
                self.counters.malformed += 1;
                if let ReplyTo::Stream(flow) = reply_to {
                    self.abort_stream(flow);
                }
                return;
            }
        };
        if let Some(own) = self.own_name(&query.question) {
            return self.answer_query(&query, reply_to, &own, OWN_TTL, true, now);
        }
        if !self.check_query(&query, reply_to, now) {
            return;
        }
        let query_type = match query.question.record_type {
            record_type::A | record_type::AAAA => QueryType::Addresses,
            0 | record_type::OPT | record_type::FIRST_META..=record_type::LAST_META => {
                return self.answer_code(&query, reply_to, ResponseCode::NotImplemented, now);
            }
            other => QueryType::Records(other),
        };
        let is_host_name = |name: &String| {
            let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
            !name.is_empty() && name.bytes().all(is_letter)
        };
        let name = query.question.name.to_text();
        // A name that no resolver is asked for: it cannot be a host's.
        let is_valid = match query_type {
            QueryType::Addresses => name.as_ref().is_some_and(is_host_name),
            QueryType::Records(_) => name.is_some(),
        };
        let Some(name) = name.filter(|_| is_valid) else {
            let unknown = KnownName::NoName(Vec::new());
            return self.answer_query(&query, reply_to, &unknown, OWN_TTL, false, now);
        };
        let question = (name, query_type);
        if let Some((known, ttl)) = self.name_server.cache.find(&question, now) {
            let known = known.clone();
            return self.answer_known(&query, reply_to, &known, ttl, now);
        }
        self.resolve(question, WaitingQuery { query, reply_to }, now);
    }

    /// Asks the driver, or waits for what it was asked already.
    fn resolve(&mut self, question: (String, QueryType), client: WaitingQuery, now: Instant) {
        let running = self.resolution(question, now);
        let server = &mut self.name_server;
        let resolution = match running.and_then(|id| server.resolutions.get_mut(&id)) {
            // The guest repeats its query: it gets one answer.
            Some(resolution) if resolution.clients.contains(&client) => return,
            Some(resolution) if resolution.clients.len() < CLIENTS => resolution,
            _ => {
                self.counters.queries_limited += 1;
                let WaitingQuery { query, reply_to } = client;
                let busy = KnownName::Unknown(BUSY);
                return self.answer_query(&query, reply_to, &busy, 0, false, now);
            }
        };
        if let ReplyTo::Stream(flow) = client.reply_to
            && let Some(stream) = server.streams.get_mut(&flow)
        {
            stream.waiting += 1;
        }
        resolution.clients.push(client);
    }

    /// The resolution of a question, which may be running already. `None` when there are too many.
    fn resolution(&mut self, question: (String, QueryType), now: Instant) -> Option<QueryId> {
        let server = &mut self.name_server;
        if let Some(running) = server.by_question.get(&question) {
            return Some(*running);
        }
        if server.resolutions.len() >= RESOLUTIONS {
            return None;
        }
        let query = QueryId(server.next_query);
        server.next_query += 1;
        let (name, query_type) = question.clone();
        self.actions.push_back(NetAction::Resolve { query, name, query_type });
        server.by_question.insert(question.clone(), query);
        let ends_at = now + RESOLVE_TIME;
        let (clients, flows) = (Vec::new(), Vec::new());
        server.resolutions.insert(query, Resolution { question, clients, flows, ends_at });
        Some(query)
    }

    /// The driver has resolved a name, or its time is over.
    fn resolved(&mut self, query: QueryId, known: KnownName, now: Instant) {
        let server = &mut self.name_server;
        let Some(Resolution { question, clients, flows, .. }) = server.resolutions.remove(&query)
        else {
            return;
        };
        server.by_question.remove(&question);
        let ttl = server.cache.insert(question, &known, now);
        for WaitingQuery { query, reply_to } in clients {
            if let ReplyTo::Stream(flow) = reply_to
                && let Some(stream) = self.name_server.streams.get_mut(&flow)
            {
                stream.waiting -= 1;
            }
            self.answer_known(&query, reply_to, &known, ttl, now);
            if let ReplyTo::Stream(flow) = reply_to {
                self.move_stream(flow, now);
            }
        }
        for flow in flows {
            self.flow_resolved(flow, &known, now);
        }
    }

    /// Answers a query with what is known. `ttl` is the longest time in seconds that the guest may keep
    /// it.
    fn answer_query(
        &mut self,
        query: &DnsQuery,
        reply_to: ReplyTo,
        known: &KnownName,
        ttl: u32,
        is_authoritative: bool,
        now: Instant,
    ) {
        let DnsQuestion { name, record_type } = &query.question;
        let records: Vec<DnsRecord> = match known {
            KnownName::Addresses(addresses) => {
                let all = addresses.iter();
                let all = all.map(|address| DnsRecord::address(name.clone(), *address, ttl));
                all.filter(|record| record.record_type == *record_type).collect()
            }
            KnownName::Records(records) | KnownName::NoName(records) => {
                let mut records = records.clone();
                for record in &mut records {
                    record.ttl = record.ttl.min(ttl);
                    // As the guest wrote it.
                    if record.owner.is_same(name) {
                        record.owner = name.clone();
                    }
                }
                records
            }
            KnownName::Unknown(_) => Vec::new(),
        };
        let (code, error) = match known {
            KnownName::Addresses(_) | KnownName::Records(_) => (ResponseCode::NoError, None),
            KnownName::NoName(_) => (ResponseCode::NameError, None),
            KnownName::Unknown(error) => (ResponseCode::ServerFailure, Some(*error)),
        };
        let has_record = records.iter().any(|record| record.record_type == *record_type);
        let is_negative = code != ResponseCode::ServerFailure && !has_record;
        let negative_ttl = is_negative.then(|| ttl.min(NEGATIVE.as_secs() as u32));
        let records = &records;
        let response = DnsResponse { query, code, is_authoritative, records, negative_ttl, error };
        self.respond(&response, reply_to, now);
    }

    fn answer_code(
        &mut self,
        query: &DnsQuery,
        reply_to: ReplyTo,
        code: ResponseCode,
        now: Instant,
    ) {
        let response = DnsResponse {
            query,
            code,
            is_authoritative: false,
            records: &[],
            negative_ttl: None,
            error: None,
        };
        self.respond(&response, reply_to, now);
    }

    fn respond(&mut self, response: &DnsResponse<'_>, reply_to: ReplyTo, now: Instant) {
        let limit = match reply_to {
            ReplyTo::Datagram { .. } => {
                let headers = ip::IPV6_HEADER_LEN + udp::HEADER_LEN;
                let limit = usize::from(response.query.udp_limit());
                limit.min(usize::from(self.config.mtu) - headers)
            }
            ReplyTo::Stream(_) => usize::from(u16::MAX),
        };
        self.reply(reply_to, &response.write(limit), now);
    }

    fn reply(&mut self, reply_to: ReplyTo, message: &[u8], now: Instant) {
        match reply_to {
            ReplyTo::Datagram { guest, server } => {
                let header = IpHeader {
                    source: server.ip(),
                    destination: guest.ip(),
                    protocol: ip::UDP,
                    hop_limit: HOP_LIMIT,
                };
                let ports = (server.port(), guest.port());
                self.answer(EtherType::of(guest.ip()), |frame| {
                    udp::write(&header, ports, message, frame);
                });
            }
            ReplyTo::Stream(flow) => {
                if let Some(stream) = self.name_server.streams.get_mut(&flow) {
                    stream.output.extend_from_slice(&(message.len() as u16).to_be_bytes());
                    stream.output.extend_from_slice(message);
                    self.write_stream(flow, now);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
