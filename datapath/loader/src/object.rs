//! The programs, built by `cargo xtask ebpf` and part of the agent.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::LoadError;

/// Names another object file than the one built in: for testing a rebuilt one.
const OBJECT_VARIABLE: &str = "NAMEGATE_BPF_OBJECT";

static BUILT_IN: &[u8] = aya::include_bytes_aligned!("../ebpf/namegate.bpf.o");

/// The object to load.
pub(crate) fn read() -> Result<Cow<'static, [u8]>, LoadError> {
    match std::env::var_os(OBJECT_VARIABLE).map(PathBuf::from) {
        None => Ok(Cow::Borrowed(BUILT_IN)),
        Some(path) => match std::fs::read(&path) {
            Ok(octets) => Ok(Cow::Owned(octets)),
            Err(source) => Err(LoadError::File { action: "reading the eBPF object", path, source }),
        },
    }
}
