//! `cargo xtask bench start`: compares the start of a VM with a direct control of cloud-hypervisor.
//!
//! Both start the nano guest, in turn: directly (spawn, `vm.create`, `vm.boot`) with the arguments,
//! descriptors and bodies of the plan, and through Capsa.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use capsa::{Accelerator, ConsoleMode, LinuxVmBuilder};
use capsa_fixtures::nano::Nano;
use capsa_fixtures::task::{Arguments, Outcome, finish};
use capsa_proto::plan::Body;
use capsa_testkit::vm::NanoGuest;

use super::{Result, in_turn, median, spawned};

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
    let (mut directs, mut capsas) = (Vec::new(), Vec::new());
    in_turn(
        pairs,
        || direct(&builder),
        || with_capsa(&builder),
        |direct, capsa| {
            directs.push(direct * 1e3);
            capsas.push(capsa * 1e3);
        },
    )?;
    let (direct, capsa) = (median(&mut directs), median(&mut capsas));
    println!("start to running, medians of {pairs} pairs");
    println!("direct {direct:.2} ms, capsa {capsa:.2} ms, difference {:.2} ms", capsa - direct);
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
    let parts = capsa::internal::parts(&plan);
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("api.sock");
    let listener = UnixListener::bind(&socket)?;
    let (_events, events_end) = std::io::pipe()?;
    spawned(&plan, vec![listener.into(), events_end.into()], || {
        for message in &parts.boot {
            let Body::Http { method, path, body } = &message.body else {
                return Err("the plan does not use HTTP".into());
            };
            let body = body.as_ref().map(ToString::to_string).unwrap_or_default();
            let mut stream = UnixStream::connect(&socket)?;
            write!(
                stream,
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
            expect_no_content(stream)?;
        }
        Ok(())
    })
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
