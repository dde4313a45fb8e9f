//! The codec on bytes, and compared with two other codecs.

use super::*;
use alloc::vec;
use core::net::IpAddr;
use domain::base::iana::Rtype;
use domain::base::{Message, ToName, UnknownRecordData};
use proptest::prelude::*;
use simple_dns::rdata::{A, CNAME, MX, PTR, RData, SOA, SRV, TXT};
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, ResourceRecord, TYPE};

fn name(text: &str) -> DnsName {
    DnsName::from_text(text).unwrap()
}

fn question(text: &str, record_type: u16) -> DnsQuestion {
    DnsQuestion { name: name(text), record_type }
}

/// A query without EDNS for the addresses of `a.example`.
const PLAIN: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";

/// [`PLAIN`] after a change.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<DnsQuery, InvalidQuery> {
    let mut message = PLAIN.to_vec();
    change(&mut message);
    DnsQuery::parse(&message)
}

/// The code of the answer to an invalid query, and its flags.
fn answered(result: Result<DnsQuery, InvalidQuery>) -> (u8, u8) {
    let Err(InvalidQuery::Answer(answer)) = result else { panic!("{result:?}") };
    assert_eq!(answer[..2], [0x12, 0x34]);
    (answer[3] & 0xf, answer[2])
}

#[test]
fn query_is_parsed() {
    let query = DnsQuery::parse(PLAIN).unwrap();
    assert_eq!((query.id, query.udp_limit()), (0x1234, 512));
    assert_eq!(query.question, question("a.example", record_type::A));
    // EDNS with a size of 4096, and a cookie.
    let edns = changed(|message| {
        message[11] = 1;
        message.extend(b"\0\0\x29\x10\0\0\0\0\0\0\x0c\0\x0a\0\x08abcdefgh");
    });
    assert_eq!(edns.unwrap().udp_limit(), UDP_MAX);
}

#[test]
fn query_with_other_than_one_question_is_format_error() {
    for count in [0, 2, 255] {
        assert_eq!(answered(changed(|message| message[5] = count)), (1, 0x81), "{count}");
    }
    let two = changed(|message| {
        message[5] = 2;
        message.extend(b"\x01b\x07example\0\0\x01\0\x01");
    });
    assert_eq!(answered(two), (1, 0x81));
}

#[test]
fn query_that_is_malformed_is_format_error() {
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let bad: [Change<'_>; 11] = [
        // Answers and authorities in a query.
        &|message| message[7] = 1,
        &|message| message[9] = 1,
        // Truncated, as a query cannot be.
        &|message| message[2] |= 2,
        // A record that is not there, and too many.
        &|message| message[11] = 1,
        &|message| message[10] = 1,
        // A byte too many, one too few.
        &|message| message.push(0),
        &|message| _ = message.pop(),
        // A name that points to itself, to the header, and ahead.
        &|message| message.splice(12..22, [0xc0, 12]).for_each(drop),
        &|message| message.splice(12..22, [0xc0, 2]).for_each(drop),
        &|message| message.splice(12..22, [0xc0, 20]).for_each(drop),
        // A label of an obsolete kind.
        &|message| message[12] = 0x41,
    ];
    for (n, change) in bad.iter().enumerate() {
        assert_eq!(answered(changed(change)), (1, 0x81), "{n}");
    }
    // Two records of EDNS, and one whose option is longer than the record.
    let opt = b"\0\0\x29\x10\0\0\0\0\0\0\0";
    let two = changed(|message| {
        message[11] = 2;
        message.extend([*opt, *opt].concat());
    });
    assert_eq!(answered(two), (1, 0x81));
    let long = changed(|message| {
        message[11] = 1;
        message.extend(b"\0\0\x29\x10\0\0\0\0\0\0\x05\0\x0a\0\x02a");
    });
    assert_eq!(answered(long), (1, 0x81));
}

