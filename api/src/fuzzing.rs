//! One request without a connection, for fuzzing. No part of the API of this crate.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, header},
};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use crate::{backend::Backend, routes};

/// Bytes of a problem document that are read.
const PROBLEM_BYTES_MAX: usize = 1 << 20;

/// What a client sees of an answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Media type.
    pub media_type: String,
    /// The body where the status is an error, else nothing: streams have no end.
    pub body: Vec<u8>,
}

/// The service, without a socket.
#[derive(Debug)]
pub struct Service {
    runtime: tokio::runtime::Runtime,
    router: Router,
}

impl Service {
    /// Makes the service as a server has it.
    pub fn new(gate: Arc<dyn Backend>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, router: routes::router(gate) })
    }

    /// Answers a request as the socket's server does; `None` where the body of an error is longer than any is.
    pub fn answer(&self, request: Request<Vec<u8>>) -> Option<Answer> {
        self.runtime.block_on(async {
            let service = TowerToHyperService::new(self.router.clone());
            let response = service.call(request.map(Body::from)).await.unwrap_or_else(|never| match never {});
            let status = response.status().as_u16();
            let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let media_type = media_type.unwrap_or_default().to_owned();
            let is_error = status >= 400;
            let body = if is_error {
                to_bytes(response.into_body(), PROBLEM_BYTES_MAX).await.ok()?.to_vec()
            } else {
                Vec::new()
            };
            Some(Answer { status, media_type, body })
        })
    }
}
