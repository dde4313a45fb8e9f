//! The name server of the rig's host: each name has the address of the remote network.
//!
//! It answers names that no policy allows too, and keeps a list of all: a query that should not have left a
//! stack is seen.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, UdpSocket};
use std::sync::Mutex;

use capsa_net::wire::dns::{
    self, DnsQuery, DnsRecord, DnsResponse, InvalidQuery, ResponseCode, record_type,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::RigError;
use crate::rig::REMOTE;

/// The names that were asked for.
static ASKED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The names that were asked for since the start, one a line.
pub(crate) fn asked() -> String {
    let names = ASKED.lock().expect("no thread panics with it");
    names.iter().map(|name| format!("{name}\n")).collect()
}

/// Opens the port of the server.
pub(crate) fn open() -> std::io::Result<UdpSocket> {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, dns::PORT))
}

/// Answers until the process ends.
pub(crate) fn serve(socket: &UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        let answer = match DnsQuery::parse(&buffer[..len]) {
            Ok(query) => answer(&query),
            Err(InvalidQuery::Answer(answer)) => answer,
            Err(InvalidQuery::NoQuery) => continue,
        };
        let _ = socket.send_to(&answer, from);
    }
}

fn answer(query: &DnsQuery) -> Vec<u8> {
    let name = &query.question.name;
    ASKED.lock().expect("no thread panics with it").extend(name.to_text());
    let address = REMOTE[0].parse().expect("an address");
    let record = DnsRecord::address(name.clone(), address, 300);
    let records = match query.question.record_type {
        record_type::A => vec![record],
        _ => Vec::new(),
    };
    let response = DnsResponse {
        query,
        code: ResponseCode::NoError,
        is_authoritative: false,
        records: &records,
        negative_ttl: None,
        error: None,
    };
    response.write(512)
}

/// Makes the server that of this process, which has one thread: a directory with the configuration of the
/// resolver, and nothing else, covers `/etc`.
pub(crate) fn use_for_names() -> Result<(), RigError> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("etc"), "/etc", Some("tmpfs"), MsFlags::empty(), none)?;
    std::fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    std::fs::write("/etc/nsswitch.conf", "hosts: dns\n")?;
    Ok(())
}
