//! What the runtime hands over: variables and a configuration (CNI specification 1.1.0, sections 1 and 2).

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Code, Error};

/// Versions of the specification that are spoken, oldest first.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.1", "0.4.0", "1.0.0", "1.0.1", "1.1.0"];
/// The newest one: errors say it where the configuration could not be read.
pub(crate) const NEWEST: &str = "1.1.0";
/// Where the agent listens unless the configuration says otherwise.
pub(crate) const SOCKET: &str = "/run/namegate/namegate.sock";
/// Longest identifier of a container, in octets: the agent makes a file name of it.
const CONTAINER_OCTETS_MAX: usize = 128;
/// Longest waiting time for an agent that is starting, in seconds.
const WAIT_SECONDS_MAX: u64 = 60;

/// The plugin's own part of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    /// Version of the specification that the answer is in.
    pub(crate) cni_version: String,
    /// What the plugins before have done; verbatim, for it is also the answer.
    #[serde(default)]
    pub(crate) prev_result: Option<Value>,
    /// The agent's unix socket.
    #[serde(default = "socket")]
    pub(crate) socket: PathBuf,
    /// What becomes of a pod while the agent is away.
    #[serde(default)]
    pub(crate) on_agent_down: OnAgentDown,
    /// How long an agent that is starting is waited for, in seconds.
    #[serde(default = "wait_seconds")]
    pub(crate) wait_seconds: u64,
    /// `GC`: what is still there.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub(crate) valid_attachments: Option<Vec<Attachment>>,
}

/// A container's interface, as `GC` names it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Attachment {
    #[serde(rename = "containerID")]
    pub(crate) container: String,
}

/// What becomes of a pod while the agent is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnAgentDown {
    /// It does not start until the agent has it: no packet leaves unjudged.
    #[default]
    Deny,
    /// It starts, and is guarded when the agent is back.
    Allow,
}

fn socket() -> PathBuf {
    SOCKET.into()
}

fn wait_seconds() -> u64 {
    10
}

impl Config {
    /// Reads standard input.
    pub(crate) fn read(text: &[u8]) -> Result<Self, Error> {
        let unreadable = |error: &dyn std::fmt::Display| {
            Error::new(Code::Undecodable, "the network configuration cannot be read").with(error)
        };
        // Unknown keys are skipped without a look at their bytes; JSON is UTF-8 all the same (RFC 8259 §8.1).
        let text = std::str::from_utf8(text).map_err(|error| unreadable(&error))?;
        let config: Self = serde_json::from_str(text).map_err(|error| unreadable(&error))?;
        if !VERSIONS.contains(&config.cni_version.as_str()) {
            let known = format!("namegate-cni speaks {}", VERSIONS.join(", "));
            let message = format!("cniVersion `{}` is not supported", config.cni_version);
            return Err(Error::new(Code::IncompatibleVersion, message).with(known));
        }
        if config.wait_seconds > WAIT_SECONDS_MAX {
            let message = format!("waitSeconds is {}, at most {WAIT_SECONDS_MAX} is possible", config.wait_seconds);
            return Err(Error::new(Code::BadConfig, message));
        }
        Ok(config)
    }

    /// How long an agent that is starting is waited for.
    pub(crate) fn wait(&self) -> Duration {
        Duration::from_secs(self.wait_seconds)
    }
}

/// What the variables say.
pub(crate) struct Environment<'a>(pub(crate) &'a dyn Fn(&str) -> Option<String>);

/// The pod that a container belongs to, from `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
}