#[test]
fn query_of_another_kind_is_not_implemented() {
    // IQUERY, STATUS, NOTIFY, UPDATE: the answer repeats the kind.
    for opcode in [1, 2, 4, 5] {
        let result = changed(|message| message[2] = opcode << 3);
        assert_eq!(answered(result), (4, 0x80 | opcode << 3), "{opcode}");
    }
    // Class CH.
    assert_eq!(answered(changed(|message| *message.last_mut().unwrap() = 3)), (4, 0x81));
    let version = changed(|message| {
        message[11] = 1;
        message.extend(b"\0\0\x29\x10\0\0\x01\0\0\0\0");
    });
    // Bad version: 16, of which EDNS has the upper bits.
    let Err(InvalidQuery::Answer(answer)) = version else { panic!() };
    assert_eq!(answer[12..], *b"\0\0\x29\x04\xd0\x01\0\0\0\0\0");
}

#[test]
fn answer_or_header_in_part_is_no_query() {
    assert_eq!(changed(|message| message[2] |= 0x80), Err(InvalidQuery::NoQuery));
    for len in 0..HEADER_LEN {
        assert_eq!(changed(|message| message.truncate(len)), Err(InvalidQuery::NoQuery));
    }
}

#[test]
fn name_limits_are_those_of_the_standard() {
    let label = "a".repeat(63);
    let longest = [&label[..], &label, &label, &label[..61]].join(".");
    let wire = name(&longest);
    assert_eq!(wire.as_bytes().len(), 255);
    let message = [&[0; HEADER_LEN], wire.as_bytes()].concat();
    assert_eq!(DnsName::parse(&message, HEADER_LEN).unwrap(), (wire, 267));
    assert_eq!(DnsName::from_text(&[&longest, "a"].concat()), None);
    let too_long = [&[0; HEADER_LEN], &b"\x01a"[..], &message[HEADER_LEN..]].concat();
    assert_eq!(DnsName::parse(&too_long, HEADER_LEN), Err(ParseError::Malformed));
    assert_eq!(DnsName::from_text(&"a".repeat(64)), None);
    for text in [".", "a..b", ".a", "a."] {
        assert_eq!(DnsName::from_text(text), None, "{text}");
    }
    assert!(name("").is_root());
}

#[test]
fn name_follows_at_most_16_pointers() {
    // At 12 the root; then pointers, each to the one before it.
    let mut message = vec![0; HEADER_LEN + 1];
    message.extend([0xc0, 12]);
    for at in (13..13 + 2 * 16).step_by(2) {
        message.extend([0xc0, at]);
    }
    assert!(DnsName::parse(&message, 13 + 2 * 15).unwrap().0.is_root());
    assert_eq!(DnsName::parse(&message, 13 + 2 * 16), Err(ParseError::Malformed));
}

#[test]
fn name_text_is_lower_case_and_plain() {
    assert_eq!(name("ExAmple.COM").to_text().as_deref(), Some("example.com"));
    assert!(name("ExAmple.COM").is_same(&name("eXample.com")));
    for bad in [&b"\x03a.b\0"[..], b"\x01\\\0", b"\x01 \0", b"\x02a\0\0", b"\x01\xe9\0"] {
        let message = [&[0; HEADER_LEN], bad].concat();
        let (name, _) = DnsName::parse(&message, HEADER_LEN).unwrap();
        assert_eq!(name.to_text(), None, "{name:?}");
    }
}

fn query(record_type: u16, edns_size: Option<u16>) -> DnsQuery {
    let question = question("Asked.Example", record_type);
    DnsQuery { id: 7, flags: flag::RECURSION_DESIRED, question, edns_size }
}

fn response<'a>(query: &'a DnsQuery, records: &'a [DnsRecord]) -> DnsResponse<'a> {
    DnsResponse {
        query,
        code: ResponseCode::NoError,
        is_authoritative: false,
        records,
        negative_ttl: None,
        error: None,
    }
}

