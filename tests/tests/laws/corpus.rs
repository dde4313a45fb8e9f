//! The committed fuzz corpus, replayed on stable: what a fuzzer once found or was started with
//! holds the laws in every ordinary test run.

use std::fs;

use capsa_cli::fuzz;
use capsa_proto::{agent, cmdline, codec, console, lifecycle, policy, qcow2, vm};
use capsa_testkit::workspace;

type Body = fn(&[u8]);

const TARGETS: [(&str, Body); 23] = [
    ("agent_client", agent::fuzz::client),
    ("agent_server", agent::fuzz::server),
    ("asciicast", codec::fuzz::asciicast),
    ("cmdline", cmdline::fuzz::run),
    ("config", fuzz::config),
    ("console_ansi", console::fuzz::ansi),
    ("console_matching", console::fuzz::matching),
    ("console_scripts", console::fuzz::scripts),
    ("dhcp", capsa_net::fuzz::dhcp),
    ("dns", capsa_net::fuzz::dns),
    ("duration", fuzz::duration),
    ("http", codec::fuzz::http),
    ("inspect", capsa_net::fuzz::inspect),
    ("json_stream", codec::fuzz::json_stream),
    ("lifecycle", lifecycle::fuzz::run),
    ("network", capsa_net::fuzz::network),
    ("packets", capsa_net::fuzz::packets),
    ("policy", policy::fuzz),
    ("qcow2", qcow2::fuzz),
    ("qmp", codec::fuzz::qmp),
    ("size", fuzz::size),
    ("vhost", capsa_net::vhost::fuzz::vhost),
    ("vm", vm::simulate::run),
];

/// The sorted names in a directory of `fuzz/`.
fn names_in(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(workspace::root().join("fuzz").join(directory)).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn corpus_seeds_hold_the_laws() {
    for (target, body) in TARGETS {
        let directory = format!("corpus/{target}");
        for seed in names_in(&directory) {
            let path = workspace::root().join("fuzz").join(&directory).join(&seed);
            let data = fs::read(path).unwrap();
            let held = std::panic::catch_unwind(|| body(&data));
            assert!(held.is_ok(), "broken by fuzz/{directory}/{seed}");
        }
    }
}

#[test]
fn corpus_covers_every_fuzz_target() {
    let replayed = TARGETS.map(|(target, _)| target);
    assert_eq!(names_in("corpus"), replayed);
    assert_eq!(names_in("fuzz_targets"), replayed.map(|target| format!("{target}.rs")));
    for target in replayed {
        assert!(names_in(&format!("corpus/{target}")).len() >= 3, "{target} has too few seeds");
    }
}
