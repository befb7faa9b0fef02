//! The body of a request on its way from the client to the server.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::counted::Counted;

/// Whether the client has broken off its body, or sent one that cannot be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Broken(Arc<AtomicBool>);

impl Broken {
    pub(crate) fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The body of requests to the server.
pub(crate) type RequestBody = FromClient<Counted>;

/// A client's body as the server gets it.
#[derive(Debug)]
pub(crate) struct FromClient<B> {
    body: B,
    broken: Broken,
    keeps_trailers: bool,
}

impl<B> FromClient<B> {
    /// Without `keeps_trailers` they are left out: a server could take them for the fields that rules demand.
    pub(crate) fn new(body: B, keeps_trailers: bool) -> Self {
        Self { body, broken: Broken::default(), keeps_trailers }
    }

    pub(crate) fn broken(&self) -> Broken {
        self.broken.clone()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for FromClient<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Err(_))) => self.broken.0.store(true, Ordering::Relaxed),
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() && !self.keeps_trailers => return Poll::Ready(None),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
