//! QMP messages from QEMU, and commands to QEMU.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::codec::fuzz::qmp(data));
