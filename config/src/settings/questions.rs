//! What becomes of DNS questions that are not to be asked.

/// The answer to a question that rules forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// REFUSED: some clients ask the next resolver of their list, all see that it is not the name's fault.
    Refused,
    /// NXDOMAIN, as if there were no such name (RFC 2308).
    Nxdomain,
}

impl Refusal {
    /// As settings say it.
    pub(crate) const WORDS: [(&str, Self); 2] = [("refused", Self::Refused), ("nxdomain", Self::Nxdomain)];
}

/// What becomes of questions that look like a tunnel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnelling {
    /// Nobody looks.
    Off,
    /// They are counted and told.
    Observe,
    /// They are refused too.
    Enforce,
}

impl Tunnelling {
    /// As settings say it.
    pub(crate) const WORDS: [(&str, Self); 3] =
        [("off", Self::Off), ("observe", Self::Observe), ("enforce", Self::Enforce)];
}
