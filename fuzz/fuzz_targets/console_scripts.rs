//! Login and command scripts against a guest with arbitrary output.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::console::fuzz::scripts(data));
