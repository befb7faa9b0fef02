//! The gate as a whole: policy, status, health and metrics.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};

use super::{Api, without_parameters};
use crate::{
    problem::Problem,
    scrape,
    view::{Health, Policy, Status},
};

/// Shows the policy documents, the revision in the kernel and the mistakes of the last reading.
#[utoipa::path(
    get,
    path = "/v1/policy",
    operation_id = "getPolicy",
    responses(
        (status = 200, description = "Documents and revisions", body = Policy),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn policy(State(api): State<Api>, uri: Uri) -> Result<Json<Policy>, Problem> {
    without_parameters(&uri)?;
    Ok(Json(api.gate.policy().await?))
}

/// Shows counters, recent denials, how full the maps are and what was refused.
#[utoipa::path(
    get,
    path = "/v1/status",
    operation_id = "getStatus",
    responses(
        (status = 200, description = "The state of the gate", body = Status),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn status(State(api): State<Api>, uri: Uri) -> Result<Json<Status>, Problem> {
    without_parameters(&uri)?;
    Ok(Json(api.gate.status().await?))
}

/// Says whether the gate does its work.
#[utoipa::path(
    get,
    path = "/v1/healthz",
    operation_id = "getHealth",
    responses(
        (status = 200, description = "All is well", body = Health),
        (status = 503, description = "What is not well", body = Health),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn healthz(State(api): State<Api>, uri: Uri) -> Result<Response, Problem> {
    without_parameters(&uri)?;
    let health = api.gate.health().await?;
    let status = if health.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(health)).into_response())
}

/// Says whether the agent takes endpoints and enforces their policies. What is wrong with single endpoints does not change
/// that: one that is refused more than its share of a bound, waits for its interface, or is closed.
#[utoipa::path(
    get,
    path = "/v1/readyz",
    operation_id = "getReadiness",
    responses(
        (status = 200, description = "It is ready", body = Health),
        (status = 503, description = "What is not well", body = Health),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn readyz(State(api): State<Api>, uri: Uri) -> Result<Response, Problem> {
    without_parameters(&uri)?;
    let health = api.gate.health().await?;
    let status = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(health)).into_response())
}

/// Metrics for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "getMetrics",
    responses(
        (status = 200, description = "OpenMetrics 1.0", body = String, content_type = "application/openmetrics-text"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn metrics(State(api): State<Api>, uri: Uri) -> Result<Response, Problem> {
    without_parameters(&uri)?;
    Ok(scrape::response(scrape::text(&*api.gate).await?).into_response())
}
