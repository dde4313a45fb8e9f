//! The requests: every call that Capsa makes, in the right order and in every wrong order.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use capsa_testkit::nano::{self, Nano};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::driver::TranscriptSession;

/// The ends of invalid command lines.
pub(crate) fn command_lines(program: &Path) -> Vec<Value> {
    let lines = [
        "--bogus",
        "extra",
        "--api-socket",
        "--api-socket path=/nowhere/at/all/api.sock",
        "--api-socket path=/nowhere/at/all/api.sock --seccomp perhaps",
        "--api-socket path=/nowhere/at/all/api.sock --event-monitor",
    ];
    let end = |line: &str| {
        let mut command = Command::new(program);
        command.args(line.split(' ')).stdin(Stdio::null());
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        json!({ "request": line, "exit": status.code() })
    };
    lines.map(end).into()
}

pub(crate) fn sessions(program: &Path) -> Vec<Value> {
    vec![
        without_vm(TranscriptSession::start(program)),
        bodies(TranscriptSession::start(program)),
        refused_boots(TranscriptSession::start(program)),
        a_whole_life(TranscriptSession::start(program)),
        a_guest_that_powers_off(TranscriptSession::start(program)),
        a_guest_that_resets(TranscriptSession::start(program)),
    ]
}

const CALLS: [&str; 8] =
    ["boot", "pause", "resume", "power-button", "shutdown", "reboot", "delete", "counters"];

/// A VM with a guest that ignores its power button: the nano guest expects the button at an address
/// where one of the two programs does not have it.
fn vm(session: &TranscriptSession) -> Value {
    let kernel = Nano { power_button: false }.write_to(session.path("")).unwrap();
    json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
        "memory": { "size": 64 << 20 },
        "payload": { "kernel": kernel, "cmdline": "x=1" },
        "serial": { "mode": "Tty" },
        "console": { "mode": "Off" },
        "pvpanic": true,
    })
}

fn put(session: &mut TranscriptSession, call: &str) {
    session.ask("PUT", &format!("/api/v1/vm.{call}"), None);
}

fn create(session: &mut TranscriptSession, vm: &Value) {
    session.ask("PUT", "/api/v1/vm.create", Some(&vm.to_string()));
}

fn info(session: &mut TranscriptSession) {
    session.ask("GET", "/api/v1/vm.info", None);
}

fn quit(mut session: TranscriptSession, name: &str) -> Value {
    session.ask("PUT", "/api/v1/vmm.shutdown", None);
    session.end(name)
}

fn without_vm(mut session: TranscriptSession) -> Value {
    session.ask("GET", "/api/v1/vmm.ping", None);
    info(&mut session);
    for call in CALLS {
        put(&mut session, call);
    }
    session.ask("GET", "/api/v1/vm.counters", None);
    for (method, path) in [
        ("GET", "/"),
        ("PUT", "/api/v1/nothing"),
        ("PUT", "/api/v1/vmm.ping"),
        ("PUT", "/api/v1/vm.info"),
        ("GET", "/api/v1/vm.boot"),
        ("GET", "/api/v1/vm.create"),
        ("PATCH", "/api/v1/vm.boot"),
        ("DELETE", "/api/v1/vmm.ping"),
        ("POST", "/api/v1/vm.boot"),
    ] {
        session.ask(method, path, None);
    }
    session.ask("PUT", "/api/v1/vm.delete", Some("{}"));
    for line in [
        "hello",
        "GET /api/v1/vmm.ping HTTP/2.0",
        "GET  HTTP/1.1",
        "GET /api/v1/vmm.ping HTTP/1.1\r\nno header",
        "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 99999999",
        "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: many",
        "GET /api/v1/vmm.ping HTTP/1.0",
    ] {
        session.send_bytes(line, &format!("{line}\r\n\r\n"));
    }
    quit(session, "without a VM")
}

fn bodies(mut session: TranscriptSession) -> Value {
    session.ask("PUT", "/api/v1/vm.create", None);
    for body in [
        "",
        "{",
        "7",
        r#"{"cpus":3}"#,
        r#"{"cpus":{"boot_vcpus":"x"}}"#,
        r#"{"cpus":{"boot_vcpus":1}}"#,
        r#"{"memory":{"size":-1}}"#,
        r#"{"memory":{}}"#,
        r#"{"payload":{"kernel":7}}"#,
        r#"{"disks":[{"path":3}]}"#,
        r#"{"disks":[{"path":"/d","image_type":"raw"}]}"#,
        r#"{"fs":[{"tag":"t"}]}"#,
        r#"{"serial":{"mode":"Foo"}}"#,
        r#"{"vsock":{"cid":3}}"#,
        r#"{"pvpanic":"yes"}"#,
    ] {
        session.ask("PUT", "/api/v1/vm.create", Some(body));
    }
    // Unknown fields are accepted silently.
    let mut unknown = vm(&session);
    unknown["paylod"] = json!({ "kernel": "/k" });
    unknown["payload"]["kernl"] = json!("/k");
    create(&mut session, &unknown);
    info(&mut session);
    create(&mut session, &unknown);
    put(&mut session, "delete");
    let mut full = vm(&session);
    full["memory"]["shared"] = json!(true);
    full["payload"]["initramfs"] = json!("/i");
    full["disks"] = json!([{ "path": "/d", "image_type": "Qcow2", "backing_files": true }]);
    full["net"] = json!([{ "vhost_user": true, "vhost_socket": "/n", "mac": "52:54:00:12:34:56" }]);
    full["fs"] = json!([{ "tag": "t", "socket": "/f" }]);
    full["vsock"] = json!({ "cid": 3, "socket": "/v" });
    create(&mut session, &full);
    info(&mut session);
    quit(session, "bodies of vm.create")
}

