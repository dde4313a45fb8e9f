//! Packets of a guest below TCP: fragments, extension headers, ICMP and neighbor discovery.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::packets(data));
