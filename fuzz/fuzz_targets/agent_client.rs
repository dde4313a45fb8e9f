//! The host's end of the agent's protocol, with a hostile agent.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::agent::fuzz::client(data));
