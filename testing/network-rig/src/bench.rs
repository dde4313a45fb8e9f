//! `cargo xtask bench network`: the stack of Capsa without and with a policy, slirp4netns and pasta behind the
//! same guest, in turn, with the goals of the project.

use std::collections::BTreeMap;
use std::path::Path;

use capsa_fixtures::command;
use capsa_fixtures::task::{Arguments, finish};

use crate::RigError;
use crate::engine::EngineCost;
use crate::rig::{self, Figures, GuestStack, Rig, RigGuest};
use GuestStack::{Capsa, CapsaPolicy, Loopback, Pasta, Slirp4netns};

pub(crate) const MTUS: [u16; 2] = [1500, 65520];

/// The rate of the reader that is slower than the guest: 50 MiB/s.
const SLOW: u64 = 50 << 20;

/// What is measured: the name of the traffic, its number, the figure, and how the table names it.
const TRAFFIC: [(&str, u64, &str); 7] = [
    ("upload", 1_000_000, "guest to host, MiB/s"),
    ("download", 1_000_000, "host to guest, MiB/s"),
    ("upload-slowly", SLOW, "to a reader of 50 MiB/s, MiB/s"),
    ("connects", 300, "connect, read, close, us"),
    ("round-trips", 2000, "round trip of a byte, us"),
    (REFUSED_QUERY, 2000, "query of DNS that is refused, us"),
    (CACHED_QUERY, 2000, "query of DNS with a cached answer, us"),
];

/// The queries of a guest under a policy. On the loopback, a datagram of the same length goes both ways.
pub(crate) const REFUSED_QUERY: &str = "query=refused.example";
pub(crate) const CACHED_QUERY: &str = "query=allowed.example";

/// The values of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Measured(BTreeMap<(GuestStack, u16, &'static str), Vec<f64>>);

impl Measured {
    fn add(&mut self, stack: GuestStack, mtu: u16, name: &'static str, value: f64) {
        self.0.entry((stack, mtu, name)).or_default().push(value);
    }

    /// The median of a figure; none if it was not measured.
    pub(crate) fn median(&self, stack: GuestStack, mtu: u16, name: &'static str) -> Option<f64> {
        let mut values = self.0.get(&(stack, mtu, name))?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }
}

/// Runs the bench.
pub(crate) fn run(program: &Path, mut arguments: Arguments) -> Result<(), RigError> {
    let rounds: usize = arguments.opt_value_from_str("--rounds")?.unwrap_or(7);
    let only: Option<String> = arguments.opt_value_from_str("--stack")?;
    let traffic: Option<String> = arguments.opt_value_from_str("--traffic")?;
    let only_mtu: Option<u16> = arguments.opt_value_from_str("--mtu")?;
    finish(arguments).map_err(|error| error.to_string())?;
    let rig = Rig::new(program)?;
    let mut guests = Vec::new();
    for mtu in MTUS.into_iter().filter(|mtu| only_mtu.is_none_or(|only| only == *mtu)) {
        for (name, stack) in [
            ("loopback", Loopback),
            ("slirp4netns", Slirp4netns),
            ("pasta", Pasta),
            ("capsa", Capsa),
            ("capsa-policy", CapsaPolicy),
        ] {
            if only.as_ref().is_some_and(|only| !only.split(',').any(|it| it == name)) {
                continue;
            }
            match rig.guest(stack, mtu) {
                Ok(guest) => guests.push((stack, mtu, guest)),
                Err(error) => println!("{name} is not measured: {error}"),
            }
        }
    }
    let mut measured = Measured::default();
    println!("load before: {}", load());
    for round in 0..rounds {
        for (name, n, _) in TRAFFIC {
            if traffic.as_ref().is_some_and(|traffic| traffic != name) {
                continue;
            }
            for index in 0..guests.len() {
                // Each round begins with another stack.
                let (stack, mtu, guest) = &guests[(index + round) % guests.len()];
                if name.starts_with("query=") && ![Loopback, CapsaPolicy].contains(stack) {
                    continue;
                }
                measure(&rig, guest, (name, n), |figure, value| {
                    measured.add(*stack, *mtu, figure, value);
                });
            }
        }
    }
    let has_capsa = guests.iter().any(|(stack, ..)| *stack == Capsa);
    let engine = match traffic.is_none() && has_capsa {
        true => {
            for _ in 0..rounds {
                measured.add(Capsa, 1500, "dhcp", rig.lease_micros()?);
            }
            Some(engine(program)?)
        }
        false => None,
    };
    println!("load after: {}\n", load());
    print_table(&measured);
    crate::goals::print(&measured, engine.as_ref());
    Ok(())
}

/// The cost of the stack without sockets, in a process of its own.
fn engine(program: &Path) -> Result<EngineCost, RigError> {
    let text = command::text(std::process::Command::new(program).arg("engine"))?;
    let figures = rig::figures(&text);
    let figure = |name: &str| figures.get(name).copied().ok_or(format!("no {name}"));
    Ok(EngineCost {
        idle_flow: figure("idle_flow")?,
        lookup_ratio: figure("lookup_ratio")?,
        beyond_cap: figure("beyond_cap")?,
        verdict: figure("verdict")?,
        refused_query: figure("refused_query")?,
        cached_query: figure("cached_query")?,
    })
}

fn measure(
    rig: &Rig,
    guest: &RigGuest,
    (name, n): (&'static str, u64),
    mut add: impl FnMut(&'static str, f64),
) {
    let before = guest.cpu_seconds().unwrap_or_default();
    let figures = rig.traffic(guest, name, n).unwrap_or_else(|error| {
        eprintln!("{name}: {error}");
        Figures::new()
    });
    let figure = |name: &str| figures.get(name).copied();
    let rate = |seconds| Some(figure("bytes")? / figure(seconds)? / f64::from(1 << 20));
    match name {
        // A transfer that did not end in time counts as 0.
        "upload" | "download" => {
            add(name, rate("seconds").unwrap_or(0.0));
            let cpu = guest.cpu_seconds().unwrap_or_default() - before;
            let gibibytes = figure("bytes").unwrap_or(0.0) / f64::from(1 << 30);
            add(
                if name == "upload" { "upload-cpu" } else { "download-cpu" },
                1e3 * cpu / gibibytes,
            );
        }
        "upload-slowly" => {
            add(name, rate("read_seconds").unwrap_or(0.0));
            add("gap", figure("gap").unwrap_or(f64::INFINITY) * 1e3);
            add("retransmitted", figure("retransmitted").unwrap_or(f64::INFINITY));
        }
        _ => add(name, figure("micros").unwrap_or(f64::INFINITY)),
    }
}

fn print_table(measured: &Measured) {
    println!("| | MTU | loopback | slirp4netns | pasta | capsa | capsa-policy |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let rows = TRAFFIC.map(|(name, _, label)| (name, label));
    let more = [
        ("gap", "longest gap of that reader, ms"),
        ("retransmitted", "segments sent again"),
        ("upload-cpu", "CPU time of the stack, guest to host, ms a GiB"),
        ("download-cpu", "the same, host to guest"),
    ];
    for (name, label) in rows.into_iter().chain(more) {
        for mtu in MTUS {
            print!("| {label} | {mtu} |");
            for stack in [Loopback, Slirp4netns, Pasta, Capsa, CapsaPolicy] {
                match measured.median(stack, mtu, name) {
                    Some(value) => print!(" {value:.0} |"),
                    None => print!(" – |"),
                }
            }
            println!();
        }
    }
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}
