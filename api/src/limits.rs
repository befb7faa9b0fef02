//! Bounds of the API, and the layer that keeps them.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::sync::Semaphore;

use crate::problem::Problem;

/// Connections at once; more wait in the socket's queue.
pub(crate) const CONNECTIONS_MAX: usize = 64;
/// Requests at once, streams of flows not counted once they flow.
pub(crate) const REQUESTS_MAX: usize = 32;
/// Streams of flows at once.
pub(crate) const STREAMS_MAX: usize = 16;
/// Octets of a request's body.
pub(crate) const BODY_OCTETS_MAX: usize = 65_536;
/// Seconds for a request's head to come in.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Seconds from a request to the head of its response.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Refuses what is too long, too much at once or too slow.
pub(crate) async fn keep(State(requests): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|octets: usize| octets > BODY_OCTETS_MAX) {
        return Problem::body_too_long(BODY_OCTETS_MAX).into_response();
    }
    let Ok(_permit) = requests.try_acquire() else {
        return Problem::busy("requests", REQUESTS_MAX).into_response();
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::slow(ANSWER_TIMEOUT.as_secs()).into_response(),
    }
}
