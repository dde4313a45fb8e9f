//! Handshakes and requests in honest and odd forms.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use capsa_proto::policy::VerdictReason as Reason;
use proptest::prelude::*;

use super::*;

/// A ClientHello with these extensions, as a handshake message.
fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(32);
    body.extend([8; 32]);
    body.extend([0, 2, 0x13, 0x01, 1, 0]);
    let mut all = Vec::new();
    for (kind, content) in extensions {
        all.extend(kind.to_be_bytes());
        all.extend((content.len() as u16).to_be_bytes());
        all.extend(content);
    }
    body.extend((all.len() as u16).to_be_bytes());
    body.extend(all);
    let mut message = vec![1];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    message
}

fn names(names: &[(u8, &[u8])]) -> (u16, Vec<u8>) {
    let mut list = Vec::new();
    for (kind, name) in names {
        list.push(*kind);
        list.extend((name.len() as u16).to_be_bytes());
        list.extend(*name);
    }
    let mut content = (list.len() as u16).to_be_bytes().to_vec();
    content.extend(list);
    (0, content)
}

/// A message in records of these lengths; the last one takes the rest.
fn records(message: &[u8], lens: &[usize]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), message);
    for len in lens.iter().copied().chain([usize::MAX]) {
        let (part, after) = rest.split_at(len.min(rest.len()));
        rest = after;
        if !part.is_empty() {
            out.extend([22, 3, 1]);
            out.extend((part.len() as u16).to_be_bytes());
            out.extend(part);
        }
    }
    out
}

pub(crate) fn client_hello(name: &str) -> Vec<u8> {
    let key_share = (51, vec![9; 1200]);
    records(&hello(&[key_share, names(&[(0, name.as_bytes())])]), &[])
}

fn tls(bytes: &[u8]) -> Inspection {
    inspect(StreamCheck::Tls, bytes, 443, &|name| name == "allowed.example")
}

fn http(request: &str) -> Inspection {
    inspect(StreamCheck::Http, request.as_bytes(), 80, &|name| name == "allowed.example")
}

