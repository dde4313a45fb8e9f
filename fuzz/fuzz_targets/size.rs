//! The parser of memory sizes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_cli::fuzz::size(data));
