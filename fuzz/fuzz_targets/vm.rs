//! The whole VM in a simulated world, with arbitrary schedules.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_proto::vm::simulate::run(data));
