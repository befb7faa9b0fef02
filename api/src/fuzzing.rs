//! One request without a connection, for fuzzing. No part of the API of this crate.

use std::sync::Arc;

use axum::{
    body::{Body, to_bytes},
    http::{Request, header},
};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use crate::{gatekeeper::Gatekeeper, routes};

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

/// Answers a request as the socket's server does; `None` where no runtime can be had.
pub fn answer(gate: Arc<dyn Gatekeeper>, request: Request<Vec<u8>>) -> Option<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let service = TowerToHyperService::new(routes::router(gate));
        let response = service.call(request.map(Body::from)).await.unwrap_or_else(|never| match never {});
        let status = response.status().as_u16();
        let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().to_owned();
        let body = if status < 400 {
            Vec::new()
        } else {
            to_bytes(response.into_body(), PROBLEM_BYTES_MAX).await.ok()?.to_vec()
        };
        Some(Answer { status, media_type, body })
    })
}
