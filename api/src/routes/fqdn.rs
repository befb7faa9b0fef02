//! `/v1/fqdn`: learned names and the selectors that want them.
#![expect(unused_qualifications, reason = "the macro of utoipa writes them for `params`")]

use axum::{Json, extract::State, http::Uri};
use utoipa::IntoParams;

use super::{Api, without_parameters};
use crate::{
    problem::Problem,
    query::cache_filter,
    segment::Segment,
    view::{Forgotten, FqdnLookup, FqdnNames},
};

/// Describes the query; [`cache_filter`] reads it.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only its description is used")]
struct CacheQuery {
    /// Pattern of the name, as `toFQDNs.matchPattern`; case and a trailing dot do not matter.
    #[param(example = "*.cilium.io")]
    matchpattern: Option<String>,
    /// Entries with an address in this prefix.
    #[param(example = "192.0.2.0/24")]
    cidr: Option<String>,
    /// `lookup` or `connection`.
    source: Option<String>,
}

/// Describes the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "only its description is used")]
struct EndpointPath {
    /// Id, `namespace/name` (the slash as `%2F`) or a name that only one endpoint has.
    endpoint: String,
}

/// Lists learned names; an empty list where nothing matches.
#[utoipa::path(
    get,
    path = "/v1/fqdn/cache",
    operation_id = "listNames",
    params(CacheQuery),
    responses(
        (status = 200, description = "Learned names", body = Vec<FqdnLookup>),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Vec<FqdnLookup>>, Problem> {
    Ok(Json(api.gate.fqdn_cache(cache_filter(&uri, None)?).await?))
}

/// Forgets learned names and closes their addresses in the kernel; all of them without a parameter.
#[utoipa::path(
    delete,
    path = "/v1/fqdn/cache",
    operation_id = "forgetNames",
    params(CacheQuery),
    responses(
        (status = 200, description = "What was forgotten", body = Forgotten),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn clean(State(api): State<Api>, uri: Uri) -> Result<Json<Forgotten>, Problem> {
    Ok(Json(api.gate.forget(cache_filter(&uri, None)?).await?))
}

/// Lists the names that one endpoint learned.
#[utoipa::path(
    get,
    path = "/v1/fqdn/cache/{endpoint}",
    operation_id = "listNamesOfEndpoint",
    params(EndpointPath, CacheQuery),
    responses(
        (status = 200, description = "Learned names", body = Vec<FqdnLookup>),
        (status = 404, description = "No such endpoint", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list_of_endpoint(
    State(api): State<Api>,
    Segment(endpoint): Segment,
    uri: Uri,
) -> Result<Json<Vec<FqdnLookup>>, Problem> {
    Ok(Json(api.gate.fqdn_cache(cache_filter(&uri, Some(endpoint))?).await?))
}

/// Forgets the names that one endpoint learned, and closes their addresses for it.
#[utoipa::path(
    delete,
    path = "/v1/fqdn/cache/{endpoint}",
    operation_id = "forgetNamesOfEndpoint",
    params(EndpointPath, CacheQuery),
    responses(
        (status = 200, description = "What was forgotten", body = Forgotten),
        (status = 404, description = "No such endpoint", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn clean_of_endpoint(
    State(api): State<Api>,
    Segment(endpoint): Segment,
    uri: Uri,
) -> Result<Json<Forgotten>, Problem> {
    Ok(Json(api.gate.forget(cache_filter(&uri, Some(endpoint))?).await?))
}

/// Lists the name selectors of the policies in force, with the names they hold now.
#[utoipa::path(
    get,
    path = "/v1/fqdn/names",
    operation_id = "listSelectors",
    responses(
        (status = 200, description = "Name selectors", body = FqdnNames),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn names(State(api): State<Api>, uri: Uri) -> Result<Json<FqdnNames>, Problem> {
    without_parameters(&uri)?;
    Ok(Json(api.gate.fqdn_names().await?))
}
