//! The real cloud-hypervisor under Landlock: it cannot open a file that is not part of its VM, even when
//! its API requests it, as a guest that controls the VMM could do.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use capsa::DiskImage;
use capsa::internal;
use capsa_conformance::Subject;
use capsa_proto::plan::ControlEndpoint;
use capsa_testkit::vm::{NanoGuest, PATIENCE};
use capsa_testkit::{nano, skip};

/// The response to a request for another disk.
fn add_disk(socket: &str, disk: &Path) -> String {
    let body = format!(r#"{{"path":"{}","image_type":"Raw"}}"#, disk.display());
    let mut api = UnixStream::connect(socket).unwrap();
    api.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        api,
        "PUT /api/v1/vm.add-disk HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while !answer.ends_with(b"]") && !answer.ends_with(b"}") {
        match api.read(&mut chunk).unwrap() {
            0 => break,
            n => answer.extend_from_slice(&chunk[..n]),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn landlock_denies_foreign_files() {
    let subject = match Subject::cloud_hypervisor() {
        Ok(subject) => subject,
        Err(why) => return skip(why),
    };
    let guest = NanoGuest::for_any(nano::Nano::default());
    let image = |name: &str| {
        let path = guest.dir().join(name);
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        path
    };
    let (own, base, foreign) = (image("own.raw"), image("base.raw"), image("foreign.raw"));
    let builder = subject
        .on_backend(guest.builder())
        .accelerator(capsa::Accelerator::Kvm)
        .memory_mb(64)
        .disk(DiskImage::new(&own))
        .disk(DiskImage::new(&base).ephemeral());
    let vm = builder.build_blocking().unwrap();
    if vm.launch_plan().notes().iter().any(|note| note.text.contains("no Landlock")) {
        return skip("this kernel has no Landlock, or too old a one");
    }
    vm.start().unwrap();
    let ControlEndpoint::Socket(socket) = &internal::parts(vm.launch_plan()).control.endpoint
    else {
        panic!("cloud-hypervisor has an API socket");
    };
    let refused = add_disk(socket.as_str(), &foreign);
    assert!(refused.contains("Permission denied"), "{refused}");
    // The backing file of its overlay is read-only.
    let refused = add_disk(socket.as_str(), &base);
    assert!(refused.contains("Permission denied"), "{refused}");
    // The VM continues.
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("NANO READY", PATIENCE).unwrap();
    console.write(&[nano::POWER_OFF]).unwrap();
    vm.wait_timeout(PATIENCE).unwrap().expect("it ends");
}
