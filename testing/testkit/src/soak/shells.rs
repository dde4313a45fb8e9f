//! Commands that are given up in their first moments, on a login shell.

use std::time::{Duration, Instant};

use capsa::{Error, VmConsole};
use fastrand::Rng;
use futures_lite::future::block_on;

use super::{PATIENCE, SoakReport, expect_echo};
use crate::drop_futures::poll_for;

/// Until when commands are given up.
const LATEST: Duration = Duration::from_millis(200);

/// What is given up: each can be interrupted.
const COMMANDS: [&str; 4] =
    ["sleep 600", "echo x; sleep 600", "while :; do :; done", "cat /dev/zero"];

/// Gives up `times` commands, at times that are spread from 0 to 200 ms, and after each runs a command
/// that must work within `limit` and the time that it takes on an idle console: fish, which paints each
/// character that is typed, needs most of a second in emulation. Every fourth has a time limit, every fourth is a dropped future, every
/// fourth a dropped `RunningCommand`, and every fourth is long enough for several lines.
///
/// Returns after the first failure: the console may be lost.
pub fn give_up(console: &mut VmConsole, seed: u64, times: u32, limit: Duration) -> SoakReport {
    let mut rng = Rng::with_seed(seed);
    let mut order: Vec<u32> = (0..times).collect();
    rng.shuffle(&mut order);
    let mut report = SoakReport::default();
    let began = Instant::now();
    if let Err(failure) = expect_echo(console, 0, PATIENCE) {
        report.failures.push(failure);
        return report;
    }
    let idle = began.elapsed();
    let limit = limit + idle;
    let mut recoveries = Vec::new();
    for (done, n) in order.into_iter().enumerate() {
        let after = LATEST * n / times.max(1);
        let mut text = COMMANDS[rng.usize(..COMMANDS.len())].to_owned();
        let way = rng.usize(..4);
        if way == 3 {
            text = format!(": {}; {text}", "x".repeat(2500));
        }
        let began = Instant::now();
        let ended = match way {
            0 => Some(block_on(console.run(&text, Some(after)))),
            1 => block_on(poll_for(after, console.run(&text, None))),
            _ => match console.spawn(&text, None) {
                Ok(running) => block_on(poll_for(after, running.wait())),
                Err(error) => Some(Err(error)),
            },
        };
        report.given_up[way.min(2)] += 1;
        let given_up = began.elapsed();
        let began = Instant::now();
        let outcome = match ended {
            None | Some(Err(Error::Timeout { .. })) => expect_echo(console, rng.u64(..), limit),
            Some(Ok(reply)) => Err(format!("ended: {reply:?}")),
            Some(Err(error)) => Err(super::explain(&error)),
        };
        recoveries.push(began.elapsed());
        report.longest_recovery = report.longest_recovery.max(began.elapsed());
        if let Err(failure) = outcome {
            let text = super::shorten(&text);
            report.failures.push(format!(
                "give-up {done} of {times}: {text:?} given up after {after:?} (took {given_up:.2?}), \
                 way: {}; then {failure}; echo on the idle console {idle:.2?}, recoveries {recoveries:.2?}",
                super::WAYS[way.min(2)]
            ));
            break;
        }
    }
    report
}
