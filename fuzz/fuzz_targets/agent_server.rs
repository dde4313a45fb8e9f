//! The agent's end of the protocol.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::agent::fuzz::server(data));
