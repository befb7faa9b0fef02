//! What the enforcer needs of the kernel beside its maps: programs on interfaces and on the node's sockets.

use namegate_abi::Settings;
use namegate_engine::GateError;

/// Attaches the programs that judge packets.
pub trait Programs {
    /// The interfaces with programs. An error says that this is not known for now.
    fn attached(&self) -> Result<Vec<u32>, ProgramError>;

    /// Attaches the programs to an interface. Where they are attached already they stay.
    fn attach(&mut self, interface: u32) -> Result<(), ProgramError>;

    /// Takes the programs off an interface. One without programs is no error.
    fn detach(&mut self, interface: u32) -> Result<(), ProgramError>;

    /// Attaches the programs to the node's own sockets where `is_wanted`, else takes them off.
    fn attach_node(&mut self, is_wanted: bool) -> Result<(), ProgramError>;

    /// Pins maps again whose pins are gone; gives how many.
    fn pin_maps_again(&mut self) -> Result<usize, ProgramError>;

    /// Writes the settings that the programs read.
    fn configure(&mut self, settings: &Settings) -> Result<(), GateError>;
}

/// Why programs were not attached, detached or looked up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ProgramError {
    /// What happened, with its causes.
    pub message: String,
    /// The kernel does not know the interface.
    pub is_gone: bool,
}
