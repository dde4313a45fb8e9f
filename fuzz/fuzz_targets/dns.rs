//! The name server of the guest's network, with arbitrary messages and resolvers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::dns(data));
