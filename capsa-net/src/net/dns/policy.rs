//! Queries under a policy: which are resolved, and what the guest gets.
//!
//! A query for a name that no rule allows is never sent on, in no form: a query is itself a message to the
//! owner of the name. An allowed name is answered with an address of the pool, once the resolver has found
//! that it exists; where a rule asks for it, with the real addresses, which are pinned. Records other than
//! addresses are not answered: they would carry data to the guest.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use capsa_proto::policy::{
    AddressClass, NetworkEvent, NetworkEventKind, PolicyMode, PolicyVerdict, ResolveMode,
    SYNTHETIC_TTL, VerdictReason,
};
use capsa_proto::time::Instant;

use super::{BUSY, KnownName, NEGATIVE, QueryType, ReplyTo};
use crate::flow_table::FlowId;
use crate::net::Net;
use crate::net::access::is_own_network;
use crate::wire::dns::{DnsQuery, DnsResponse, ExtendedError, ResponseCode, record_type};

/// A browser that finds this name uses DNS over HTTPS, past the name server.
const DOH_CANARY: &str = "use-application-dns.net";

/// The number of the extended error of a blocked name.
const BLOCKED: u16 = 15;

impl Net {
    /// Whether a query may be resolved. Otherwise it is answered here.
    pub(super) fn check_query(
        &mut self,
        query: &DnsQuery,
        reply_to: ReplyTo,
        now: Instant,
    ) -> bool {
        let Some(policy) = &self.config.policy else { return true };
        let is_recording = policy.mode() == PolicyMode::Record;
        let refusal = |reason| PolicyVerdict::without_rule(false, reason);
        let Some(name) = query.question.name.to_text() else {
            let verdict = refusal(VerdictReason::NoRule);
            self.refuse_query(query, reply_to, ResponseCode::NameError, verdict, now);
            return false;
        };
        let verdict = match &name[..] {
            DOH_CANARY => refusal(VerdictReason::Protocol),
            _ => policy.query(&name),
        };
        if !verdict.is_allowed && (!is_recording || name == DOH_CANARY) {
            self.refuse_query(query, reply_to, ResponseCode::NameError, verdict, now);
            return false;
        }
        let code = match query.question.record_type {
            record_type::A | record_type::AAAA => {
                let is_new = policy.is_open_ended(&name) && !self.is_known_name(&name, now);
                let is_within = !is_new
                    || self.limits.as_mut().is_none_or(|limits| limits.allow_name(&name, now));
                if !is_within {
                    let verdict = refusal(VerdictReason::NameBudget);
                    self.refuse_query(query, reply_to, ResponseCode::ServerFailure, verdict, now);
                }
                return is_within;
            }
            // A client does without them, and they have addresses that are not the pool's.
            record_type::SVCB | record_type::HTTPS => {
                let nothing = KnownName::Records(Vec::new());
                let ttl = NEGATIVE.as_secs() as u32;
                self.answer_query(query, reply_to, &nothing, ttl, false, now);
                return false;
            }
            0 | record_type::OPT | record_type::FIRST_META..=record_type::LAST_META => {
                ResponseCode::NotImplemented
            }
            _ if is_recording => {
                let kind = NetworkEventKind::DnsAnswered;
                self.report_query(query, kind, refusal(VerdictReason::RecordType), None, now);
                return true;
            }
            record_type::PTR => ResponseCode::NameError,
            _ => ResponseCode::NoError,
        };
        self.refuse_query(query, reply_to, code, refusal(VerdictReason::RecordType), now);
        false
    }

    /// Whether the name was asked for before, and resolved.
    fn is_known_name(&self, name: &str, now: Instant) -> bool {
        let question = (String::from(name), QueryType::Addresses);
        self.names.has_name(name)
            || self.pinned.has_name(name)
            || self.name_server.by_question.contains_key(&question)
            || self.name_server.cache.find(&question, now).is_some()
    }

