#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| namegate_fuzz_targets::endpoints(data));
