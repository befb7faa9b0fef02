//! The resources, and their OpenAPI document.

mod cni;
mod endpoint;
mod flows;
mod fqdn;
mod gate;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request},
    http::{Method, Uri},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::Semaphore;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{backend::Backend, limits, problem::Problem, query::Parameters};

#[derive(OpenApi)]
#[openapi(
    info(title = "Namegate", description = "What the gate knows and does. Served on a unix socket."),
    components(schemas(Problem, crate::view::Lost))
)]
struct Document;

/// What every handler has at hand.
#[derive(Clone)]
pub(crate) struct Api {
    gate: Arc<dyn Backend>,
    streams: Arc<Semaphore>,
}

/// The OpenAPI document of the API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    described().split_for_parts().1
}

fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(fqdn::list, fqdn::clean))
        .routes(routes!(fqdn::list_of_endpoint, fqdn::clean_of_endpoint))
        .routes(routes!(fqdn::names))
        .routes(routes!(endpoint::list))
        .routes(routes!(endpoint::one))
        .routes(routes!(cni::list))
        .routes(routes!(cni::put, cni::delete))
        .routes(routes!(gate::policy))
        .routes(routes!(gate::status))
        .routes(routes!(gate::healthz))
        .routes(routes!(gate::readyz))
        .routes(routes!(gate::metrics))
        .routes(routes!(flows::stream))
}

/// The whole service.
pub(crate) fn router(gate: Arc<dyn Backend>) -> Router {
    let (router, document) = described().split_for_parts();
    let document = Arc::new(document);
    let requests = Arc::new(Semaphore::new(limits::REQUESTS_MAX));
    router
        .route("/v1/openapi.json", get(async move |uri: Uri| without_parameters(&uri).map(|()| Json(document))))
        .fallback(async |uri: Uri| Problem::no_such_path(uri.path()))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(limits::BODY_OCTETS_MAX))
        .layer(middleware::from_fn_with_state(requests, limits::keep))
        .with_state(Api { gate, streams: Arc::new(Semaphore::new(limits::STREAMS_MAX)) })
}

async fn method_not_allowed(method: Method, request: Request) -> Response {
    Problem::method_not_allowed(method.as_str(), request.uri().path()).into_response()
}

/// Refuses any parameter.
pub(crate) fn without_parameters(uri: &Uri) -> Result<(), Problem> {
    Parameters::read(uri, &[]).map(|_| ())
}
