//! Errors as problem documents (RFC 9457).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::backend::Refusal;

/// Media type of problem documents.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What went wrong, and with which parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[error("{title}: {detail}")]
pub struct Problem {
    /// A name for the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in a few words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What is wrong here, and what to do.
    pub detail: String,
    /// The parameter that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
}

impl Problem {
    fn new(status: StatusCode, kind: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:namegate:problem:{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            parameter: None,
        }
    }

    /// A parameter has a value that cannot be read.
    pub(crate) fn bad_parameter(parameter: &str, detail: impl Into<String>) -> Self {
        let mut problem = Self::new(StatusCode::BAD_REQUEST, "bad-parameter", "A parameter cannot be read", detail);
        problem.parameter = Some(parameter.to_owned());
        problem
    }

    /// There is no parameter of this name.
    pub(crate) fn unknown_parameter(parameter: &str, known: &[&str]) -> Self {
        let detail = match known {
            [] => format!("`{parameter}` is unknown; this resource has no parameters"),
            known => format!("`{parameter}` is unknown; the parameters are `{}`", known.join("`, `")),
        };
        let mut problem = Self::new(StatusCode::BAD_REQUEST, "unknown-parameter", "No such parameter", detail);
        problem.parameter = Some(parameter.to_owned());
        problem
    }

    /// No resource has this path.
    pub(crate) fn no_such_path(path: &str) -> Self {
        let detail = format!("nothing is at `{path}`; `/v1/openapi.json` lists what there is");
        Self::new(StatusCode::NOT_FOUND, "no-such-resource", "No such resource", detail)
    }

    /// A segment of the path cannot be decoded.
    pub(crate) fn bad_path(path: &str, why: &str) -> Self {
        let detail = format!("`{path}` cannot be read: {why}; write other characters as %XX of their UTF-8");
        Self::new(StatusCode::BAD_REQUEST, "bad-path", "The path cannot be read", detail)
    }

    /// The resource has no such method.
    pub(crate) fn method_not_allowed(method: &str, path: &str) -> Self {
        let detail = format!("`{path}` has no method {method}; `/v1/openapi.json` lists what there is");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "No such method", detail)
    }

    /// The port for metrics has no other resource.
    pub(crate) fn metrics_alone() -> Self {
        let detail = "this port has `/metrics` alone; the API is on the agent's unix socket";
        Self::new(StatusCode::NOT_FOUND, "no-such-resource", "No such resource", detail)
    }

    /// Metrics can be read, and nothing else.
    pub(crate) fn read_alone(method: &str) -> Self {
        let detail = format!("`/metrics` has no method {method}: it answers GET");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "No such method", detail)
    }

    /// The request's body is too long.
    pub(crate) fn body_too_long(octets_max: usize) -> Self {
        let detail = format!("the body may have {octets_max} octets");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-long", "The body is too long", detail)
    }

    /// Too much at once.
    pub(crate) fn busy(what: &str, max: usize) -> Self {
        let detail = format!("{max} {what} are under way, which is the bound; try again");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Too much at once", detail)
    }

    /// The gate took too long.
    pub(crate) fn slow(seconds: u64) -> Self {
        let detail = format!("there was no answer in {seconds} s; the agent's log says what it is doing");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "slow", "The gate is slow", detail)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        let endpoint = |status, kind| Self {
            parameter: Some("endpoint".to_owned()),
            ..Self::new(status, kind, "No such endpoint", detail.clone())
        };
        match refusal {
            Refusal::NoSuchEndpoint(_) => endpoint(StatusCode::NOT_FOUND, "no-such-endpoint"),
            Refusal::Ambiguous(_) => endpoint(StatusCode::BAD_REQUEST, "ambiguous-endpoint"),
            Refusal::NotGuarded(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-guarded", "The network is not guarded", detail)
            }
            Refusal::Unavailable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The gate does not answer", detail)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        response
    }
}
