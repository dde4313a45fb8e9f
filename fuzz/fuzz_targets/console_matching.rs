//! Waits on the console: chunking does not change the result.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::console::fuzz::matching(data));
