//! One scrape: every metric as it is now.

use axum::{http::header, response::IntoResponse};

use crate::backend::{Backend, Refusal};

/// Media type of what [`text`] gives.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every metric as it is now, as text.
pub(crate) async fn text(backend: &dyn Backend) -> Result<String, Refusal> {
    let status = backend.status().await?;
    backend
        .instruments()
        .exposition()
        .render(status)
        .map_err(|error| Refusal::Unavailable(format!("metrics could not be written: {error}")))
}

/// The text with its media type.
pub(crate) fn response(text: String) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], text)
}
