//! What may have changed since the last reading.

use std::collections::BTreeSet;

/// Why the thread that reads wakes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A file of the folder of policies, by its name.
    Policy(String),
    /// The folder of policies: any file in it may be another.
    Folder,
    /// The endpoints file.
    Endpoints,
    /// Interfaces or addresses of this machine.
    Machine,
    /// A snapshot of Kubernetes, or a registration of a CNI plugin.
    Cluster,
    /// How far the kernel is.
    Kernel,
    /// Everything.
    Everything,
}

/// All that may have changed. Whether Kubernetes and its registrations have is seen by their revisions.
#[derive(Debug)]
pub(crate) struct Touched {
    /// Names of policy files; `None` is any file of the folder.
    policies: Option<BTreeSet<String>>,
    endpoints: bool,
    machine: bool,
    everything: bool,
}

impl Default for Touched {
    /// Nothing.
    fn default() -> Self {
        Self { policies: Some(BTreeSet::new()), endpoints: false, machine: false, everything: false }
    }
}

impl Touched {
    /// Everything.
    pub(crate) const fn everything() -> Self {
        Self { policies: None, endpoints: true, machine: true, everything: true }
    }

    /// Adds a cause.
    pub(crate) fn add(&mut self, cause: Cause) {
        match cause {
            Cause::Policy(name) => {
                if let Some(names) = &mut self.policies {
                    names.insert(name);
                }
            }
            Cause::Folder => self.policies = None,
            Cause::Endpoints => self.endpoints = true,
            Cause::Machine => self.machine = true,
            Cause::Cluster | Cause::Kernel => {}
            Cause::Everything => *self = Self::everything(),
        }
    }

    /// The policy files that may have changed; `None` where any may have.
    pub(crate) const fn named_policies(&self) -> Option<&BTreeSet<String>> {
        self.policies.as_ref()
    }

    /// Whether the endpoints file may have changed.
    pub(crate) const fn has_endpoints(&self) -> bool {
        self.endpoints
    }

    /// Whether interfaces or addresses of this machine may have changed.
    pub(crate) const fn has_machine(&self) -> bool {
        self.machine
    }

    /// Whether nothing in particular is known to have changed, and everything is looked at.
    pub(crate) const fn is_everything(&self) -> bool {
        self.everything
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_add_up() {
        let mut touched = Touched::default();
        assert!(touched.named_policies().is_some_and(BTreeSet::is_empty) && !touched.has_endpoints());
        for name in ["b.yaml", "a.yaml", "b.yaml"] {
            touched.add(Cause::Policy(name.to_owned()));
        }
        touched.add(Cause::Cluster);
        let names: Vec<&str> = touched.named_policies().into_iter().flatten().map(String::as_str).collect();
        assert_eq!(names, ["a.yaml", "b.yaml"]);
        assert!(!touched.has_machine());
        touched.add(Cause::Folder);
        assert!(touched.named_policies().is_none() && !touched.is_everything());
        touched.add(Cause::Everything);
        assert!(touched.has_machine() && touched.has_endpoints() && touched.is_everything());
    }
}
