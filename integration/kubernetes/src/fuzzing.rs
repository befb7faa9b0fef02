//! The reader of saved objects within reach of fuzzing. No part of the API of this crate.

use namegate_config::settings::Dns;

use crate::{assemble, saved};

/// Of the form of the file that is read.
pub const FORM: u32 = saved::FORM;

/// What a file of saved objects holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// How many objects.
    pub objects: usize,
    /// How many policies come of them.
    pub policies: usize,
    /// The file that the same objects give.
    pub written: Vec<u8>,
}

/// Reads a file as a start does, and makes a snapshot of it; `None` where it is not a whole file.
pub fn saved(bytes: &[u8]) -> Option<Saved> {
    let tables = saved::parse(bytes).ok()??;
    drop(assemble::who(&tables, "node1", &Dns::default()));
    let policies = assemble::policies(&tables).len();
    Some(Saved { objects: tables.all().count(), policies, written: saved::octets(&tables).ok()? })
}
