//! The network of a guest, with arbitrary frames and sockets.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::network(data));
