//! A rig for the network stack without a VM: the kernel of this host is the guest.
//!
//! A [`Namespace`] is a network of its own, and exists while its [`Namespace`] does. One of them is the
//! guest: its card is a tap device, and a stack under test has the descriptor. Another one is the host, where
//! the sockets of the stack are, and a third one a remote network. Nothing touches the network of this host:
//!
//! ```text
//!   guest ── tap ── stack in the host ── veth ── remote
//! ```
//!
//! - `name_server`: the name server of the host.
//! - [`namespace`]: creates namespaces and runs programs in them.
//! - [`peers`]: slirp4netns and pasta as stacks.
//! - [`rig`]: all of the above together.
//! - [`server`]: the servers of the measurements and tests.
//! - [`stack`]: the stack of Capsa in a process of its own.
//! - [`traffic`]: what a guest does, and the protocol with the servers.
//!
//! The program `network-rig` runs these modules in processes of their own: a process changes its namespace
//! before it has threads.

#![cfg(target_os = "linux")]

mod bench;
mod engine;
mod goals;
mod name_server;
pub mod namespace;
pub mod peers;
pub mod rig;
pub mod server;
pub mod stack;
pub mod traffic;

/// The error of everything here.
pub type RigError = Box<dyn std::error::Error + Send + Sync>;

use capsa_fixtures::task::Arguments;
pub use namespace::Namespace;

/// Runs the program `network-rig`: `bench`, `engine`, `hold`, `in`, `unprivileged`, `serve`, `stack` or `traffic`.
pub fn main() -> std::process::ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let text: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let text: Vec<&str> = text.iter().map(|word| &**word).collect();
    let outcome = match text[..] {
        ["hold", kind] => namespace::hold(kind),
        ["in", pid, _, ..] => Err(namespace::join(pid, &words[2], &words[3..])),
        ["unprivileged", _, ..] => Err(namespace::drop_privileges(&words[1], &words[2..])),
        ["bench", ..] => run_bench(&words[1..]),
        ["engine"] => run_engine(),
        ["serve"] => server::serve(),
        ["stack", mtu, options] => stack::run(mtu, options),
        ["traffic", name, server, n] => run_traffic(name, server, n),
        _ => Err(format!("unknown arguments {text:?}").into()),
    };
    let Err(error) = outcome else { return std::process::ExitCode::SUCCESS };
    eprintln!("{error}");
    std::process::ExitCode::FAILURE
}

fn run_traffic(name: &str, server: &str, n: &str) -> Result<(), RigError> {
    traffic::run(name, server.parse()?, n.parse()?)
}

fn run_bench(arguments: &[std::ffi::OsString]) -> Result<(), RigError> {
    bench::run(&std::env::current_exe()?, Arguments::from_vec(arguments.to_vec()))
}

fn run_engine() -> Result<(), RigError> {
    let cost = engine::measure()?;
    println!("idle_flow {}\nlookup_ratio {}", cost.idle_flow, cost.lookup_ratio);
    println!("beyond_cap {}", cost.beyond_cap);
    println!("verdict {}\nrefused_query {}", cost.verdict, cost.refused_query);
    println!("cached_query {}", cost.cached_query);
    Ok(())
}
