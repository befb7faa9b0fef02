//! Octets both ways between two streams, as they come.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional},
    time::sleep,
};

use crate::delegate::delegate_writes;

/// How long neither side may say anything.
pub(crate) const SILENCE_MAX: Duration = Duration::from_hours(1);
/// How often within that time the task looks.
const LOOKS: u32 = 4;

/// Passes octets on until both sides are done, one breaks off, or both were silent for `silence_max` (by one look more at
/// the longest). `Err` where one breaks off.
pub(crate) async fn both<A, B>(one: A, other: B, silence_max: Duration) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let octets = AtomicU64::new(0);
    let mut one = Counted { stream: one, octets: &octets };
    let mut other = Counted { stream: other, octets: &octets };
    let silence = async {
        let (mut seen, mut quiet) = (0, 0);
        while quiet < LOOKS {
            sleep(silence_max / LOOKS).await;
            let now = octets.load(Ordering::Relaxed);
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
        }
    };
    tokio::select! {
        passed = copy_bidirectional(&mut one, &mut other) => passed.map(drop),
        () = silence => {
            tracing::debug!("a silent connection ended");
            Ok(())
        }
    }
}

/// A stream with a count of the octets that were read.
struct Counted<'c, S> {
    stream: S,
    octets: &'c AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, into);
        self.octets.fetch_add((into.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

delegate_writes!([S: AsyncWrite + Unpin] Counted<'_, S>);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn silence_of_both_sides_ends_a_connection_and_words_of_one_keep_it() {
        let silence_max = Duration::from_millis(400);
        let ((mut client, one), (other, mut server)) = (duplex(64), duplex(64));
        let passing = tokio::spawn(both(one, other, silence_max));
        let mut octet = [0];
        // Longer than the silence in all.
        for word in 0..20 {
            client.write_all(&[word]).await.unwrap();
            server.read_exact(&mut octet).await.unwrap();
            assert_eq!(octet, [word]);
            sleep(silence_max / 10).await;
        }
        assert_eq!(client.read(&mut octet).await.unwrap(), 0);
        passing.await.unwrap().unwrap();
        assert!(server.write_all(b"x").await.is_err());
    }
}
