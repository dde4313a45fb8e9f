//! `cargo xtask bench start`: compares the start of a VM with a direct control of cloud-hypervisor.
//!
//! Both start the nano guest, in turn: directly (spawn, connect, `vm.create`, `vm.boot`) with the
//! arguments and bodies of the plan, and through Capsa.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use capsa::plan::Body;
use capsa::run_dir::RunDir;
use capsa::{Accelerator, ConsoleMode, LinuxVmBuilder};
use capsa_fixtures::nano::Nano;
use capsa_testkit::vm::NanoGuest;

use super::{connect, median};
use capsa_fixtures::task::{Arguments, Outcome, finish};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let pairs: usize = arguments.opt_value_from_str("--pairs")?.unwrap_or(30);
    finish(arguments)?;
    let guest = NanoGuest::for_any(Nano::default());
    let builder = guest
        .builder()
        .backend("cloud-hypervisor")
        .accelerator(Accelerator::Kvm)
        .memory_mb(64)
        .console(ConsoleMode::Disabled);
    let mut hands = Vec::new();
    let mut throughs = Vec::new();
    for pair in 0..pairs + 1 {
        let (hand, through) = if pair % 2 == 0 {
            let hand = direct(&builder)?;
            (hand, with_capsa(&builder)?)
        } else {
            let through = with_capsa(&builder)?;
            (direct(&builder)?, through)
        };
        // The first is a warm-up.
        if pair > 0 {
            hands.push(hand.as_secs_f64() * 1e3);
            throughs.push(through.as_secs_f64() * 1e3);
        }
    }
    let (hand, through) = (median(&mut hands), median(&mut throughs));
    println!("start to running, medians of {pairs} pairs");
    println!("direct {hand:.2} ms, capsa {through:.2} ms, difference {:.2} ms", through - hand);
    Ok(())
}

fn with_capsa(builder: &LinuxVmBuilder) -> Result<Duration> {
    let vm = builder.clone().build_blocking()?;
    let begin = Instant::now();
    vm.start()?;
    let took = begin.elapsed();
    vm.kill()?;
    Ok(took)
}

fn direct(builder: &LinuxVmBuilder) -> Result<Duration> {
    let plan = builder.plan()?;
    let _run_dir = RunDir::create(Path::new(plan.run_dir.as_str()))?;
    let hypervisor = plan.processes.last().ok_or("the plan has no hypervisor")?;
    let begin = Instant::now();
    let mut process = Command::new(&hypervisor.program)
        .args(&hypervisor.args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", hypervisor.program))?;
    let took = (|| {
        for message in &plan.boot {
            let Body::Http { method, path, body } = &message.body else {
                return Err("the plan does not use HTTP".into());
            };
            let body = body.as_ref().map(ToString::to_string).unwrap_or_default();
            let mut stream = connect(plan.control.socket.as_str())?;
            write!(
                stream,
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
            expect_no_content(stream)?;
        }
        Ok(begin.elapsed())
    })();
    process.kill()?;
    process.wait()?;
    took
}

fn expect_no_content(mut stream: UnixStream) -> Result<()> {
    let (mut reply, mut chunk) = (Vec::new(), [0; 1024]);
    while !reply.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut chunk)? {
            0 => break,
            n => reply.extend_from_slice(&chunk[..n]),
        }
    }
    let reply = String::from_utf8_lossy(&reply);
    if reply.starts_with("HTTP/1.1 204") { Ok(()) } else { Err(reply.into_owned().into()) }
}
