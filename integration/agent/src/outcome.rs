//! How a command of the binary ends.

/// How a verb ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done; the answer is yes. Exit code 0.
    Good,
    /// Done; the answer is no, or mistakes were found. Exit code 1.
    Bad,
    /// It could not be done, and that has been said. Exit code 2.
    Failed,
}
