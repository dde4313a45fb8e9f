//! JSON objects without a separator.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::codec::fuzz::json_stream(data));
