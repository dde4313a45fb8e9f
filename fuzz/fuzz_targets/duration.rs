//! Times as people write them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_cli::fuzz::duration(data));
