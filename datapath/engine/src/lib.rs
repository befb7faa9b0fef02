//! What the kernel should hold. Pure: facts and a time in, ordered map writes out.

mod answer;
mod gate;

pub use answer::{Answer, EndpointId};
pub use gate::{Gate, GateError, Key, MapOp, Row};
