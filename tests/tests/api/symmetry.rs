//! The async, the blocking and the embedded API name the same call alike.
//!
//! The methods are read from the listing, `docs/api/capsa.txt`, which another test compares with the
//! sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use capsa_testkit::workspace;

/// What only the async and blocking APIs have, and what an event loop calls instead.
const NOT_IN_EMBED: [(&str, &[&str]); 8] = [
    ("an operation is a value: `begin_operation`", &["exec<I, S>", "read_file", "write_file"]),
    ("the owner of the loop waits: `poll_event`", &["wait", "wait_timeout", "keep_running"]),
    ("a console is a reader of the VM: `add_reader`", &["console", "reader", "split", "log_to"]),
    ("every wait takes a timeout", &["login_timeout", "run_command_timeout"]),
    ("`wait_for_any` with one pattern", &["wait_for", "wait_for_timeout"]),
    ("`wait_for_any_pattern` with one pattern", &["wait_for_pattern"]),
    ("the loop has its own timeout", &["vsock_connect_timeout"]),
    ("bytes for `write`", &["write_str", "write_line", "send_interrupt", "send_eof", "record"]),
];

/// What only the embedded API has: the driving of the VM, readers by their ids, and waits by theirs.
const ONLY_IN_EMBED: [&[&str]; 4] = [
    &["next_timeout", "on_ready", "poll_event"],
    &[
        "add_reader",
        "add_observer",
        "clone_reader",
        "remove_reader",
        "name_reader",
        "blocking_reader",
        "take",
        "lost",
        "scrollback",
        "is_console_closed",
        "is_pausing",
    ],
    &["take_output", "take_ended", "cancel"],
    &[
        "agent_state",
        "begin_operation",
        "write_input",
        "end_input",
        "read_operation",
        "ignore_operation_output",
        "kill_command",
        "signal_command",
        "resize_command",
        "command_pid",
        "operation_end",
        "cancel_operation",
        "drop_operation",
    ],
];

/// The methods of a type, each with its parameters.
fn methods(type_name: &str) -> BTreeMap<String, String> {
    let listing = fs::read_to_string(workspace::root().join("docs/api/capsa.txt")).unwrap();
    let is_head =
        |line: &&str| line.split(' ').any(|word| word.split('<').next() == Some(type_name));
    let members =
        listing.lines().skip_while(|line| line.starts_with(' ') || !is_head(line)).skip(1);
    let members = members.take_while(|line| line.starts_with(' '));
    let found: BTreeMap<_, _> = members
        .filter_map(|line| line.split_once("fn ")?.1.split_once('('))
        .map(|(name, rest)| {
            let parameters =
                rest.split(" -> ").next().unwrap_or_default().replace("mut self", "self");
            (name.to_owned(), parameters)
        })
        .collect();
    assert!(!found.is_empty(), "{type_name} has no methods in the listing");
    found
}

#[test]
fn blocking_api_has_methods_of_async_api() {
    for (name, module) in [
        ("VmHandle", ""),
        ("VmConsole", ""),
        ("RunningCommand", "console::"),
        ("ConsoleReader", "console::"),
        ("Lines", "console::"),
        ("Command", "exec::"),
        ("Child", "exec::"),
    ] {
        let mut of_async = methods(&format!("capsa::{module}{name}"));
        let mut blocking = methods(&format!("capsa::blocking::{name}"));
        // The handle that the blocking one wraps, and `io::Read`.
        blocking.remove("as_async");
        if name == "RunningCommand" {
            of_async.remove("read");
        }
        assert_eq!(of_async, blocking, "{name}");
    }
}

#[test]
fn embed_names_calls_as_async_api() {
    let names = |name: &str| methods(name).into_keys().collect::<BTreeSet<_>>();
    let of_async = &names("capsa::VmHandle") | &names("capsa::VmConsole");
    let embed = names("capsa::embed::Vm");
    let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    let other = NOT_IN_EMBED.iter().flat_map(|(_, names)| owned(names)).collect();
    let added = ONLY_IN_EMBED.iter().flat_map(|names| owned(names)).collect();
    assert_eq!(&of_async - &embed, other, "methods that embed::Vm does not have");
    assert_eq!(&embed - &of_async, added, "methods that embed::Vm alone has");
}
