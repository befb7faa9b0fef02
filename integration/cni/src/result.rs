//! What the plugins before have made (CNI specification, section 5: success). The form of what is read here has been
//! the same since 0.3.1.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Code, Error};

/// The parts of a result that tell where the pod is.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Made {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Address>,
}

#[derive(Clone, Debug, Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    /// With the length of its network: `10.1.2.3/24`.
    address: String,
    #[serde(default)]
    interface: Option<usize>,
}

impl Made {
    /// Reads `prevResult`.
    pub(crate) fn read(previous: &Value) -> Result<Self, Error> {
        serde_json::from_value(previous.clone())
            .map_err(|error| Error::new(Code::Undecodable, "prevResult cannot be read").with(error))
    }

    /// The pod's addresses, without the lengths of their networks.
    pub(crate) fn addresses(&self) -> Result<Vec<std::net::IpAddr>, Error> {
        let inside = |index: usize| self.interfaces.get(index).is_none_or(|interface| !interface.sandbox.is_empty());
        let ours = self.ips.iter().filter(|address| address.interface.is_none_or(inside));
        let addresses = ours.map(|address| {
            let text = address.address.split('/').next().unwrap_or_default();
            text.parse().map_err(|error| {
                Error::new(Code::Undecodable, format!("prevResult has the address `{}`", address.address)).with(error)
            })
        });
        let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(Error::new(Code::BadConfig, "prevResult has no address of the pod"));
        }
        Ok(addresses)
    }

    /// Interfaces on the node, last made first: a bridge comes before the port that belongs to the pod.
    pub(crate) fn outside(&self) -> impl Iterator<Item = &str> {
        self.interfaces.iter().rev().filter(|interface| interface.sandbox.is_empty()).map(|found| found.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn results_of_known_plugins_are_read() {
        for (plugin, result, addresses, outside) in [
            (
                "ptp",
                json!({"cniVersion": "1.0.0",
                    "interfaces": [{"name": "veth1", "mac": "x"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
                    "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1}, {"address": "fd00::3/64", "interface": 1}]}),
                vec!["10.1.2.3", "fd00::3"],
                vec!["veth1"],
            ),
            (
                "bridge of 0.3.1",
                json!({"cniVersion": "0.3.1",
                    "interfaces": [{"name": "cni0"}, {"name": "veth2"}, {"name": "eth0", "sandbox": "/run/netns/b"}],
                    "ips": [{"version": "4", "address": "10.1.2.3/24", "interface": 2}]}),
                vec!["10.1.2.3"],
                vec!["veth2", "cni0"],
            ),
            ("one that names no interface", json!({"ips": [{"address": "10.1.2.3/32"}]}), vec!["10.1.2.3"], vec![]),
        ] {
            let made = Made::read(&result).unwrap();
            let got: Vec<String> = made.addresses().unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(
                (got, made.outside().collect::<Vec<_>>()),
                (addresses.iter().map(ToString::to_string).collect(), outside),
                "{plugin}"
            );
        }
    }

    #[test]
    fn results_without_an_address_are_refused() {
        for (result, code) in [
            (json!({}), Code::BadConfig),
            (json!({"ips": []}), Code::BadConfig),
            (json!({"ips": [{"address": "here"}]}), Code::Undecodable),
            (json!({"ips": "none"}), Code::Undecodable),
            (json!([]), Code::BadConfig),
            (
                json!({"interfaces": [{"name": "cni0"}], "ips": [{"address": "10.0.0.1/8", "interface": 0}]}),
                Code::BadConfig,
            ),
        ] {
            let got = Made::read(&result).and_then(|made| made.addresses());
            assert_eq!(got.unwrap_err().code, code, "{result}");
        }
    }
}