#[test]
fn response_that_does_not_fit_is_truncated() {
    let query = query(record_type::TXT, Some(1232));
    let record = DnsRecord {
        owner: query.question.name.clone(),
        record_type: record_type::TXT,
        ttl: 1,
        data: vec![b'x'; 200],
    };
    let records = vec![record; 3];
    let message = response(&query, &records).write(usize::from(query.udp_limit()));
    assert!(message.len() > 600);
    let message = response(&query, &records).write(512);
    // No record, EDNS, and the flag.
    assert_eq!((message[2] & 2, &message[4..12]), (2, &[0, 1, 0, 0, 0, 0, 0, 1][..]));
    assert_eq!(answers_query(&message, 7, &query.question), Some(true));
}

#[test]
fn response_repeats_the_case_of_the_question() {
    let query = query(record_type::A, None);
    let message = response(&query, &[]).write(512);
    assert!(message.windows(5).any(|part| part == b"Asked"));
    assert!(answers_query(&message, 7, &question("asked.example", record_type::A)).is_some());
    for (id, other) in [
        (8, query.question.clone()),
        (7, question("asked.example", record_type::AAAA)),
        (7, question("other.example", record_type::A)),
    ] {
        assert_eq!(answers_query(&message, id, &other), None);
    }
}

#[test]
fn response_with_failure_explains_it() {
    let (with, without) = (query(record_type::A, Some(512)), query(record_type::A, None));
    let error = Some(ExtendedError { code: 22, text: "why" });
    let code = ResponseCode::ServerFailure;
    let message = DnsResponse { code, error, ..response(&with, &[]) }.write(512);
    assert!(message.ends_with(b"\0\x09\0\x0f\0\x05\0\x16why"), "{}", message.escape_ascii());
    // A client without EDNS does not know extended errors.
    let message = DnsResponse { code, error, ..response(&without, &[]) }.write(512);
    assert_eq!(message[11], 0);
}

