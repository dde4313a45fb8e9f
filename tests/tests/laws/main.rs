//! Rules for the repository, as tests. A test's name is the rule; a failure names each place that
//! breaks it.

mod corpus;
mod docs;
mod source;
mod wording;

use capsa_testkit::{command, workspace};
use serde_json::Value;
use source::{Source, code, has_word};

/// The crates that are data about one hypervisor each.
const BACKENDS: [&str; 3] = ["capsa-chv", "capsa-qemu", "capsa-vfkit"];

/// Every library crate of the workspace, as a place to look for sources.
const LIBRARIES: [&str; 8] = [
    "capsa-proto/src",
    "capsa-agent/src",
    "capsa-io/src",
    "capsa-net/src",
    "capsa-chv/src",
    "capsa-qemu/src",
    "capsa-vfkit/src",
    "capsa/src",
];

/// Files that may be longer than [`LONG`] lines, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];
const LONG: usize = 600;

#[track_caller]
fn assert_none(law: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{law}:\n  {}", broken.join("\n  "));
}

/// The code lines in `places` that `is_bad`.
fn code_lines(places: &[&str], is_bad: impl Fn(&str) -> bool) -> Vec<String> {
    Source::rust(places).iter().flat_map(|source| source.code_lines(&is_bad)).collect()
}

/// The crates whose root does not have `attribute`, such as `#![no_std]`.
fn roots_without(attribute: &str, crates: &[&str]) -> Vec<String> {
    let roots = crates.iter().map(|name| format!("{name}/src/lib.rs"));
    let missing = roots.filter(|root| {
        let source = &Source::rust(&[root])[0];
        !code(&source.text).lines().any(|line| line == attribute)
    });
    missing.map(|root| format!("{root}:1: no {attribute}")).collect()
}

#[test]
fn proto_is_no_std_without_io() {
    let mut broken = roots_without("#![no_std]", &["capsa-proto"]);
    let reaches_out = |line: &str| {
        let modules = ["std::fs", "std::net", "std::process", "std::thread", "std::env", "std::io"];
        modules.iter().any(|module| has_word(line, module))
            || line.contains("Instant::now")
            || has_word(line, "SystemTime")
            || has_word(line, "tracing")
    };
    let sources = Source::rust(&["capsa-proto/src"]);
    broken.extend(sources.iter().flat_map(|source| source.shipped_lines(reaches_out)));
    assert_none("capsa-proto has no I/O, no clock, no threads and no log", broken);
}

#[test]
fn pure_crates_forbid_unsafe() {
    let crates = [&BACKENDS[..], &["capsa-proto"]].concat();
    assert_none("pure crates forbid unsafe", roots_without("#![forbid(unsafe_code)]", &crates));
}

#[test]
fn backends_do_no_io() {
    let places = BACKENDS.map(|name| format!("{name}/"));
    let broken = code_lines(&places.each_ref().map(String::as_str), |line| {
        let modules = ["std::env", "std::fs", "std::process", "std::net", "std::thread"];
        modules.iter().any(|module| has_word(line, module))
            || ["target_os", "target_arch", "unix", "windows"]
                .iter()
                .any(|os| line.contains("cfg") && has_word(line, os))
    });
    assert_none("a backend spawns, reads and knows nothing of where it runs", broken);
}