fn refused_boots(mut session: TranscriptSession) -> Value {
    let file = |session: &TranscriptSession, name: &str, bytes: &[u8]| {
        let path = session.path(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let short = file(&session, "short", b"\x7fELF and no more");
    let rubbish = file(&session, "rubbish", &b"rubbish ".repeat(1000));
    let raw = file(&session, "raw", &[0; 4096]);
    for payload in [
        json!({ "kernel": "/nowhere" }),
        json!({ "kernel": short }),
        json!({ "kernel": rubbish }),
        json!({}),
        json!({ "kernel": "/k", "firmware": "/f" }),
    ] {
        let mut refused = vm(&session);
        refused["payload"] = payload;
        create(&mut session, &refused);
        put(&mut session, "boot");
        info(&mut session);
        for call in ["boot", "pause", "resume", "shutdown", "delete"] {
            put(&mut session, call);
        }
    }
    for (key, change) in [
        ("cpus", json!({ "boot_vcpus": 2, "max_vcpus": 1 })),
        ("disks", json!([{ "path": "/nowhere", "image_type": "Raw" }])),
        ("disks", json!([{ "path": raw, "image_type": "Qcow2" }])),
        ("fs", json!([{ "tag": "t", "socket": "/nowhere" }])),
        ("net", json!([{ "vhost_user": true, "vhost_socket": "/nowhere" }])),
        ("vsock", json!({ "cid": 1, "socket": "/nowhere" })),
    ] {
        let mut refused = vm(&session);
        refused[key] = change;
        create(&mut session, &refused);
        put(&mut session, "boot");
        put(&mut session, "delete");
    }
    let mut initramfs = vm(&session);
    initramfs["payload"]["initramfs"] = json!("/nowhere");
    let mut no_socket = vm(&session);
    no_socket["memory"]["shared"] = json!(true);
    no_socket["net"] = json!([{ "vhost_user": true }]);
    let mut landlock = vm(&session);
    landlock["landlock_rules"] = json!([{ "path": "/nowhere", "access": "rw" }]);
    for refused in [initramfs, no_socket, landlock] {
        create(&mut session, &refused);
        put(&mut session, "boot");
        put(&mut session, "delete");
    }
    quit(session, "boots that are refused")
}

fn a_whole_life(mut session: TranscriptSession) -> Value {
    let vm = vm(&session);
    create(&mut session, &vm);
    info(&mut session);
    for call in ["pause", "resume", "power-button", "shutdown"] {
        put(&mut session, call);
    }
    put(&mut session, "boot");
    info(&mut session);
    session.wait_for("NANO READY\r\n");
    for call in ["boot", "resume", "pause"] {
        put(&mut session, call);
    }
    info(&mut session);
    for call in ["pause", "power-button", "reboot"] {
        put(&mut session, call);
    }
    info(&mut session);
    session.wait_for("NANO READY\r\n");
    put(&mut session, "pause");
    put(&mut session, "resume");
    session.ask("GET", "/api/v1/vm.counters", None);
    put(&mut session, "power-button");
    put(&mut session, "shutdown");
    info(&mut session);
    put(&mut session, "shutdown");
    put(&mut session, "boot");
    session.wait_for("NANO READY\r\n");
    put(&mut session, "delete");
    info(&mut session);
    put(&mut session, "delete");
    create(&mut session, &vm);
    put(&mut session, "boot");
    quit(session, "a whole life")
}

fn a_guest_that_powers_off(mut session: TranscriptSession) -> Value {
    let vm = vm(&session);
    create(&mut session, &vm);
    put(&mut session, "boot");
    session.wait_for("NANO READY\r\n");
    session.write(&[nano::POWER_OFF]);
    session.end("a guest that powers off")
}

fn a_guest_that_resets(mut session: TranscriptSession) -> Value {
    let vm = vm(&session);
    create(&mut session, &vm);
    put(&mut session, "boot");
    session.wait_for("NANO READY\r\n");
    session.write(&[nano::RESET]);
    session.wait_for("NANO READY\r\n");
    session.wait_for_event("rebooted");
    info(&mut session);
    session.signal(Signal::SIGTERM);
    session.end("a guest that resets, and SIGTERM from outside")
}
