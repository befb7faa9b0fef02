//! Memory goes back to the system, also while the agent has nothing to do.

use std::{hint::black_box, time::Duration};

/// How often.
const EVERY: Duration = Duration::from_secs(1);
/// Larger than what the allocator keeps for its own use.
const BLOCK_BYTES: usize = 4 << 20;

/// Frees a block of its own again and again. mimalloc gives back what others have freed for a second when a thread frees a
/// whole page of memory; after a flood an idle agent would free none. The block is not touched, so it takes no memory.
pub(super) async fn give_back() {
    loop {
        tokio::time::sleep(EVERY).await;
        drop(black_box(Vec::<u8>::with_capacity(BLOCK_BYTES)));
    }
}