    /// Answers a query with what the resolver knows, as far as the policy allows it.
    pub(super) fn answer_known(
        &mut self,
        query: &DnsQuery,
        reply_to: ReplyTo,
        known: &KnownName,
        ttl: u32,
        now: Instant,
    ) {
        let is_ipv4 = query.question.record_type == record_type::A;
        let is_addresses = is_ipv4 || query.question.record_type == record_type::AAAA;
        let name = query.question.name.to_text().filter(|_| is_addresses && self.is_audited());
        let Some(name) = name else {
            return self.answer_query(query, reply_to, known, ttl, false, now);
        };
        let mut verdict = PolicyVerdict::without_rule(true, VerdictReason::Allowed);
        let mut mode = None;
        if let Some(policy) = &self.config.policy {
            // The policy may have been replaced since the query.
            verdict = policy.query(&name);
            if !verdict.is_allowed && policy.mode() != PolicyMode::Record {
                return self.refuse_query(query, reply_to, ResponseCode::NameError, verdict, now);
            }
            mode = Some(policy.resolve_mode(&name));
        }
        let (answer, ttl) = match (known, mode) {
            (KnownName::Addresses(all), Some(ResolveMode::Real)) => {
                let open = self.open_addresses(query, &name, all, now);
                let time = Duration::from_secs(ttl.into());
                (KnownName::Addresses(self.pinned.pin(&name, &open, time, now)), ttl)
            }
            (KnownName::Addresses(all), Some(_)) if !all.is_empty() => {
                let Some(address) = self.names.address(&name, now) else {
                    let verdict = PolicyVerdict::without_rule(false, VerdictReason::NameBudget);
                    let code = ResponseCode::ServerFailure;
                    return self.refuse_query(query, reply_to, code, verdict, now);
                };
                let addresses = vec![IpAddr::from(address)];
                (KnownName::Addresses(addresses), SYNTHETIC_TTL.as_secs() as u32)
            }
            _ => (known.clone(), ttl),
        };
        let exists = matches!(&answer, KnownName::Addresses(all) if !all.is_empty());
        let has_ipv6 =
            matches!(&answer, KnownName::Addresses(all) if all.iter().any(IpAddr::is_ipv6));
        if !exists && verdict.is_allowed {
            verdict.reason = VerdictReason::Unresolved;
        }
        // Most programs ask for both families at once.
        if is_ipv4 || has_ipv6 {
            self.report_query(query, NetworkEventKind::DnsAnswered, verdict, None, now);
        }
        self.answer_query(query, reply_to, &answer, ttl, false, now);
    }

    /// Resolves the name of a flow.
    pub(in crate::net) fn resolve_flow(&mut self, flow: FlowId, name: &str, now: Instant) {
        let question = (String::from(name), QueryType::Addresses);
        if let Some((known, _)) = self.name_server.cache.find(&question, now) {
            let known = known.clone();
            return self.flow_resolved(flow, &known, now);
        }
        let running = self.resolution(question, now);
        let resolution = running.and_then(|id| self.name_server.resolutions.get_mut(&id));
        let Some(resolution) = resolution else {
            return self.flow_resolved(flow, &KnownName::Unknown(BUSY), now);
        };
        if resolution.flows.len() >= 2 * self.config.flows {
            resolution.flows.retain(|flow| self.flows.get(*flow).is_some());
        }
        resolution.flows.push(flow);
    }

    /// The addresses of a name that the guest may know. The first other one is reported.
    fn open_addresses(
        &mut self,
        query: &DnsQuery,
        name: &str,
        all: &[IpAddr],
        now: Instant,
    ) -> Vec<IpAddr> {
        let Some(policy) = &self.config.policy else { return Vec::new() };
        let is_recording = policy.mode() == PolicyMode::Record;
        let mut refused = None;
        let is_open = |address: &&IpAddr| {
            let verdict = match is_own_network(&self.config, **address) {
                true => PolicyVerdict::without_rule(false, VerdictReason::HostAddress),
                false => policy.answer(name, **address),
            };
            let is_carried = is_recording
                && verdict.reason != VerdictReason::HostAddress
                && AddressClass::of(**address) != AddressClass::Special;
            let is_open = verdict.is_allowed || is_carried;
            if !is_open {
                refused.get_or_insert((verdict, **address));
            }
            is_open
        };
        let open = all.iter().filter(is_open).copied().collect();
        if let Some((verdict, address)) = refused {
            let kind = NetworkEventKind::DnsRefused;
            self.report_query(query, kind, verdict, Some(address), now);
        }
        open
    }

    /// Answers that the name or the records are blocked, with the reason, and reports it.
    fn refuse_query(
        &mut self,
        query: &DnsQuery,
        reply_to: ReplyTo,
        code: ResponseCode,
        verdict: PolicyVerdict,
        now: Instant,
    ) {
        let error = ExtendedError { code: BLOCKED, text: verdict.reason.describe() };
        let is_negative = matches!(code, ResponseCode::NoError | ResponseCode::NameError);
        let response = DnsResponse {
            query,
            code,
            is_authoritative: false,
            records: &[],
            negative_ttl: is_negative.then_some(NEGATIVE.as_secs() as u32),
            error: Some(error),
        };
        self.respond(&response, reply_to, now);
        self.report_query(query, NetworkEventKind::DnsRefused, verdict, None, now);
    }

    fn report_query(
        &mut self,
        query: &DnsQuery,
        kind: NetworkEventKind,
        verdict: PolicyVerdict,
        address: Option<IpAddr>,
        now: Instant,
    ) {
        let mut event = NetworkEvent::new(now, kind, verdict);
        event.name = query.question.name.to_text();
        event.address = address;
        self.report(event);
    }
}
