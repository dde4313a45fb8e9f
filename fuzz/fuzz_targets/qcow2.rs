//! Headers of disk images, and our own overlays.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::qcow2::fuzz(data));
