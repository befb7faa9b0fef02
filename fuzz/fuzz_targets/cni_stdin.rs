//! Feeds the inputs of a fuzzer to the target `cni_stdin`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| namegate_fuzz_targets::cni_stdin(data));
