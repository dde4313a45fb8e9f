//! The goals of the network stack, each with its anchor in the same run.

use crate::bench::{CACHED_QUERY, MTUS, Measured, REFUSED_QUERY};
use crate::engine::EngineCost;
use crate::rig::GuestStack::{Capsa, CapsaPolicy, Loopback, Pasta, Slirp4netns};

/// A value that has to be at least, or at most, its goal.
struct Goal {
    name: &'static str,
    what: String,
    value: f64,
    goal: f64,
    is_at_most: bool,
}

impl Goal {
    fn print(&self) {
        let Self { name, what, value, goal, is_at_most } = self;
        let is_met = if *is_at_most { value <= goal } else { value >= goal };
        let bound = if *is_at_most { "at most" } else { "at least" };
        let result = match is_met {
            true => "met".to_owned(),
            false if *goal == 0.0 => format!("missed by {value:.1}"),
            false => format!("missed by {:.0} %", 1e2 * (value / goal - 1.0).abs()),
        };
        println!("| {name} | {what} | {value:.2} | {bound} {goal:.2} | {result} |");
    }
}

/// Prints a line for each goal whose figures were measured.
pub(crate) fn print(measured: &Measured, engine: Option<&EngineCost>) {
    println!("\n| goal | what | value | wanted | |\n| --- | --- | ---: | ---: | --- |");
    for goal in traffic_goals(measured).into_iter().flatten() {
        goal.print();
    }
    if let Some(cost) = engine {
        let at_most = |name, what: &str, value, goal| {
            Goal { name, what: what.into(), value, goal, is_at_most: true }.print();
        };
        at_most("N6", "10,000 idle flows, bytes each", cost.idle_flow, 600.0);
        at_most("N6", "a segment among 10,000 flows, to 10 flows", cost.lookup_ratio, 1.1);
        let beyond = cost.beyond_cap / f64::from(1 << 20);
        at_most("N7", "1,000 slow flows, MiB beyond the cap", beyond, 1.0);
        at_most("N9", "a verdict of 1,000 rules, us", cost.verdict, 1.0);
        at_most("N9", "a refused query without sockets, us", cost.refused_query, 20.0);
        at_most("N9", "a cached answer without sockets, us", cost.cached_query, 200.0);
    }
}

fn traffic_goals(measured: &Measured) -> Vec<Option<Goal>> {
    let mut goals = Vec::new();
    let ratio = |stack, mtu, figure| {
        let of = |stack| measured.median(stack, mtu, figure);
        Some(of(Capsa)? / of(stack)?)
    };
    let at_least = |name, what, value: Option<f64>, goal| {
        Some(Goal { name, what, value: value?, goal, is_at_most: false })
    };
    let at_most = |name, what, value: Option<f64>, goal| {
        Some(Goal { name, what, value: value?, goal, is_at_most: true })
    };
    for mtu in MTUS {
        let what = |text: &str| format!("MTU {mtu}: {text}");
        let to = |stack, figure| ratio(stack, mtu, figure);
        let of = |figure| measured.median(Capsa, mtu, figure);
        let above = |stack, figure| {
            Some(measured.median(stack, mtu, figure)? - measured.median(Loopback, mtu, figure)?)
        };
        let above_loopback = |figure| above(Capsa, figure);
        // Of a policy to none.
        let policy = |figure| Some(measured.median(CapsaPolicy, mtu, figure)? / of(figure)?);
        goals.extend([
            at_least("N1", what("host to guest, to slirp4netns"), to(Slirp4netns, "download"), 1.5),
            at_least("N1", what("host to guest, to pasta"), to(Pasta, "download"), 1.0),
            at_least("N2", what("guest to host, to slirp4netns"), to(Slirp4netns, "upload"), 1.5),
            // A stack that ended no transfer has a rate of 0.
            at_least("N2", what("guest to host, to pasta, which stalls"), to(Pasta, "upload"), 5.0),
            at_least("N3", what("a reader of 50 MiB/s gets, MiB/s"), of("upload-slowly"), 47.5),
            at_most("N3", what("segments that its guest sends again"), of("retransmitted"), 0.0),
            at_most("N3", what("its longest gap, ms"), of("gap"), 50.0),
            at_most(
                "N4",
                what("connect, read, close, to slirp4netns"),
                to(Slirp4netns, "connects"),
                0.8,
            ),
            at_most(
                "N4",
                what("connect, read, close, us beyond loopback"),
                above_loopback("connects"),
                150.0,
            ),
            at_most(
                "N5",
                what("round trip of a byte, us beyond loopback"),
                above_loopback("round-trips"),
                60.0,
            ),
            at_least("N9", what("guest to host, policy to none"), policy("upload"), 0.95),
            at_least("N9", what("host to guest, policy to none"), policy("download"), 0.95),
            at_most(
                "N9",
                what("a refused query, us beyond loopback"),
                above(CapsaPolicy, REFUSED_QUERY),
                20.0,
            ),
            at_most(
                "N9",
                what("a cached answer, us beyond loopback"),
                above(CapsaPolicy, CACHED_QUERY),
                200.0,
            ),
        ]);
    }
    goals.push(at_most(
        "N12",
        "a lease by DHCP, us".into(),
        measured.median(Capsa, 1500, "dhcp"),
        5000.0,
    ));
    goals
}
