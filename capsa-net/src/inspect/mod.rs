//! The first bytes of a connection to a name: whether they are for that name.
//!
//! A TLS handshake names its server in clear, and an HTTP request its host. A connection under a policy is for
//! one name, and its first bytes are held until they were inspected: [`inspect`] reads them, and changes none.
//!
//! It cannot see what is inside TLS: a server that serves several names may serve another one than the
//! handshake names (domain fronting). Of HTTP it reads the first request only.

mod http;
#[cfg(test)]
pub(crate) mod tests;
mod tls;

use alloc::string::String;

use capsa_proto::policy::{StreamCheck, VerdictReason};

/// Bytes that are held at most. A handshake or the head of a request that is longer is refused.
pub(crate) const HELD_MAX: usize = 16 << 10;

/// What is known from the first bytes of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inspection {
    /// They are for the name.
    Passed,
    /// More bytes are necessary: at least so many in all.
    Incomplete { needed: usize },
    /// They are not.
    Refused(InspectionError),
}

/// Why the first bytes are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InspectionError {
    /// Why.
    pub(crate) reason: VerdictReason,
    /// The name that they have, if they have another one.
    pub(crate) stated_name: Option<String>,
}

impl InspectionError {
    const fn new(reason: VerdictReason) -> Self {
        Self { reason, stated_name: None }
    }
}

/// Inspects the first bytes of a connection to `port`. `is_expected` tells whether a name in lower case is
/// one of the connection's.
pub(crate) fn inspect(
    check: StreamCheck,
    bytes: &[u8],
    port: u16,
    is_expected: &dyn Fn(&str) -> bool,
) -> Inspection {
    let stated = match check {
        StreamCheck::Tls => tls::server_name(bytes),
        StreamCheck::Http => http::host(bytes, port),
        _ => return Inspection::Passed,
    };
    let mismatch = match check {
        StreamCheck::Tls => VerdictReason::ServerName,
        _ => VerdictReason::HttpHost,
    };
    match stated {
        Ok(name) => {
            let name = name.to_ascii_lowercase();
            match is_expected(&name) {
                true => Inspection::Passed,
                false => Inspection::Refused(InspectionError {
                    reason: mismatch,
                    stated_name: Some(name),
                }),
            }
        }
        Err(Unreadable::Incomplete { needed }) if needed <= HELD_MAX => {
            Inspection::Incomplete { needed }
        }
        Err(Unreadable::Incomplete { .. }) => {
            Inspection::Refused(InspectionError::new(VerdictReason::Incomplete))
        }
        Err(Unreadable::Refused(reason)) => Inspection::Refused(InspectionError::new(reason)),
    }
}

/// Why no name was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    /// At least so many bytes in all are necessary.
    Incomplete { needed: usize },
    /// The bytes have no name, or not one that all readers would read.
    Refused(VerdictReason),
}

/// The body of a fuzz target: no input panics, and a prefix of what passes is incomplete or passes.
#[cfg(any(test, feature = "fuzz"))]
pub fn fuzz_inspect(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let check = if kind % 2 == 0 { StreamCheck::Tls } else { StreamCheck::Http };
    let is_expected = |name: &str| name.contains('a');
    let whole = inspect(check, bytes, 80, &is_expected);
    if let Inspection::Incomplete { needed } = whole {
        assert!(needed > bytes.len(), "{needed} of {}", bytes.len());
    }
    for len in (0..bytes.len()).rev().take(64) {
        match (&whole, inspect(check, &bytes[..len], 80, &is_expected)) {
            (_, Inspection::Incomplete { needed }) => assert!(needed > len),
            // What is refused early stays refused, and what passes early stays passed.
            (whole, early) => assert_eq!(*whole, early),
        }
    }
}
