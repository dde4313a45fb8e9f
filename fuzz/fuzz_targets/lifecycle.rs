//! The lifecycle with arbitrary sequences of inputs.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::lifecycle::fuzz::run(data));
