//! The kernel command line: round trip, merging, nothing injected.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::cmdline::fuzz::run(data));
