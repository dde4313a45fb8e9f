//! The first bytes of a connection: TLS handshakes and HTTP requests.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::inspect(data));