/// The answer of an upstream server, written by another codec.
fn upstream(question: &DnsQuestion, records: Vec<ResourceRecord<'_>>) -> Vec<u8> {
    let text = question.name.to_text().unwrap();
    let mut packet = Packet::new_reply(9);
    let record_type = QTYPE::TYPE(TYPE::from(question.record_type));
    let asked = Name::new(&text).unwrap();
    packet.questions.push(simple_dns::Question::new(
        asked,
        record_type,
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    packet.answers = records;
    packet.build_bytes_vec_compressed().unwrap()
}

fn record<'a>(owner: &'a str, data: RData<'a>) -> ResourceRecord<'a> {
    ResourceRecord::new(Name::new_unchecked(owner), CLASS::IN, 60, data)
}

fn alias<'a>(owner: &'a str, target: &'a str) -> ResourceRecord<'a> {
    record(owner, RData::CNAME(CNAME(Name::new_unchecked(target))))
}

fn address(owner: &str, last: u8) -> ResourceRecord<'_> {
    record(owner, RData::A(A { address: u32::from_be_bytes([192, 0, 2, last]) }))
}

#[test]
fn upstream_records_of_other_owners_are_ignored() {
    let asked = question("asked.example", record_type::A);
    let message = upstream(
        &asked,
        vec![
            address("other.example", 1),
            // In no order.
            address("final.example", 2),
            alias("Asked.example", "middle.example"),
            alias("middle.example", "final.example"),
            address("final.example", 3),
            alias("unrelated.example", "asked.example"),
        ],
    );
    let answer = parse_answer(&message, &asked).unwrap();
    let owners: Vec<_> = answer.records.iter().map(|record| record.owner.to_text()).collect();
    let expected = ["asked.example", "middle.example", "final.example", "final.example"];
    assert_eq!(owners, expected.map(|owner| Some(owner.into())));
    let addresses: Vec<_> = answer.records[2..].iter().map(|record| record.data[3]).collect();
    assert_eq!(addresses, [2, 3]);
}

#[test]
fn upstream_aliases_are_at_most_8() {
    let asked = question("a0.example", record_type::A);
    let names: Vec<_> = (0..=9).map(|n| alloc::format!("a{n}.example")).collect();
    for (hops, is_ok) in [(8, true), (9, false)] {
        let mut records: Vec<_> = (0..hops).map(|n| alias(&names[n], &names[n + 1])).collect();
        records.push(address(&names[hops], 1));
        assert_eq!(parse_answer(&upstream(&asked, records), &asked).is_ok(), is_ok, "{hops}");
    }
    let circle = vec![alias("a0.example", "a1.example"), alias("a1.example", "a0.example")];
    let circle = upstream(&asked, circle);
    assert_eq!(parse_answer(&circle, &asked), Err(ParseError::Unsupported));
}

#[test]
fn upstream_answer_to_another_question_is_error() {
    let asked = question("asked.example", record_type::A);
    let message = upstream(&asked, vec![address("asked.example", 1)]);
    let other = question("other.example", record_type::A);
    assert_eq!(parse_answer(&message, &other), Err(ParseError::Unsupported));
    for len in 0..message.len() {
        assert!(parse_answer(&message[..len], &asked).is_err(), "{len}");
    }
}

#[test]
fn upstream_names_in_data_are_expanded() {
    let target = || Name::new_unchecked("target.asked.example");
    let wire = name("target.asked.example");
    let mut text = TXT::new();
    text.add_string("some text").unwrap();
    let soa = SOA {
        mname: target(),
        rname: target(),
        serial: 1,
        refresh: 2,
        retry: 3,
        expire: 4,
        minimum: 5,
    };
    let numbers = [1u32, 2, 3, 4, 5].map(u32::to_be_bytes);
    let srv = SRV { priority: 1, weight: 2, port: 3, target: target() };
    let cases = [
        (record_type::PTR, RData::PTR(PTR(target())), wire.as_bytes().to_vec()),
        (
            record_type::MX,
            RData::MX(MX { preference: 5, exchange: target() }),
            [&[0, 5], wire.as_bytes()].concat(),
        ),
        (record_type::SRV, RData::SRV(srv), [&[0, 1, 0, 2, 0, 3], wire.as_bytes()].concat()),
        (
            record_type::SOA,
            RData::SOA(soa),
            [wire.as_bytes(), wire.as_bytes(), numbers.as_flattened()].concat(),
        ),
        (record_type::TXT, RData::TXT(text), b"\x09some text".to_vec()),
    ];
    for (record_type, data, expected) in cases {
        let asked = question("asked.example", record_type);
        let message = upstream(&asked, vec![record("asked.example", data)]);
        let answer = parse_answer(&message, &asked).unwrap();
        assert_eq!(answer.records[0].data, expected, "{record_type}");
    }
}

/// A name of up to eight labels with any bytes.
fn any_name() -> impl Strategy<Value = DnsName> {
    let label = prop_oneof![
        3 => proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'B'), Just(b'-')], 1..6),
        1 => proptest::collection::vec(any::<u8>(), 1..=30),
    ];
    proptest::collection::vec(label, 0..8).prop_map(|labels| {
        let mut wire = vec![0; HEADER_LEN];
        for label in labels {
            wire.push(label.len() as u8);
            wire.extend(label);
        }
        wire.push(0);
        DnsName::parse(&wire, HEADER_LEN).unwrap().0
    })
}

fn any_query() -> impl Strategy<Value = DnsQuery> {
    let flags = prop_oneof![Just(0), Just(flag::RECURSION_DESIRED), Just(flag::CHECKING_DISABLED)];
    (any::<u16>(), flags, any_name(), any::<u16>(), any::<Option<u16>>()).prop_map(
        |(id, flags, name, record_type, edns_size)| DnsQuery {
            id,
            flags,
            question: DnsQuestion { name, record_type },
            edns_size,
        },
    )
}

fn any_record() -> impl Strategy<Value = DnsRecord> {
    let data = proptest::collection::vec(any::<u8>(), 0..80);
    let other = (any_name(), 100..60_000u16, any::<u32>(), data)
        .prop_map(|(owner, record_type, ttl, data)| DnsRecord { owner, record_type, ttl, data });
    let address = (any_name(), any::<IpAddr>(), any::<u32>())
        .prop_map(|(owner, address, ttl)| DnsRecord::address(owner, address, ttl));
    prop_oneof![other, address]
}

