//! Console recordings: decode and encode.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::codec::fuzz::asciicast(data));
