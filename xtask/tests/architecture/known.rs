//! Circles of files that are left, each with its reason. One that is gone, or that has other files, fails the test.

/// A circle that is left, and why.
pub(crate) struct Known {
    pub(crate) files: &'static [&'static str],
    pub(crate) reason: &'static str,
}

pub(crate) const KNOWN: [Known; 15] = [
    Known {
        files: &[
            "config/src/policy/cidr.rs",
            "config/src/policy/cilium.rs",
            "config/src/policy/cluster_policy.rs",
            "config/src/policy/icmp.rs",
            "config/src/policy/layer7.rs",
            "config/src/policy/network_policy.rs",
            "config/src/policy/object.rs",
            "config/src/policy/peers.rs",
            "config/src/policy/ports.rs",
            "config/src/policy/selector.rs",
            "config/src/policy/shapes.rs",
            "config/src/policy/shapes/cilium.rs",
            "config/src/policy/shapes/elements.rs",
            "config/src/policy/shapes/kubernetes.rs",
            "config/src/policy/shapes/text.rs",
        ],
        reason: "a table of fields names the function that reads each field, and such a function reads the fields below by their tables",
    },
    Known {
        files: &["datapath/abi/src/decide.rs", "datapath/abi/src/standing.rs"],
        reason: "one decision in two files: what belongs to a known flow, and what a new one gets",
    },
    Known {
        files: &["integration/kubernetes/src/row.rs", "integration/kubernetes/src/service.rs"],
        reason: "a row is one of its kinds, and each kind is read into a row",
    },
    Known {
        files: &["datapath/abi/src/icmp.rs", "datapath/abi/src/packet.rs"],
        reason: "errors of ICMP quote a packet, and packets may be such errors",
    },
    Known {
        files: &[
            "datapath/ebpf/src/maps.rs",
            "datapath/ebpf/src/opening.rs",
            "datapath/ebpf/src/rate.rs",
            "datapath/ebpf/src/report.rs",
        ],
        reason: "a map is declared with the type of its rows, beside the code that fills them",
    },
    Known {
        files: &[
            "datapath/enforcer/src/attachments.rs",
            "datapath/enforcer/src/shortages.rs",
            "datapath/enforcer/src/writer.rs",
        ],
        reason: "the verbs of one struct, the `Enforcer`, by what they are about",
    },
    Known {
        files: &[
            "datapath/engine/src/cache.rs",
            "datapath/engine/src/compile.rs",
            "datapath/engine/src/engine.rs",
            "datapath/engine/src/feed.rs",
            "datapath/engine/src/identify.rs",
            "datapath/engine/src/learn.rs",
            "datapath/engine/src/place.rs",
            "datapath/engine/src/plan.rs",
            "datapath/engine/src/policy_view.rs",
            "datapath/engine/src/requests.rs",
            "datapath/engine/src/retry.rs",
            "datapath/engine/src/rules.rs",
            "datapath/engine/src/shares.rs",
            "datapath/engine/src/shortage.rs",
            "datapath/engine/src/sound.rs",
            "datapath/engine/src/update.rs",
            "datapath/engine/src/views.rs",
            "datapath/engine/src/work.rs",
        ],
        reason: "the verbs of one struct, the `Engine`, by what they are about",
    },
    Known {
        files: &[
            "datapath/loader/src/attach.rs",
            "datapath/loader/src/datapath.rs",
            "datapath/loader/src/inspect.rs",
            "datapath/loader/src/node.rs",
        ],
        reason: "the verbs of one struct, the `Datapath`, by what they are about",
    },
    Known {
        files: &[
            "integration/testbed/src/bin/namegate-bench/datapath/iptables.rs",
            "integration/testbed/src/bin/namegate-bench/datapath/leg.rs",
            "integration/testbed/src/bin/namegate-bench/datapath/nftables.rs",
        ],
        reason: "three ways to fill a table share the steps of a leg, and a leg is one of them",
    },
    Known {
        files: &[
            "integration/testbed/src/bin/namegate-gauntlet/embedded.rs",
            "integration/testbed/src/bin/namegate-gauntlet/servers.rs",
        ],
        reason: "a server of the list may be one of our own, which takes the list's certificate",
    },
    Known {
        files: &[
            "integration/testbed/src/bin/namegate-gauntlet/form.rs",
            "integration/testbed/src/bin/namegate-gauntlet/hello.rs",
            "integration/testbed/src/bin/namegate-gauntlet/quic.rs",
            "integration/testbed/src/bin/namegate-gauntlet/tls.rs",
        ],
        reason: "a form names what it sends, and what is sent is read from a form",
    },
    Known {
        files: &[
            "integration/testbed/src/bin/namegate-gauntlet/judge.rs",
            "integration/testbed/src/bin/namegate-gauntlet/records.rs",
        ],
        reason: "a record is found by the mark that the judge reads too",
    },
    Known {
        files: &["integration/testbed/src/client.rs", "integration/testbed/src/sctp.rs"],
        reason: "SCTP has no socket in the library that clients use, and fails as they do",
    },
    Known {
        files: &[
            "l7-proxy/src/accept.rs",
            "l7-proxy/src/bound.rs",
            "l7-proxy/src/connection.rs",
            "l7-proxy/src/http.rs",
            "l7-proxy/src/proxy.rs",
            "l7-proxy/src/standing.rs",
            "l7-proxy/src/tunnel.rs",
        ],
        reason: "what a connection turns into (a request, a tunnel, a bound one) is a function of `connection`, and each uses its bounds",
    },
    Known {
        files: &["l7-proxy/src/hello.rs", "l7-proxy/src/record.rs"],
        reason: "a handshake lies in records, and both have one error",
    },
];