/// The bytes of a query, as this crate never writes them itself.
fn encode(query: &DnsQuery) -> Vec<u8> {
    let mut message = Vec::new();
    let opt = u16::from(query.edns_size.is_some());
    write_header(query.id, query.flags, [1, 0, 0, opt], &mut message);
    query.question.write(&mut message);
    if let Some(size) = query.edns_size {
        message.extend(b"\0\0\x29");
        message.extend(size.to_be_bytes());
        message.extend([0; 6]);
    }
    message
}

/// Two other codecs see in a query what this one does.
fn check_with_others(message: &[u8], query: &DnsQuery) {
    let theirs = Message::from_octets(message).unwrap();
    let question = theirs.sole_question().unwrap();
    assert_eq!(theirs.header().id(), query.id);
    assert_eq!(question.qname().to_vec().as_slice(), query.question.name.as_bytes());
    assert_eq!(question.qtype().to_int(), query.question.record_type);
    let size = theirs.opt().map(|opt| opt.udp_payload_size());
    assert_eq!(size, query.edns_size);
    // It does not know all types of questions.
    if let Ok(theirs) = Packet::parse(message) {
        let [question] = &theirs.questions[..] else { panic!("{theirs:?}") };
        let labels: Vec<_> = question.qname.as_bytes().collect();
        assert_eq!(labels, query.question.name.labels().collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn query_round_trip_and_others_agree(query in any_query()) {
        let message = encode(&query);
        prop_assert_eq!(DnsQuery::parse(&message), Ok(query.clone()));
        check_with_others(&message, &query);
    }

    /// What this codec accepts, the others accept, and understand in the same way.
    #[test]
    fn query_of_any_bytes_others_agree(
        query in any_query(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        more in proptest::collection::vec(any::<u8>(), 0..3),
    ) {
        let mut message = encode(&query);
        for (at, byte) in changes {
            *at.get_mut(&mut message) = byte;
        }
        message.extend(more);
        if let Ok(parsed) = DnsQuery::parse(&message) {
            check_with_others(&message, &parsed);
        }
    }

    #[test]
    fn response_others_read_the_records(
        query in any_query(),
        records in proptest::collection::vec(any_record(), 0..6),
        negative_ttl in any::<Option<u32>>(),
    ) {
        let message = DnsResponse { negative_ttl, ..response(&query, &records) }.write(65_535);
        let theirs = Message::from_octets(&message[..]).unwrap();
        let read: Vec<_> = theirs.answer().unwrap().map(|record| {
            let record = record.unwrap();
            let data = record.to_record::<UnknownRecordData<_>>().unwrap().unwrap();
            DnsRecord {
                owner: DnsName::from_wire(record.owner().to_vec().as_slice()),
                record_type: record.rtype().to_int(),
                ttl: record.ttl().as_secs(),
                data: data.data().data().to_vec(),
            }
        }).collect();
        prop_assert_eq!(&read, &records);
        let authorities = theirs.authority().unwrap().map(|record| record.unwrap().rtype());
        let expected: Vec<_> = negative_ttl.map(|_| Rtype::SOA).into_iter().collect();
        prop_assert_eq!(authorities.collect::<Vec<_>>(), expected);
        prop_assert_eq!(theirs.opt().is_some(), query.edns_size.is_some());
    }

    /// An answer has the records that belong to the question, and no others.
    #[test]
    fn upstream_answer_round_trip(query in any_query(), mut records in proptest::collection::vec(any_record(), 0..6)) {
        for record in &mut records {
            record.record_type = 300;
            record.ttl &= i32::MAX as u32;
        }
        let query = DnsQuery {
            question: DnsQuestion { record_type: 300, ..query.question },
            ..query
        };
        for record in records.iter_mut().step_by(2) {
            record.owner = query.question.name.clone();
        }
        let message = response(&query, &records).write(65_535);
        let answer = parse_answer(&message, &query.question).unwrap();
        records.retain(|record| record.owner.is_same(&query.question.name));
        prop_assert_eq!(answer.records, records);
    }
}
