//! The DHCP server of the guest's network, with arbitrary messages and clients.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::dhcp(data));
