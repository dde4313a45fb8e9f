//! HTTP responses from a hypervisor's control socket.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::codec::fuzz::http(data));
