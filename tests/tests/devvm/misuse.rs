//! Invalid files, occupied sockets, clients that misbehave, and signals.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::service::{Client, DevvmService, command, command_behind, description};
use capsa_testkit::nano;
use capsa_testkit::vm::{NanoGuest, PATIENCE, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

const READY: &str = "NANO READY\r\n";

/// The error text of a service that does not start.
fn start_error(guest: &NanoGuest, file: &str) -> String {
    let ended = command(guest, file).output().unwrap();
    assert!(!ended.status.success());
    assert!(ended.stdout.is_empty());
    String::from_utf8(ended.stderr).unwrap()
}

#[test]
fn config_invalid_error_names_file_and_line() {
    let Some(guest) = NanoGuest::new() else { return };
    let one = description(&guest).to_string();
    for (file, why) in [
        ("{".to_owned(), "line 1 column 1"),
        ("[]".to_owned(), "line 1 column"),
        (r#"{"a": {"kernel": 5}}"#.to_owned(), "expected path string"),
        (r#"{"a": {}}"#.to_owned(), "missing field `kernel`"),
        (format!("{{\"a\": {}}}", one.replace("\"offline\"", "\"ofline\"")), "ofline"),
        (format!("{{\"a\": {one}, \"b\": {one}, \"a\": {one}}}"), "duplicate VM name a"),
    ] {
        let error = start_error(&guest, &file);
        assert!(error.contains("vms.json") && error.contains(why), "{file}: {error}");
    }
}

#[test]
fn socket_stale_is_replaced_in_use_is_not() {
    let Some(guest) = NanoGuest::new() else { return };
    let file = json!({ "web": description(&guest) }).to_string();
    let killed = DevvmService::of(&guest, &mut command(&guest, &file));
    killed.attach("web").until(READY);
    let error = start_error(&guest, &file);
    assert!(error.contains("in use"), "{error}");
    killed.attach("web").until(READY);
    drop(killed);
    assert!(guest.dir().join("socket").exists(), "the socket is left by a killed service");
    let service = DevvmService::of(&guest, &mut command(&guest, &file));
    service.attach("web").until(READY);
    assert_eq!(service.hypervisors(), 1);
}

#[test]
fn socket_path_with_regular_file_is_kept() {
    let Some(guest) = NanoGuest::new() else { return };
    let file = guest.dir().join("socket");
    std::fs::write(&file, "precious").unwrap();
    let error = start_error(&guest, "{}");
    assert!(error.contains("in use"), "{error}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
}

#[test]
fn clients_idle_are_disconnected() {
    let Some(guest) = NanoGuest::new() else { return };
    let file = json!({ "web": description(&guest) }).to_string();
    // A low limit of descriptors.
    let mut command = command_behind("ulimit -n 100;", &guest, &file);
    let mut service = DevvmService::of(&guest, &mut command);
    service.attach("web").until(READY);
    let idle: Vec<_> = (0..120).map(|_| service.connect().unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(service.process.try_wait().unwrap(), None, "the service has ended");
    drop(idle);
    service.attach("web").until(READY);

    // The service disconnects idle clients.
    let mut idle: Vec<_> = (0..120).map(|_| service.connect().unwrap()).collect();
    assert_eq!(idle[0].read(&mut [0]).unwrap(), 0);
    assert_eq!(service.ask("list").rest(), "web running\n");
    service.signal(Signal::SIGTERM);
    assert!(service.process.wait().unwrap().success());
}

#[test]
fn clients_100_get_same_output_despite_idle_ones() {
    let Some(guest) = NanoGuest::new() else { return };
    let mut service = DevvmService::start(&guest);
    let mut clients: Vec<Client> = (0..100).map(|_| service.attach("web")).collect();
    let _idle: Vec<Client> = (0..20).map(|_| service.ask("attach web")).collect();
    clients[0].until(READY);
    // More than a socket holds, and less than the scrollback holds.
    clients[0].input.write_all(&[nano::FLOOD; 10]).unwrap();
    clients[0].input.write_all(b"the end").unwrap();
    for client in &mut clients {
        let output = client.until("the end");
        assert!(output.len() >= 10 * nano::flood().len(), "{}", output.len());
    }
    service.attach("db").until(READY);
    service.signal(Signal::SIGTERM);
    assert!(service.process.wait().unwrap().success());
    assert_eq!(service.hypervisors(), 0);
}

#[test]
fn client_input_during_restart_is_harmless() {
    let Some(guest) = NanoGuest::new() else { return };
    let service = DevvmService::start(&guest);
    for _ in 0..3 {
        let mut client = service.attach("web");
        client.until(READY);
        let restart = service.ask("restart web");
        let also = service.ask("restart web");
        // Until the service closes the connection of the old VM.
        let begun = Instant::now();
        while client.input.write_all(b"typing").is_ok() {
            assert!(begun.elapsed() < PATIENCE, "the client is still attached");
        }
        assert_eq!((restart.rest(), also.rest()), ("ok\n".to_owned(), "ok\n".to_owned()));
        assert_eq!(service.hypervisors(), 2);
    }
    service.attach("web").until(READY);
    service.attach("db").until(READY);
}

#[test]
fn requests_invalid_get_error_replies() {
    let Some(guest) = NanoGuest::new() else { return };
    let service = DevvmService::start(&guest);
    let long = "x".repeat(5000);
    for line in ["", " ", "attach", "attach ", "list web x", "\u{0}", "ATTACH web", &long] {
        let answer = service.ask(line).rest();
        assert!(answer.starts_with("error: ") || line.starts_with("list"), "{line:?}: {answer:?}");
    }
    let mut client = service.connect().unwrap();
    client.write_all(b"attach \xff\xfe\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("error: "), "{answer:?}");
}

#[test]
fn sigterm_during_boot_stops_all_vms() {
    let Some(guest) = NanoGuest::new() else { return };
    for pause in [0, 1, 5, 20, 60] {
        let mut service = DevvmService::start(&guest);
        std::thread::sleep(Duration::from_millis(pause));
        service.signal(Signal::SIGTERM);
        assert!(service.process.wait().unwrap().success(), "{pause}");
        eventually("all VMMs have exited", || service.hypervisors() == 0);
    }
}

#[test]
fn stderr_closed_does_not_end_service() {
    let Some(guest) = NanoGuest::new() else { return };
    let missing = json!({ "kernel": "/nowhere/vmlinuz", "initrd": "/i", "rootfs": "/r" });
    let file = json!({ "missing": missing, "web": description(&guest) }).to_string();
    let mut command = command(&guest, &file);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut service = DevvmService::of(&guest, command.stderr(Stdio::from(writer)));
    drop(command);
    service.attach("web").until(READY);
    service.signal(Signal::SIGTERM);
    assert!(service.process.wait().unwrap().success());
}
