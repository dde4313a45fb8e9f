//! The memory and the speed of the stack without sockets: many flows of a guest whose frames are made here.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant as Monotonic};

use capsa_net::wire::dns::{self, DnsName, DnsQuestion, record_type};
use capsa_net::wire::ethernet::{EtherType, EthernetHeader};
use capsa_net::wire::ip::IpHeader;
use capsa_net::wire::tcp::{Flags, TcpHeader};
use capsa_net::wire::udp;
use capsa_net::{Delivery, FlowId, Net, NetAction, NetworkConfig};
use capsa_proto::plan::MacAddress;
use capsa_proto::policy::{PolicyDestination, PolicyRules};
use capsa_proto::time::Instant;

use crate::{RigError, stack};

const NOW: Instant = Instant::from_micros(1_000_000);

/// A guest with open connections.
struct Connections {
    net: Net,
    /// The flow of each connection, with the numbers that its next segment has.
    open: Vec<(FlowId, TcpHeader)>,
    head: Vec<u8>,
}

impl Connections {
    fn open(count: usize, memory: usize) -> Result<Self, RigError> {
        let config = NetworkConfig {
            ipv6: None,
            flows: count,
            memory,
            ..NetworkConfig::new(MacAddress::GUEST, 1500)
        };
        let net = Net::new(config, [7; 16]);
        let mut connections = Self { net, open: Vec::with_capacity(count), head: Vec::new() };
        for n in 0..count {
            let source = 1024 + (n % 60_000) as u16;
            let syn = TcpHeader {
                source,
                destination: 80 + (n / 60_000) as u16,
                flags: Flags { syn: true, ..Flags::default() },
                window: u16::MAX,
                mss: Some(1460),
                window_scale: Some(7),
                ..TcpHeader::default()
            };
            connections.handle(&syn, &[]);
            let Some(NetAction::Connect { flow, .. }) = connections.net.poll_action() else {
                return Err(format!("connection {n} was refused").into());
            };
            connections.net.handle_connected(flow, NOW);
            connections.net.poll_frame(&mut connections.head, NOW).ok_or("no answer to a SYN")?;
            // The sequence number of the answer, behind the headers of Ethernet and IP.
            let sequence = &connections.head[38..42];
            let sequence = u32::from_be_bytes(sequence.try_into().expect("four bytes"));
            let header = TcpHeader {
                sequence: 1,
                acknowledgement: sequence.wrapping_add(1),
                flags: Flags { ack: true, ..Flags::default() },
                mss: None,
                window_scale: None,
                ..syn
            };
            connections.handle(&header, &[]);
            connections.drain();
            connections.open.push((flow, header));
        }
        Ok(connections)
    }

    fn handle(&mut self, header: &TcpHeader, data: &[u8]) -> Option<(FlowId, usize)> {
        let mut frame = Vec::new();
        let ethernet = EthernetHeader {
            destination: NetworkConfig::GATEWAY_MAC,
            source: MacAddress::GUEST,
            ether_type: EtherType::Ipv4,
        };
        ethernet.write(&mut frame);
        let remote = IpAddr::V4(Ipv4Addr::new(203, 0, 114, 2));
        let ip = IpHeader {
            source: NetworkConfig::GUEST.into(),
            destination: remote,
            protocol: 6,
            hop_limit: 64,
        };
        header.write(&ip, std::iter::once(data), &mut frame);
        frame.extend_from_slice(data);
        match self.net.handle_frame(&frame, NOW) {
            Some(Delivery::Stream { flow, data }) => {
                let len = data.len();
                self.net.taken(flow, &frame[data], 0, NOW);
                Some((flow, len))
            }
            _ => None,
        }
    }

    /// Takes all frames and actions.
    fn drain(&mut self) {
        while self.net.poll_frame(&mut self.head, NOW).is_some() {}
        while self.net.poll_action().is_some() {}
    }

