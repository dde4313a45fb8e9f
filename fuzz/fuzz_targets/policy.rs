//! Network policies and destinations from arbitrary text.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::policy::fuzz(data));
