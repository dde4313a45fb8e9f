//! qcow2 headers, and the overlays that Capsa creates.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::qcow2::fuzz(data));