    /// The nanoseconds of a segment without data, on ten of the connections.
    fn segment_nanos(&mut self) -> f64 {
        const SEGMENTS: usize = 200_000;
        let mut frames = Vec::new();
        // Ten connections in every case: the cache of the processor is not what is measured.
        for (_, header) in self.open.iter().step_by(self.open.len() / 10).take(10) {
            let mut frame = Vec::new();
            let ethernet = EthernetHeader {
                destination: NetworkConfig::GATEWAY_MAC,
                source: MacAddress::GUEST,
                ether_type: EtherType::Ipv4,
            };
            ethernet.write(&mut frame);
            let remote = IpAddr::V4(Ipv4Addr::new(203, 0, 114, 2));
            let ip = IpHeader {
                source: NetworkConfig::GUEST.into(),
                destination: remote,
                protocol: 6,
                hop_limit: 64,
            };
            header.write(&ip, std::iter::empty(), &mut frame);
            frames.push(frame);
        }
        let begin = Monotonic::now();
        for n in 0..SEGMENTS {
            self.net.handle_frame(&frames[n % frames.len()], NOW);
            while self.net.poll_frame(&mut self.head, NOW).is_some() {}
        }
        begin.elapsed().as_secs_f64() * 1e9 / SEGMENTS as f64
    }
}

/// The microseconds of a verdict, of a refused query, and of one with a cached answer.
fn policy_costs() -> Result<(f64, f64, f64), RigError> {
    let policy = stack::policy();
    let mistakes = |mistakes| format!("the policy has mistakes: {mistakes:?}");
    let rules = PolicyRules::new(&policy).map_err(mistakes)?;
    let mut verdict = 0.0_f64;
    for (destination, is_allowed) in [
        ("n500.registry.example:443", true),
        ("a.b.c.d.n502.example:443", true),
        ("a.b.c.d.e.f.refused.example:443", false),
        ("n500.registry.example=93.184.216.34:443", true),
        ("93.3.231.9:443", true),
        ("93.184.216.34:443", false),
        ("dns:a.b.c.d.e.f.refused.example", false),
    ] {
        let destination = destination.parse::<PolicyDestination>()?;
        if rules.explain(&destination).is_allowed != is_allowed {
            return Err(format!("unexpected verdict on {destination}").into());
        }
        verdict = verdict.max(median_micros(|| {
            std::hint::black_box(rules.explain(std::hint::black_box(&destination)));
        }));
    }
    let config =
        NetworkConfig { policy: Some(rules), ..NetworkConfig::new(MacAddress::GUEST, 1500) };
    let mut net = Net::new(config, [7; 16]);
    let (mut head, mut now) = (Vec::new(), NOW);
    let mut cost = |name: &str| {
        let frame = query_frame(name)?;
        let mut answers = 0;
        let micros = median_micros(|| {
            // Within the rate of queries.
            now = now + Duration::from_micros(10);
            net.handle_frame(&frame, now);
            while let Some(action) = net.poll_action() {
                if let NetAction::Resolve { query, .. } = action {
                    net.handle_addresses(query, Ok(&[Ipv4Addr::new(203, 0, 114, 2).into()]), now);
                }
            }
            while net.poll_frame(&mut head, now).is_some() {
                answers += 1;
            }
            while net.poll_event().is_some() {}
        });
        match answers >= QUERIES {
            true => Ok::<f64, RigError>(micros),
            false => Err(format!("{answers} answers for {name}").into()),
        }
    };
    Ok((verdict, cost(stack::REFUSED_NAME)?, cost(stack::ALLOWED_NAME)?))
}

/// How often something is done to measure its time.
const QUERIES: usize = 20_000;