fn reason(inspection: Inspection) -> Reason {
    match inspection {
        Inspection::Refused(error) => error.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn attack_22_other_server_name_is_refused() {
    assert_eq!(tls(&client_hello("allowed.example")), Inspection::Passed);
    let refused = tls(&client_hello("Other.example"));
    let want =
        InspectionError { reason: Reason::ServerName, stated_name: Some("other.example".into()) };
    assert_eq!(refused, Inspection::Refused(want));
}

#[test]
fn attack_23_server_names_in_odd_forms() {
    let with = |list: &[(u8, &[u8])]| tls(&records(&hello(&[names(list)]), &[]));
    assert_eq!(reason(tls(&records(&hello(&[]), &[]))), Reason::NoServerName);
    assert_eq!(reason(tls(&records(&hello(&[(16, vec![0, 0])]), &[]))), Reason::NoServerName);
    assert_eq!(with(&[(0, b"ALLOWED.Example")]), Inspection::Passed);
    let refused: &[&[(u8, &[u8])]] = &[
        &[(0, b"192.0.2.1")],
        &[(0, b"[2001:db8::1]")],
        &[(0, b"allowed.example"), (0, b"other.example")],
        &[(0, b"allowed.example"), (1, b"other.example")],
        &[(1, b"allowed.example")],
        &[(0, b"allowed.example\0.other.example")],
        &[(0, b"allowed.example.")],
        &[(0, b"")],
        &[(0, "allowed\u{3002}example".as_bytes())],
        &[],
    ];
    for list in refused {
        let found = reason(with(list));
        assert!(matches!(found, Reason::ServerName | Reason::NotTls), "{list:?}: {found:?}");
    }
    let name = || names(&[(0, b"allowed.example")]);
    assert_eq!(reason(tls(&records(&hello(&[name(), name()]), &[]))), Reason::ServerName);
}

#[test]
fn attack_24_handshake_in_pieces_is_reassembled() {
    let message = hello(&[(51, vec![9; 1200]), names(&[(0, b"allowed.example")])]);
    for lens in [&[][..], &[1], &[3, 1], &[500, 500], &[1300, 2]] {
        let bytes = records(&message, lens);
        let mut needed = 0;
        for len in 0..bytes.len() {
            let Inspection::Incomplete { needed: more } = tls(&bytes[..len]) else {
                panic!("{len} of {} bytes", bytes.len());
            };
            assert!(more > len && more >= needed && more <= bytes.len(), "{more} after {len}");
            needed = more;
        }
        assert_eq!(tls(&bytes), Inspection::Passed, "{lens:?}");
    }
    // More records than a client uses.
    assert_eq!(reason(tls(&records(&message, &[1; 9]))), Reason::NotTls);
    // Longer than what is held.
    let long = hello(&[(21, vec![0; 17 << 10]), names(&[(0, b"allowed.example")])]);
    assert_eq!(reason(tls(&records(&long, &[1 << 14]))), Reason::Incomplete);
    assert_eq!(reason(tls(&records(&long, &[1 << 14])[..9])), Reason::Incomplete);
}

#[test]
fn handshake_may_end_before_a_long_record() {
    let message = hello(&[names(&[(0, b"allowed.example")])]);
    let mut bytes = vec![22, 3, 1, 0x40, 0];
    bytes.extend(&message);
    for len in 0..bytes.len() {
        let Inspection::Incomplete { needed } = tls(&bytes[..len]) else {
            panic!("{len} bytes of {}", bytes.len());
        };
        assert!(needed > len && needed <= bytes.len(), "{needed} after {len}");
    }
    assert_eq!(tls(&bytes), Inspection::Passed);
}

#[test]
fn attack_25_bytes_that_are_no_handshake() {
    let junk: [&[u8]; 7] = [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/1.1\r\n",
        &[22, 2, 0, 0, 5],
        &[22, 3, 1, 0, 0],
        &[22, 3, 1, 0xff, 0xff],
        &[23, 3, 3, 0, 5, 1, 2, 3, 4, 5],
        &[22, 3, 1, 0, 5, 2, 0, 0, 1, 0],
    ];
    for bytes in junk {
        assert_eq!(reason(tls(bytes)), Reason::NotTls, "{bytes:?}");
    }
    // The first wrong byte is enough.
    assert_eq!(reason(tls(b"S")), Reason::NotTls);
}

#[test]
fn attack_26_outer_name_of_encrypted_hello_counts() {
    let encrypted = || (0xfe0d, vec![0; 200]);
    let with = |name: &[u8]| tls(&records(&hello(&[encrypted(), names(&[(0, name)])]), &[]));
    assert_eq!(reason(with(b"cloudflare-ech.com")), Reason::ServerName);
    assert_eq!(with(b"allowed.example"), Inspection::Passed);
}

#[test]
fn attack_27_requests_in_odd_forms() {
    let passed = [
        "GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n",
        "GET /?q=1 HTTP/1.0\r\nUser-Agent: x\r\nHOST:Allowed.Example:80\r\n\r\nbody",
        "OPTIONS * HTTP/1.1\r\nHost: allowed.example\t\r\n\r\n",
    ];
    for request in passed {
        assert_eq!(http(request), Inspection::Passed, "{request:?}");
    }
    let other = http("GET / HTTP/1.1\r\nHost: other.example\r\n\r\n");
    let want =
        InspectionError { reason: Reason::HttpHost, stated_name: Some("other.example".into()) };
    assert_eq!(other, Inspection::Refused(want));
    let host = "Host: allowed.example\r\n\r\n";
    let refused = [
        (format!("\r\nGET / HTTP/1.1\r\n{host}"), Reason::NotHttp),
        (format!("\nGET / HTTP/1.1\r\n{host}"), Reason::NotHttp),
        (format!(" GET / HTTP/1.1\r\n{host}"), Reason::NotHttp),
        (format!("GET http://other.example/ HTTP/1.1\r\n{host}"), Reason::HttpHost),
        (format!("CONNECT other.example:443 HTTP/1.1\r\n{host}"), Reason::HttpHost),
        (format!("CONNECT /x HTTP/1.1\r\n{host}"), Reason::HttpHost),
        (format!("GET / HTTP/1.1\r\nHost: other.example\r\n{host}"), Reason::HttpHost),
        (format!("GET / HTTP/1.1\r\nX: 1\r\n folded\r\n{host}"), Reason::NotHttp),
        (format!("GET / HTTP/1.1\r\nHost : allowed.example\r\n{host}"), Reason::NotHttp),
        (format!("GET / HTTP/1.1\nX: 1\r\n{host}"), Reason::NotHttp),
        (format!("GET / HTTP/1.1\r\nX: \0\r\n{host}"), Reason::NotHttp),
        (format!("GET /  HTTP/1.1\r\n{host}"), Reason::NotHttp),
        (format!("GET / HTTP/2.0\r\n{host}"), Reason::NotHttp),
        (format!("PRI * HTTP/2.0\r\n{host}"), Reason::NotHttp),
        (format!("get / HTTP/1.1\r\n{host}"), Reason::NotHttp),
        ("GET / HTTP/1.1\r\n\r\n".into(), Reason::HttpHost),
        ("GET / HTTP/1.1\r\nHost: user@allowed.example\r\n\r\n".into(), Reason::HttpHost),
        ("GET / HTTP/1.1\r\nHost: allowed.example:81\r\n\r\n".into(), Reason::HttpHost),
        ("GET / HTTP/1.1\r\nHost: allowed.example:+80\r\n\r\n".into(), Reason::HttpHost),
        ("GET / HTTP/1.1\r\nHost: allowed.example, other\r\n\r\n".into(), Reason::HttpHost),
        ("GET / HTTP/1.1\r\nHost: allowed.example.\r\n\r\n".into(), Reason::HttpHost),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), Reason::HttpHost),
        ("SSH-2.0-OpenSSH_9.2\r\n".into(), Reason::NotHttp),
        ("\u{16}\u{3}\u{1}".into(), Reason::NotHttp),
    ];
    for (request, want) in refused {
        assert_eq!(reason(http(&request)), want, "{request:?}");
    }
    let endless = format!("GET / HTTP/1.1\r\n{}", "X: 1\r\n".repeat(3000));
    assert_eq!(reason(http(&endless)), Reason::Incomplete);
}

proptest! {
    #[test]
    fn inspection_is_stable_under_more_bytes(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz_inspect(&data);
    }

    #[test]
    fn damaged_bytes_are_inspected_as_early_as_late(at in any::<usize>(), byte in any::<u8>()) {
        let hello = client_hello("allowed.example");
        let request = b"GET /path HTTP/1.1\r\nAccept: */*\r\nHost: allowed.example\r\n\r\n";
        for (kind, bytes) in [(0, &hello[..]), (1, request)] {
            let mut damaged = [&[kind], bytes].concat();
            let len = bytes.len();
            damaged[1 + at % len] = byte;
            fuzz_inspect(&damaged);
        }
    }
}
