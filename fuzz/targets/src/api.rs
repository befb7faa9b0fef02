//! Requests to the agent's API.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use hyper::{Request, Uri};
use namegate_api::{
    Backend, CacheFilter, FlowFeed, FlowHub, Instruments, PROBLEM_JSON, Refusal, Reply,
    fuzzing::{Answer, Service},
    view::{
        CniEndpoint, CniRegistration, CniState, Endpoint, Forgotten, FqdnLookup, FqdnNames, Health, Policy, Status,
    },
};
use serde_json::Value;

/// Every path of the document, cut at its slashes.
static PATHS: LazyLock<Vec<Vec<String>>> = LazyLock::new(|| {
    let own = ["/v1/openapi.json".to_owned()];
    let documented = namegate_api::openapi().paths.paths.into_keys();
    documented.chain(own).map(|path| path.split('/').map(str::to_owned).collect()).collect()
});

/// The API in front of an agent without endpoints.
static SERVICE: LazyLock<Mutex<Option<Service>>> =
    LazyLock::new(|| Mutex::new(Service::new(Arc::new(Nobody::default())).ok()));

/// `METHOD TARGET` in the first line, the body in the rest.
///
/// # Panics
/// A request is answered by an error of the server; an error has no problem document; or a path that the document does
/// not have is there, or one that it has is not.
pub fn api(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let Ok(line) = str::from_utf8(&data[..end]) else { return };
    let Some((method, target)) = line.split_once(' ') else { return };
    let body = data.get(end + 1..).unwrap_or_default().to_vec();
    let request = Request::builder().method(method).uri(target).header("content-type", "application/json").body(body);
    let Ok(request) = request else { return };
    let uri = request.uri().clone();
    let service = SERVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(answer) = service.as_ref().and_then(|service| service.answer(request)) else { return };
    drop(service);
    assert!(answer.status < 500, "{line:?}: {answer:?}");
    if !is_documented(&uri) {
        assert_eq!(answer.status, 404, "{line:?}: {answer:?}");
    }
    if answer.status >= 400 && method != "HEAD" {
        check_problem(line, &answer);
    }
}

fn is_documented(uri: &Uri) -> bool {
    let path: Vec<&str> = uri.path().split('/').collect();
    let fits = |known: &Vec<String>| {
        let same = |(known, given): (&String, &&str)| known == given || known.starts_with('{') && !given.is_empty();
        known.len() == path.len() && known.iter().zip(&path).all(same)
    };
    PATHS.iter().any(fits)
}

/// RFC 9457.
fn check_problem(line: &str, answer: &Answer) {
    assert_eq!(answer.media_type, PROBLEM_JSON, "{line:?}: {answer:?}");
    let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    assert_eq!(problem["status"], answer.status, "{line:?}: {problem}");
    for field in ["type", "title", "detail"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{line:?}: {problem}");
    }
}

/// An agent without endpoints.
#[derive(Default)]
struct Nobody(Instruments);

fn absent<T: Send + 'static>(what: &str) -> Reply<'static, T> {
    let what = what.to_owned();
    Box::pin(async move { Err(Refusal::NoSuchEndpoint(what)) })
}

impl Backend for Nobody {
    fn fqdn_cache(&self, filter: CacheFilter) -> Reply<'_, Vec<FqdnLookup>> {
        match filter.endpoint {
            Some(name) => absent(&name),
            None => Box::pin(async { Ok(Vec::new()) }),
        }
    }

    fn forget(&self, _: CacheFilter) -> Reply<'_, Forgotten> {
        Box::pin(async { Ok(Forgotten { names: 0, addresses: 0 }) })
    }

    fn fqdn_names(&self) -> Reply<'_, FqdnNames> {
        Box::pin(async { Ok(FqdnNames { selectors: Vec::new() }) })
    }

    fn endpoints(&self) -> Reply<'_, Vec<Endpoint>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn endpoint(&self, name: String) -> Reply<'_, Endpoint> {
        absent(&name)
    }

    fn cni(&self) -> Reply<'_, Vec<CniEndpoint>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn register(&self, container_id: String, registration: CniRegistration) -> Reply<'_, CniEndpoint> {
        let state = CniState::Waiting;
        Box::pin(async move { Ok(CniEndpoint { container_id, registration, state, problem: None }) })
    }

    fn unregister(&self, _: String) -> Reply<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn policy(&self) -> Reply<'_, Policy> {
        absent("policy")
    }

    fn status(&self) -> Reply<'_, Status> {
        absent("status")
    }

    fn health(&self) -> Reply<'_, Health> {
        absent("health")
    }

    fn flows(&self, _past: bool) -> Reply<'_, FlowFeed> {
        Box::pin(async { Ok(FlowFeed { recent: Vec::new(), live: FlowHub::new(1).subscribe() }) })
    }

    fn instruments(&self) -> &Instruments {
        &self.0
    }
}
