//! What flows cost.

use super::segments::{ACK, OpenConnection, SegmentTest};
use super::*;

/// The memory of a network, in bytes. A set keeps 6 to 11 elements in a node: 32 bytes for each is more
/// than it takes.
fn allocated(net: &Net) -> usize {
    let connections = net.flows.iter().map(|flow| match &flow.transport {
        Transport::Tcp(connection) => connection.allocated(),
        _ => 0,
    });
    let lists = net.queue.capacity() * size_of::<FlowId>()
        + net.actions.capacity() * size_of::<NetAction>()
        + net.waiting_connects.capacity() * size_of::<(FlowId, Destination)>();
    net.flows.allocated() + connections.sum::<usize>() + net.timers.len() * 32 + lists
}

/// Opens connections to different hosts.
fn open(test: &mut SegmentTest, count: u16) -> Vec<OpenConnection> {
    (0..count).map(|port| test.open(1000 + port)).collect()
}

#[test]
fn idle_flow_costs_at_most_480_bytes() {
    const FLOWS: u16 = 10_000;
    let mut test = SegmentTest::new(FLOWS.into(), 4 << 20);
    let connections = open(&mut test, FLOWS);
    // Each has been used, with a burst in both directions, out of order.
    for connection in &connections {
        test.send(connection.header(ACK, 10_000, 0), &[1; 1000]);
        test.send(connection.header(ACK, 0, 0), &[1; 10_000]);
        test.net.drained(connection.flow, 1000, test.now);
        test.give(connection.flow, &[2; 9000]);
        test.send(connection.header(ACK, 11_000, 9000), &[]);
        test.segments.clear();
        test.actions.clear();
    }
    assert_eq!((test.net.flows(), test.net.counters().refused_full), (FLOWS.into(), 0));
    let bytes = (allocated(&test.net) + test.net.budget.spare()) / usize::from(FLOWS);
    assert!(bytes <= 480, "{bytes} bytes a flow");
}

#[test]
fn slow_flows_stay_within_the_memory() {
    const FLOWS: u16 = 1000;
    for memory in [0, 8 << 20] {
        let mut test = SegmentTest::new(FLOWS.into(), memory);
        test.room = 0;
        let connections = open(&mut test, FLOWS);
        // The guest fills its windows and acknowledges nothing; the sockets give all that fits.
        for round in 0..200 {
            for connection in &connections {
                test.send(connection.header(ACK, round * 1400, 0), &[1; 1400]);
                test.give_some(connection.flow, &[2; 4000]);
            }
            test.segments.clear();
            test.actions.clear();
        }
        // 16 KiB for each direction of a connection are guaranteed, beyond the common memory.
        let cap = memory + usize::from(FLOWS) * 2 * (16 << 10);
        let bytes = allocated(&test.net);
        assert!(bytes <= cap + (1 << 20), "{bytes} of {cap}");
        assert!(bytes >= cap / 2, "{bytes} of {cap}: the flows are not slow");
    }
}
