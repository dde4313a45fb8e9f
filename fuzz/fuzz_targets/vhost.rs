//! The vhost-user back end, with arbitrary messages and rings.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::vhost::fuzz::vhost(data));
