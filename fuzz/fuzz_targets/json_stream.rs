//! JSON objects back to back, without a separator to trust.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::codec::fuzz::json_stream(data));