#[test]
fn backends_depend_only_on_proto() {
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let metadata = command::output(workspace::cargo().args(arguments)).unwrap();
    let metadata: Value = serde_json::from_slice(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let mut broken = Vec::new();
    for backend in BACKENDS {
        let package = packages.iter().find(|package| package["name"] == backend).unwrap();
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let foreign = dependencies.filter(|dependency| {
            let allowed =
                ["capsa-proto", "serde_json"].iter().any(|name| dependency["name"] == *name);
            dependency["kind"] != "dev" && !allowed
        });
        broken.extend(foreign.map(|one| format!("{backend}/Cargo.toml:1: {}", one["name"])));
    }
    assert_none("a backend depends on capsa-proto, and serde_json to write with", broken);
}

#[test]
fn unsafe_code_only_in_sys() {
    let is_elsewhere = |source: &&Source| {
        let places = ["capsa-io/src/sys/", "capsa-agent/guest/sys/", "fuzz/"];
        !places.iter().any(|place| source.path.starts_with(place))
    };
    let sources = Source::rust(&[""]);
    let elsewhere = sources.iter().filter(is_elsewhere);
    let broken = elsewhere.flat_map(|source| source.code_lines(|line| has_word(line, "unsafe")));
    assert_none(
        "unsafe is written in capsa-io/src/sys and in the guest program's sys",
        broken.collect(),
    );
}

#[test]
fn io_names_no_hypervisor() {
    let mut sources = Source::all();
    sources.retain(|source| source.path.starts_with("capsa-io/"));
    let names = ["qemu", "cloud-hypervisor", "cloud_hypervisor", "vfkit", "chv"];
    let broken = sources.iter().flat_map(|source| {
        source.lines(|line| names.iter().any(|name| line.to_lowercase().contains(name)))
    });
    assert_none("capsa-io knows hypervisors by their plans, not their names", broken.collect());
}

#[test]
fn only_the_cli_handles_signals() {
    let mut sources = Source::all();
    sources.retain(|source| !source.path.starts_with("capsa-cli/"));
    let mut broken = Vec::new();
    for source in &sources {
        if source.is_rust() {
            let ways = ["sigaction", "SigHandler", "signal_hook", "SignalFd", "signalfd", "ctrlc"];
            broken.extend(source.code_lines(|line| ways.iter().any(|way| has_word(line, way))));
        } else if source.path.ends_with("Cargo.toml") && source.path != "Cargo.toml" {
            broken.extend(
                source.lines(|line| line.starts_with("signal-hook") || line.starts_with("ctrlc")),
            );
        }
    }
    assert_none("signal handlers belong to the program, not to a library", broken);
}

#[test]
fn libraries_reap_only_own_children() {
    let broken = code_lines(&LIBRARIES, |line| {
        let any_child = ["waitpid(None", "waitpid(Pid::from_raw(-1)", "Id::All", "WaitId::All"];
        // The flags of `clone` name the signal of the child's exit.
        let names_signal = has_word(line, "SIGCHLD") && !line.contains("CLONE_VFORK");
        any_child.iter().any(|call| line.contains(call)) || names_signal
    });
    assert_none("only children that we started are waited for, each by its id", broken);
}

#[test]
fn default_build_has_at_most_45_packages() {
    let packages = workspace::tree("capsa-vm", &[]).unwrap();
    let names = packages.iter().filter_map(|package| package.split(' ').next());
    let reactors =
        names.filter(|name| ["tokio", "mio", "smol", "async-global-executor"].contains(name));
    assert_none("one reactor: polling", reactors.map(str::to_owned).collect());
    assert!(packages.len() <= 45, "{} packages: {packages:?}", packages.len());
}

#[test]
fn embed_build_has_at_most_36_packages() {
    let packages = workspace::tree("capsa-vm", &["--no-default-features"]).unwrap();
    assert!(packages.len() <= 36, "{} packages: {packages:?}", packages.len());
}

#[test]
fn features_are_additive() {
    let broken = code_lines(&LIBRARIES, |line| {
        let takes_away = ["not(feature", "not(any(feature", "not(all(feature", "!cfg!(feature"];
        takes_away.iter().any(|way| line.contains(way))
    });
    assert_none("a feature never changes or removes what exists", broken);
}

#[test]
fn feature_gated_items_have_doc_cfg() {
    let mut broken = Vec::new();
    for source in Source::rust(&["capsa/src", "capsa-proto/src"]) {
        let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
        for (n, line) in lines.iter().enumerate() {
            if !line.starts_with("#[cfg(")
                || !line.contains("feature =")
                || line.contains("\"fuzz\"")
            {
                continue;
            }
            let rest = &lines[n + 1..];
            let is_attribute = |line: &&&str| line.starts_with("#[") || line.starts_with("///");
            let attributes = rest.iter().take_while(is_attribute).count();
            let is_public = rest.get(attributes).is_some_and(|item| item.starts_with("pub "));
            let is_shown = rest[..attributes].iter().any(|line| line.contains("docsrs, doc(cfg("));
            if is_public && !is_shown {
                broken.push(format!("{}:{}: {line}", source.path, n + 1));
            }
        }
    }
    assert_none("rustdoc says which feature a public item needs", broken);
}

#[test]
fn files_start_with_module_docs() {
    let sources = Source::rust(&[""]);
    let silent = sources.iter().filter(|source| !source.text.starts_with("//!"));
    let places = silent.map(|source| format!("{}:1: no module header", source.path));
    assert_none("the first line of a file is `//!`", places.collect());
}

#[test]
fn sources_have_no_todo_notes() {
    // In halves, so that this file does not break its own law.
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let mut broken = Vec::new();
    for source in Source::all() {
        broken.extend(source.lines(|line| notes.iter().any(|note| has_word(line, note))));
        if source.is_rust() {
            let stubs = ["todo!", "unimplemented!"];
            broken.extend(source.code_lines(|line| stubs.iter().any(|stub| line.contains(stub))));
        }
    }
    assert_none("code that is not written yet returns an error, and has no `todo!`", broken);
}

#[test]
fn tests_are_never_ignored() {
    let broken = code_lines(&[""], |line| {
        line.contains("#[ignore") || line.contains("#[cfg_attr") && has_word(line, "ignore")
    });
    assert_none("a test that cannot run calls capsa_testkit::skip, which is counted", broken);
}

#[test]
fn files_have_at_most_600_lines() {
    let mut broken = Vec::new();
    for source in Source::rust(&[""]) {
        let lines = source.text.lines().count();
        let excused = LONG_FILES.iter().any(|(path, _)| *path == source.path);
        if (lines > LONG) != excused {
            broken.push(format!("{}:{lines}: excused is {excused}", source.path));
        }
    }
    assert_none("past 600 lines a second idea has moved in, or the excuse is stale", broken);
}

#[test]
fn sources_name_no_private_paths() {
    let foreign = [concat!("/ro", "ot/"), concat!("/tmp", "/w/"), concat!("/wo", "rk/shared")];
    let is_absolute = |line: &str, path: &str| {
        let continues = |c: char| c.is_alphanumeric() || "_-./}".contains(c);
        line.match_indices(path).any(|(at, _)| !line[..at].ends_with(continues))
    };
    let sources = Source::all();
    let broken = sources
        .iter()
        .flat_map(|source| source.lines(|line| foreign.iter().any(|path| is_absolute(line, path))));
    assert_none("paths are relative, or made at run time", broken.collect());
}
