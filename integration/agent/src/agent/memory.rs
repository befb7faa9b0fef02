//! Memory goes back to the system, also from threads that have nothing to do.

use std::time::Duration;

/// How often.
const EVERY: Duration = Duration::from_secs(2);

/// Gives back what this thread has freed, and what no thread has in use. mimalloc keeps pages of each size for the next
/// allocations of the thread that had them, and frees such pages only while that thread allocates: after a flood an idle
/// agent would keep all of them.
#[expect(unsafe_code, reason = "mimalloc's crate has no safe function for it")]
pub(super) fn give_back() {
    // SAFETY: The function takes no pointer, may be called at any time from any thread, and frees only what is not in use.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Gives back again and again.
pub(super) async fn keep_giving_back() -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(EVERY).await;
        give_back();
    }
}
