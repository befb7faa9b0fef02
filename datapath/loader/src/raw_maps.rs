//! Pinned maps with the types of their keys and values, and the kernel's errors about them.

use std::io;
use std::path::Path;

use aya::Pod;
use aya::maps::{Map, MapData, MapError};
use namegate_abi::{
    Address, AddressKey, AddressValue, CidrKey, CidrValue, Counter, EndpointValue, FlowKey, FlowLosses, FlowSlot,
    FlowValue, FragmentKey, FragmentValue, NamedFlow, PolicyKey, PolicyValue, RateValue, Settings,
};
use namegate_engine::GateError;

/// A key or value as the kernel has it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Raw<T>(pub(crate) T);

macro_rules! pod {
    ($($type:ty),*) => {
        $(
            // SAFETY: The type is repr(C), has no holes (asserted in namegate-abi), and every bit pattern is valid.
            unsafe impl Pod for Raw<$type> {}
        )*
    };
}
pod!(Address, AddressKey, AddressValue, CidrKey, CidrValue, Counter, EndpointValue, FlowKey, FlowValue);
pod!(FlowLosses, FlowSlot, FragmentKey, FragmentValue, NamedFlow, PolicyKey, PolicyValue, RateValue, Settings);

/// Opens a pinned map, with its type.
pub(crate) fn pinned<M>(pins: &Path, name: &'static str) -> Result<M, GateError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = MapData::from_pin(pins.join(name)).and_then(Map::from_map_data);
    typed(name, map.map_err(|error| access(name, error))?)
}

/// Gives a map its type.
pub(crate) fn typed<M>(name: &'static str, map: Map) -> Result<M, GateError>
where
    M: TryFrom<Map, Error = MapError>,
{
    M::try_from(map).map_err(|error| access(name, error))
}

/// Whether a row was not there.
pub(crate) fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound | MapError::ElementNotFound) || os_error(error) == Some(libc::ENOENT)
}

/// An error of the kernel about a map.
pub(crate) fn access(map: &'static str, error: MapError) -> GateError {
    let source = match os_error(&error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error),
    };
    GateError::Access { map, source }
}

/// The kernel's error number, if the error is the kernel's.
pub(crate) fn os_error(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        MapError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}
