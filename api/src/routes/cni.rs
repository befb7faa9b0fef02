//! `/v1/cni`: networks of pods, as a CNI plugin registers them.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{StatusCode, Uri},
};

use super::{Api, without_parameters};
use crate::{
    problem::Problem,
    segment::Segment,
    view::{CniEndpoint, CniRegistration},
};

/// Longest id of a container in octets.
const CONTAINER_OCTETS_MAX: usize = 128;
/// Longest name of an interface in octets (`IFNAMSIZ` less the final zero).
const INTERFACE_OCTETS_MAX: usize = 15;
/// Longest name of a pod or namespace in octets.
const NAME_OCTETS_MAX: usize = 253;
/// Addresses of one pod.
const ADDRESSES_MAX: usize = 16;

/// Lists the registered networks.
#[utoipa::path(
    get,
    path = "/v1/cni",
    operation_id = "listCni",
    responses(
        (status = 200, description = "Registered networks", body = Vec<CniEndpoint>),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Vec<CniEndpoint>>, Problem> {
    without_parameters(&uri)?;
    Ok(Json(api.gate.cni().await?))
}

/// Registers a network; it is guarded when the answer is 200.
#[utoipa::path(
    put,
    path = "/v1/cni/{container}",
    operation_id = "putCni",
    params(("container" = String, Path, description = "Id of the container that stands for the pod's network")),
    request_body = CniRegistration,
    responses(
        (status = 200, description = "The kernel judges every packet of it from now on", body = CniEndpoint),
        (status = 503, description = "It is not guarded", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn put(
    State(api): State<Api>,
    Segment(container): Segment,
    uri: Uri,
    body: Bytes,
) -> Result<Json<CniEndpoint>, Problem> {
    without_parameters(&uri)?;
    check_container(&container)?;
    let registration = read(&body)?;
    Ok(Json(api.gate.register(container, registration).await?))
}

/// Forgets a network. One that is not registered is no mistake: plugins are called more than once.
#[utoipa::path(
    delete,
    path = "/v1/cni/{container}",
    operation_id = "deleteCni",
    params(("container" = String, Path, description = "Id of the container that stands for the pod's network")),
    responses(
        (status = 204, description = "It is not registered any more"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Segment(container): Segment,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    without_parameters(&uri)?;
    check_container(&container)?;
    api.gate.unregister(container).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The id becomes the name of a file.
fn check_container(id: &str) -> Result<(), Problem> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.len() <= CONTAINER_OCTETS_MAX
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(is_plain)
    {
        return Ok(());
    }
    let detail = format!(
        "`{id}` is no id of a container: letters, digits, `-`, `_` and `.`, at most {CONTAINER_OCTETS_MAX}, the first a \
         letter or digit"
    );
    Err(Problem::bad_parameter("container", detail))
}

fn read(body: &[u8]) -> Result<CniRegistration, Problem> {
    let bad = |detail: String| Problem::bad_parameter("body", detail);
    let registration: CniRegistration = serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
    for (field, name) in [("namespace", &registration.namespace), ("pod", &registration.pod)] {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        if name.is_empty() || name.len() > NAME_OCTETS_MAX || !name.chars().all(is_plain) {
            return Err(bad(format!("`{field}`: `{name}` is no name of Kubernetes")));
        }
    }
    let interface = &registration.interface;
    let is_plain = |c: char| c != '/' && !c.is_whitespace() && !c.is_control();
    if interface.is_empty() || interface.len() > INTERFACE_OCTETS_MAX || !interface.chars().all(is_plain) {
        return Err(bad(format!("`interface`: `{interface}` is no name of an interface")));
    }
    if registration.uid.len() > NAME_OCTETS_MAX {
        return Err(bad(format!("`uid` has more than {NAME_OCTETS_MAX} octets")));
    }
    let count = registration.addresses.len();
    if count == 0 || count > ADDRESSES_MAX {
        return Err(bad(format!("`addresses`: {count} are given; 1 to {ADDRESSES_MAX} are possible")));
    }
    for address in &registration.addresses {
        let address = address.to_canonical();
        if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
            return Err(bad(format!("`addresses`: {address} cannot be the address of one pod")));
        }
    }
    Ok(registration)
}
