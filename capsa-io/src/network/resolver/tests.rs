//! The resolver, with name servers played on loopback.
