//! The console without escape sequences, and in lines: chunking makes no difference.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::console::fuzz::ansi(data));
