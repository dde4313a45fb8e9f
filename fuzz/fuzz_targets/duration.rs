//! The parser of durations.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_cli::fuzz::duration(data));
