//! `/v1/endpoint`: the endpoints of this node.

use axum::{Json, extract::State, http::Uri};

use super::{Api, without_parameters};
use crate::{problem::Problem, segment::Segment, view::Endpoint};

/// Lists the endpoints of this node, by id.
#[utoipa::path(
    get,
    path = "/v1/endpoint",
    operation_id = "listEndpoints",
    responses(
        (status = 200, description = "Endpoints", body = Vec<Endpoint>),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Vec<Endpoint>>, Problem> {
    without_parameters(&uri)?;
    Ok(Json(api.gate.endpoints().await?))
}

/// Shows one endpoint.
#[utoipa::path(
    get,
    path = "/v1/endpoint/{id}",
    operation_id = "getEndpoint",
    params(
        ("id" = String, Path, description = "Id, `namespace/name` (the slash as `%2F`) or a name that only one has")
    ),
    responses(
        (status = 200, description = "The endpoint", body = Endpoint),
        (status = 404, description = "No such endpoint", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn one(State(api): State<Api>, Segment(id): Segment, uri: Uri) -> Result<Json<Endpoint>, Problem> {
    without_parameters(&uri)?;
    Ok(Json(api.gate.endpoint(id).await?))
}
