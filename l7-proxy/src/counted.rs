//! Bodies on their way, with an account of what is kept of them: every part counts until the other side has taken it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Uri,
    body::{Body, Frame, Incoming, SizeHint},
    header::HeaderValue,
};
use tokio::time::{Sleep, sleep};

use crate::account::{Account, Charge, PAUSE};

/// Bytes of a body that may have come and wait: the window of an HTTP/2 stream, or the buffer of an HTTP/1 connection.
pub(crate) const WINDOW_BYTES: u32 = 64 << 10;
/// Bytes of the buffers that a body is read into, as long as a part waits: the one that the first part that waits stands
/// in, and the one that is read into next.
const BUFFER_BYTES: usize = 2 * WINDOW_BYTES as usize;
/// A part that is smaller gets a place of its own where it must wait behind another: it would keep all of the buffer that
/// it was read into.
const COPIED_BYTES_MAX: usize = WINDOW_BYTES as usize / 2;
/// Bytes of a request under way beside its head: tasks, and the states of its streams.
const REQUEST_BYTES: usize = 4 << 10;
/// Header fields of a request, and of a response.
pub(crate) const FIELDS_MAX: usize = 128;
/// Bytes of a header field beside its name and value: its place in a map, and what the map keeps free.
const FIELD_BYTES: usize = 128;

/// Bytes that a request keeps from its head to the end of its response and of its own body.
pub(crate) fn bytes_of_request(fields: &HeaderMap, target: &Uri) -> usize {
    let target = target.path_and_query().map_or(0, |target| target.as_str().len());
    REQUEST_BYTES + target + bytes_of(fields)
}

/// Bytes that the fields of a head take.
pub(crate) fn bytes_of(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum()
}

/// Has one of the values carry the charge for all: HTTP/2 keeps the head of a response until it is written, also where no
/// body comes after it.
pub(crate) fn charge_until_written(fields: &mut HeaderMap, charge: Charge) {
    let Some(value) = fields.values_mut().next() else { return };
    let carrier = Carrier { value: Bytes::copy_from_slice(value.as_bytes()), _charge: charge };
    if let Ok(mut carrying) = HeaderValue::from_maybe_shared(Bytes::from_owner(carrier)) {
        // Others stay in the table of the connection's encoder (RFC 7541 §2.3.2).
        carrying.set_sensitive(true);
        *value = carrying;
    }
}

/// A value of a header field with a charge that lasts as long.
struct Carrier {
    value: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Carrier {
    fn as_ref(&self) -> &[u8] {
        &self.value
    }
}

/// A body with an account of its parts. Where its holder has too many bytes, it waits for connections to give way.
#[derive(Debug)]
pub(crate) struct Counted {
    body: Incoming,
    parts: Arc<Parts>,
    /// What has come stays in its window meanwhile.
    pause: Option<(Pin<Box<Sleep>>, Charge)>,
    /// What lasts as long as the bodies of a request and its response.
    _request: Arc<Charge>,
}

/// Parts of one body that the other side has not taken.
#[derive(Debug)]
struct Parts {
    account: Arc<Account>,
    count: AtomicUsize,
}

impl Counted {
    pub(crate) fn new(body: Incoming, account: &Arc<Account>, request: Arc<Charge>) -> Self {
        let parts = Arc::new(Parts { account: Arc::clone(account), count: AtomicUsize::new(0) });
        Self { body, parts, pause: None, _request: request }
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            if let Some((pause, _)) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            if !self.parts.account.is_over() {
                break;
            }
            let charge = self.parts.account.charge(WINDOW_BYTES as usize);
            self.pause = Some((Box::pin(sleep(PAUSE)), charge));
        }
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else { return Poll::Ready(None) };
        self.parts.account.progress();
        let counted = |bytes| Part::count(&self.parts, bytes);
        Poll::Ready(Some(frame.map(|frame| frame.map_data(counted))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// One part, counted until it is dropped.
struct Part {
    bytes: Bytes,
    parts: Arc<Parts>,
}

impl Part {
    fn count(parts: &Arc<Parts>, bytes: Bytes) -> Bytes {
        let is_first = parts.count.fetch_add(1, Ordering::Relaxed) == 0;
        let buffers = if is_first { BUFFER_BYTES } else { 0 };
        parts.account.add(bytes.len() + buffers);
        let is_copied = !is_first && bytes.len() <= COPIED_BYTES_MAX;
        let bytes = if is_copied { Bytes::copy_from_slice(&bytes) } else { bytes };
        Bytes::from_owner(Self { bytes, parts: Arc::clone(parts) })
    }
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let is_last = self.parts.count.fetch_sub(1, Ordering::Relaxed) == 1;
        let buffers = if is_last { BUFFER_BYTES } else { 0 };
        self.parts.account.remove(self.bytes.len() + buffers);
    }
}
