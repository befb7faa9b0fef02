//! Bytes on an account, and the sums of several accounts.

use std::sync::{
    Arc,
    atomic::{AtomicIsize, Ordering},
};

use super::Account;

/// Bytes of several connections. For a moment those that one thread takes off may come before those
/// that another adds.
#[derive(Debug, Default)]
pub(crate) struct Sum(AtomicIsize);

impl Sum {
    /// Gives the sum with them.
    pub(super) fn add(&self, bytes: isize) -> usize {
        usize::try_from(self.0.fetch_add(bytes, Ordering::Relaxed) + bytes).unwrap_or(0)
    }

    pub(super) fn get(&self) -> usize {
        usize::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

/// Bytes on an account, taken off on drop.
#[derive(Debug)]
pub(crate) struct Charge {
    pub(super) account: Arc<Account>,
    pub(super) bytes: usize,
}

impl Charge {
    /// Keeps so many bytes on the account instead.
    pub(crate) fn resize(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.account.add(bytes - self.bytes);
        } else if bytes < self.bytes {
            self.account.remove(self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.remove(self.bytes);
    }
}
