//! Config files: parsed or rejected, each error with a source span.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_cli::fuzz::config(data));
