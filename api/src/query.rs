//! Query parameters, read strictly: an unknown, repeated or unreadable one is refused by name.

use std::{net::IpAddr, str::FromStr};

use axum::{extract::Query, http::Uri};
use ipnet::IpNet;
use namegate_config::name::NamePattern;

use crate::{
    backend::CacheFilter,
    problem::Problem,
    view::{LookupSource, Verdict},
};

/// The parameters of one request, each once.
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads the query of the request; only `known` names may occur.
    pub(crate) fn read(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Problem::bad_parameter("query", error.body_text()))?;
        for (at, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                return Err(Problem::unknown_parameter(name, known));
            }
            if pairs[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(Problem::bad_parameter(name, format!("`{name}` is given twice; give it once")));
            }
        }
        Ok(Self(pairs))
    }

    /// The text of a parameter.
    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A parameter read by `read`, whose error becomes the problem's detail.
    fn value<T>(&self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, Problem> {
        self.text(name).map(read).transpose().map_err(|detail| Problem::bad_parameter(name, detail))
    }
}

/// Parameters of the FQDN cache.
pub(crate) const CACHE_PARAMETERS: &[&str] = &["matchpattern", "cidr", "source"];

/// The filter that the query asks for.
pub(crate) fn cache_filter(uri: &Uri, endpoint: Option<String>) -> Result<CacheFilter, Problem> {
    let parameters = Parameters::read(uri, CACHE_PARAMETERS)?;
    Ok(CacheFilter {
        endpoint,
        pattern: parameters.value("matchpattern", pattern)?,
        cidr: parameters.value("cidr", prefix)?,
        source: parameters.value("source", source)?,
    })
}

fn pattern(text: &str) -> Result<NamePattern, String> {
    NamePattern::pattern(text).map_err(|error| format!("`{text}`: {error}"))
}

fn prefix(text: &str) -> Result<IpNet, String> {
    IpNet::from_str(text)
        .map(|net| net.trunc())
        .or_else(|_| IpAddr::from_str(text).map(IpNet::from))
        .map_err(|_| format!("`{text}` is neither a prefix such as 192.0.2.0/24 or 2001:db8::/32 nor an address"))
}

fn source(text: &str) -> Result<LookupSource, String> {
    match text {
        "lookup" => Ok(LookupSource::Lookup),
        "connection" => Ok(LookupSource::Connection),
        _ => Err(format!("`{text}` is no source; there are `lookup` and `connection`")),
    }
}

/// Which flows a stream carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowFilter {
    /// Only flows that were, or in audit mode would have been, denied.
    pub(crate) denied: bool,
    /// Id, `namespace/name` or name of the endpoint.
    pub(crate) endpoint: Option<String>,
    /// How many past flows come first.
    pub(crate) last: usize,
    /// Whether the stream goes on with flows to come.
    pub(crate) follow: bool,
}

/// Parameters of the flow stream.
pub(crate) const FLOW_PARAMETERS: &[&str] = &["denied", "endpoint", "last", "follow"];

impl FlowFilter {
    pub(crate) fn read(uri: &Uri) -> Result<Self, Problem> {
        let parameters = Parameters::read(uri, FLOW_PARAMETERS)?;
        Ok(Self {
            denied: parameters.value("denied", truth)?.unwrap_or(false),
            endpoint: parameters.text("endpoint").map(str::to_owned),
            last: parameters.value("last", count)?.unwrap_or(0),
            follow: parameters.value("follow", truth)?.unwrap_or(true),
        })
    }

    /// Whether the flow belongs into the stream.
    pub(crate) fn passes(&self, flow: &crate::view::Flow) -> bool {
        (!self.denied || matches!(flow.verdict, Verdict::Denied | Verdict::Audited))
            && self.endpoint.as_ref().is_none_or(|name| flow.endpoint.is_called(name))
    }
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("`{text}` is neither `true` nor `false`"))
}

fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("`{text}` is not a count"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(query: &str) -> Result<CacheFilter, Problem> {
        cache_filter(&format!("/v1/fqdn/cache?{query}").parse().unwrap(), None)
    }

    #[test]
    fn bad_parameters_are_named() {
        for (query, parameter) in [
            ("matchpatern=a.io", "matchpatern"),
            ("matchpattern=", "matchpattern"),
            ("matchpattern=a..io", "matchpattern"),
            ("matchpattern=a.io&matchpattern=b.io", "matchpattern"),
            ("cidr=10.0.0.0/33", "cidr"),
            ("cidr=cilium.io", "cidr"),
            ("source=guess", "source"),
            ("source=Lookup", "source"),
        ] {
            let problem = filter(query).expect_err(query);
            assert_eq!((problem.status, problem.parameter.as_deref()), (400, Some(parameter)), "{query}");
        }
    }

    #[test]
    fn good_parameters_are_read() {
        let got = filter("matchpattern=*.Cilium.IO.&cidr=10.1.2.3/8&source=lookup").unwrap();
        assert_eq!(got.pattern.unwrap().as_str(), "*.cilium.io");
        assert_eq!(got.cidr.unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(got.source, Some(LookupSource::Lookup));
        assert_eq!(filter("cidr=2001:db8::1").unwrap().cidr.unwrap().to_string(), "2001:db8::1/128");
        assert_eq!(filter("").unwrap(), CacheFilter::default());
    }

    #[test]
    fn flow_filters_are_read() {
        let read = |query: &str| FlowFilter::read(&format!("/v1/flows?{query}").parse().unwrap());
        let want = FlowFilter { denied: true, endpoint: Some("empire/tie".into()), last: 5, follow: false };
        assert_eq!(read("denied=true&endpoint=empire/tie&last=5&follow=false").unwrap(), want);
        for (query, parameter) in [("denied=yes", "denied"), ("last=-1", "last"), ("since=1", "since")] {
            assert_eq!(read(query).expect_err(query).parameter.as_deref(), Some(parameter), "{query}");
        }
    }
}
