//! Why the enforcer did not do what it was asked for.

use namegate_engine::NotOpen;

/// Why the kernel does not hold the addresses of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInstalled {
    /// A map, a queue or another bound is full, or the endpoint is closed since its policy found no room.
    #[error("there is no room for the addresses of this answer")]
    Full,
    /// The answer has more addresses than one name may have.
    #[error("this answer has more addresses than `dns.addressesPerNameMax` allows")]
    TooMany,
    /// The endpoint that asked is gone.
    #[error("the endpoint is not known any more")]
    Unknown,
    /// The kernel refused a row.
    #[error("the addresses of this answer could not be written")]
    Write,
    /// The enforcer has stopped.
    #[error("the enforcer has stopped; the log says why")]
    Stopped,
}

impl From<NotOpen> for NotInstalled {
    fn from(why: NotOpen) -> Self {
        match why {
            NotOpen::Unknown => Self::Unknown,
            NotOpen::TooMany => Self::TooMany,
            NotOpen::NoRoom => Self::Full,
        }
    }
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// Too many requests wait.
    #[error("too many requests wait for the enforcer; try again in a moment")]
    Busy,
    /// The enforcer has stopped.
    #[error("the enforcer has stopped; the log says why")]
    Stopped,
}
