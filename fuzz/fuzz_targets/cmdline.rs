//! The kernel command line: round trip, merging, no injection.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::cmdline::fuzz::run(data));
