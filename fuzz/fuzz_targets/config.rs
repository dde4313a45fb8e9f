//! Config files: read or refused, each mistake with a place.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_cli::fuzz::config(data));
