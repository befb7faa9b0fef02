//! Feeds the inputs of a fuzzer to the target `journal`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| namegate_fuzz_targets::journal(data));
