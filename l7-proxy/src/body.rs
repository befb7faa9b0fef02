//! The body of a request on its way from the client to the server.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::counted::Counted;

/// Resolves when what it is about may not go on.
pub(crate) type Revoked = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How far a client's body has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct BodyState(Arc<Ends>);

/// The ends that a body may come to.
#[derive(Debug, Default)]
struct Ends {
    is_whole: AtomicBool,
    is_broken: AtomicBool,
}

impl BodyState {
    /// Whether all of it has come.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.is_whole.load(Ordering::Relaxed)
    }

    /// Whether the client has broken it off, or sent one that cannot be read.
    pub(crate) fn is_broken(&self) -> bool {
        self.0.is_broken.load(Ordering::Relaxed)
    }
}

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError<E> {
    #[error("reading the body")]
    Client(#[from] E),
    #[error("the rules do not allow the request any more")]
    Revoked,
}

/// The body of requests to the server.
pub(crate) type RequestBody = FromClient<Counted>;

/// A client's body as the server gets it.
pub(crate) struct FromClient<B> {
    body: B,
    state: BodyState,
    keeps_trailers: bool,
    revoked: Option<Revoked>,
}

impl<B: Body> FromClient<B> {
    pub(crate) fn new(body: B) -> Self {
        let state = BodyState::default();
        state.0.is_whole.store(body.is_end_stream(), Ordering::Relaxed);
        Self { body, state, keeps_trailers: true, revoked: None }
    }

    /// The body of a request that was let pass: it breaks off once the request is revoked, also after its response. Without
    /// `keeps_trailers` they are left out: a server could take them for the fields that rules demand.
    pub(crate) fn standing(self, revoked: Option<Revoked>, keeps_trailers: bool) -> Self {
        Self { keeps_trailers, revoked, ..self }
    }

    pub(crate) fn state(&self) -> &BodyState {
        &self.state
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for FromClient<B> {
    type Data = Bytes;
    type Error = BodyError<B::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.revoked.as_mut().is_some_and(|revoked| revoked.as_mut().poll(context).is_ready()) {
            self.revoked = None;
            return Poll::Ready(Some(Err(BodyError::Revoked)));
        }
        let polled = ready!(Pin::new(&mut self.body).poll_frame(context));
        let ends = &self.state.0;
        let is_last = match &polled {
            Some(Err(_)) => {
                ends.is_broken.store(true, Ordering::Relaxed);
                false
            }
            Some(Ok(frame)) => frame.is_trailers() || self.body.is_end_stream(),
            None => true,
        };
        if is_last {
            ends.is_whole.store(true, Ordering::Relaxed);
        }
        let is_kept = |frame: &Frame<Bytes>| !frame.is_trailers() || self.keeps_trailers;
        Poll::Ready(polled.filter(|read| read.as_ref().map_or(true, is_kept)).map(|read| read.map_err(BodyError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