impl Environment<'_> {
    /// `CNI_COMMAND`.
    pub(crate) fn command(&self) -> Result<String, Error> {
        self.get("CNI_COMMAND")
    }

    /// `CNI_CONTAINERID`: an alphanumeric character, then those and `_.-`.
    pub(crate) fn container(&self) -> Result<String, Error> {
        let container = self.get("CNI_CONTAINERID")?;
        let starts = container.starts_with(|first: char| first.is_ascii_alphanumeric());
        let fits = container.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"_.-".contains(&octet));
        if starts && fits && container.len() <= CONTAINER_OCTETS_MAX {
            return Ok(container);
        }
        Err(Error::new(Code::BadEnvironment, format!("CNI_CONTAINERID `{container}` is no container's identifier")))
    }

    /// `CNI_IFNAME`: the interface inside the container.
    pub(crate) fn interface(&self) -> Result<String, Error> {
        let name = self.get("CNI_IFNAME")?;
        let fits = name.len() < 16 && name != "." && name != "..";
        if fits && !name.contains(|letter: char| letter == '/' || letter == ':' || letter.is_whitespace()) {
            return Ok(name);
        }
        Err(Error::new(Code::BadEnvironment, format!("CNI_IFNAME `{name}` is no name of an interface")))
    }

    /// `CNI_NETNS`: the container's network namespace.
    pub(crate) fn netns(&self) -> Result<PathBuf, Error> {
        self.get("CNI_NETNS").map(PathBuf::from)
    }

    /// The pod of `CNI_ARGS`.
    pub(crate) fn pod(&self) -> Result<Pod, Error> {
        let arguments = self.get("CNI_ARGS")?;
        let value = |key: &str| {
            let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value.to_owned()).next()
        };
        let needed = |key: &str| {
            value(key).ok_or_else(|| {
                Error::new(Code::BadEnvironment, format!("CNI_ARGS has no {key}"))
                    .with("endpoints are pods: the runtime must be Kubernetes' or name a pod as it does")
            })
        };
        Ok(Pod { namespace: needed("K8S_POD_NAMESPACE")?, name: needed("K8S_POD_NAME")?, uid: value("K8S_POD_UID") })
    }

    fn get(&self, name: &str) -> Result<String, Error> {
        let value = (self.0)(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| Error::new(Code::BadEnvironment, format!("the variable {name} is missing or empty")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn the_pod_stands_in_the_arguments() {
        for (arguments, want) in [
            (
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=empire;K8S_POD_NAME=xwing;K8S_POD_UID=7",
                Some(("empire", "xwing", Some("7"))),
            ),
            ("K8S_POD_NAMESPACE=empire;K8S_POD_NAME=xwing", Some(("empire", "xwing", None))),
            ("K8S_POD_NAMESPACE=;K8S_POD_NAME=xwing", None),
            ("K8S_POD_NAME=xwing", None),
            (";;=;a", None),
        ] {
            let get = |name: &str| (name == "CNI_ARGS").then(|| arguments.to_owned());
            let pod = Environment(&get).pod();
            let got = pod.as_ref().ok().map(|pod| (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()));
            assert_eq!(got, want, "{arguments}");
        }
    }

    #[test]
    fn identifiers_and_names_keep_their_form() {
        for (value, good) in [("a1_.-", true), ("-a", false), ("a/b", false), ("a b", false), ("ä", false)] {
            let get = |_: &str| Some(value.to_owned());
            assert_eq!(Environment(&get).container().is_ok(), good, "{value}");
        }
        for (value, good) in [("eth0", true), ("..", false), ("a/b", false), ("sixteen-octets-x", false)] {
            let get = |_: &str| Some(value.to_owned());
            assert_eq!(Environment(&get).interface().is_ok(), good, "{value}");
        }
        let get = environment(&[("CNI_NETNS", "")]);
        assert_eq!(Environment(&get).netns().unwrap_err().code, Code::BadEnvironment);
    }

    #[test]
    fn configurations_are_read_or_refused_with_a_code() {
        for (text, want) in [
            (r#"{"cniVersion":"1.1.0"}"#, None),
            (r#"{"cniVersion":"0.3.1","onAgentDown":"allow","waitSeconds":0}"#, None),
            (r#"{"cniVersion":"0.2.0"}"#, Some(Code::IncompatibleVersion)),
            (r#"{"cniVersion":"2.0.0"}"#, Some(Code::IncompatibleVersion)),
            (r#"{"cniVersion":"1.1.0","onAgentDown":"perhaps"}"#, Some(Code::Undecodable)),
            (r#"{"cniVersion":"1.1.0","waitSeconds":3600}"#, Some(Code::BadConfig)),
            (r#"{"cniVersion":"#, Some(Code::Undecodable)),
            ("", Some(Code::Undecodable)),
        ] {
            assert_eq!(Config::read(text.as_bytes()).err().map(|error| error.code), want, "{text}");
        }
        let not_text = b"{\"cniVersion\":\"1.1.0\",\"other\":\"\xff\"}";
        assert_eq!(Config::read(not_text).err().map(|error| error.code), Some(Code::Undecodable), "not UTF-8");
    }
}