/// The median time of a call, in microseconds, over groups of calls.
fn median_micros(mut call: impl FnMut()) -> f64 {
    const GROUP: usize = 100;
    let mut times: Vec<f64> = (0..QUERIES / GROUP)
        .map(|_| {
            let begin = Monotonic::now();
            for _ in 0..GROUP {
                call();
            }
            begin.elapsed().as_secs_f64() * 1e6 / GROUP as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A frame with a query for the address of a name.
fn query_frame(name: &str) -> Result<Vec<u8>, RigError> {
    let name = DnsName::from_text(name).ok_or("the name is too long")?;
    let question = DnsQuestion { name, record_type: record_type::A };
    let mut frame = Vec::new();
    let ethernet = EthernetHeader {
        destination: NetworkConfig::GATEWAY_MAC,
        source: MacAddress::GUEST,
        ether_type: EtherType::Ipv4,
    };
    ethernet.write(&mut frame);
    let ip = IpHeader {
        source: NetworkConfig::GUEST.into(),
        destination: NetworkConfig::DNS.into(),
        protocol: 17,
        hop_limit: 64,
    };
    udp::write(&ip, (4000, dns::PORT), &dns::write_query(7, &question), &mut frame);
    Ok(frame)
}

/// The private memory of this process, in bytes.
fn memory() -> Result<i64, RigError> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let kib: i64 = line.ok_or("no Anonymous")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// What the stack costs with many flows.
#[derive(Debug)]
pub(crate) struct EngineCost {
    /// Bytes of an idle connection, of 10,000.
    pub(crate) idle_flow: f64,
    /// The time of a segment with 10,000 connections, to that with 10.
    pub(crate) lookup_ratio: f64,
    /// Memory of 1,000 connections whose sockets and programs take nothing, beyond the cap, in bytes.
    pub(crate) beyond_cap: f64,
    /// The slowest kind of verdict in a policy of 1,000 rules, in microseconds.
    pub(crate) verdict: f64,
    /// A DNS query for a name that this policy does not allow, with its answer and event, in microseconds.
    pub(crate) refused_query: f64,
    /// The same for an allowed name whose addresses are known.
    pub(crate) cached_query: f64,
}

/// Measures, in a process that did nothing before.
pub(crate) fn measure() -> Result<EngineCost, RigError> {
    const IDLE: usize = 10_000;
    const SLOW: usize = 1000;
    let before = memory()?;
    let mut many = Connections::open(IDLE, 64 << 20)?;
    // The list of this test is not the stack's.
    let list = (many.open.capacity() * size_of::<(FlowId, TcpHeader)>()) as i64;
    let idle_flow = (memory()? - before - list) as f64 / IDLE as f64;
    let mut few = Connections::open(10, 64 << 20)?;
    let mut ratios: Vec<_> = (0..7).map(|_| many.segment_nanos() / few.segment_nanos()).collect();
    ratios.sort_by(f64::total_cmp);
    drop((many, few));

    const MEMORY: usize = 16 << 20;
    let before = memory()?;
    let mut slow = Connections::open(SLOW, MEMORY)?;
    let mut most = 0;
    for _ in 0..40 {
        for n in 0..SLOW {
            let (flow, header) = slow.open[n];
            let data = [1; 1460];
            slow.handle(&header, &data);
            slow.open[n].1.sequence = header.sequence.wrapping_add(1460);
            let mut count = 0;
            for space in slow.net.spaces(flow, 16 << 10) {
                count += space.len();
            }
            slow.net.filled(flow, count, NOW);
            slow.drain();
        }
        most = most.max(memory()? - before);
    }
    let list = (slow.open.capacity() * size_of::<(FlowId, TcpHeader)>()) as i64;
    // 16 KiB for each direction of a connection, and the shared memory.
    let cap = (MEMORY + SLOW * (32 << 10)) as i64;
    let (verdict, refused_query, cached_query) = policy_costs()?;
    Ok(EngineCost {
        verdict,
        refused_query,
        cached_query,
        idle_flow,
        lookup_ratio: ratios[ratios.len() / 2],
        beyond_cap: (most - list - cap) as f64,
    })
}
