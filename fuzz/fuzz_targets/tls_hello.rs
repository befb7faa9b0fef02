//! Feeds the inputs of a fuzzer to the target `tls_hello`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| namegate_fuzz_targets::tls_hello(data));
