//! The lifecycle in a world where anything may happen next.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::lifecycle::fuzz::run(data));
