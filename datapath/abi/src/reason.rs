//! Why a packet passed or not: one octet in the kernel, one phrase for people.

/// The side of the endpoint a packet is on.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the endpoint.
    Ingress = 0,
    /// From the endpoint.
    Egress = 1,
}

impl Direction {
    /// The other direction.
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// `ingress` or `egress`.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Reads the octet of a map row or record; anything but zero is egress.
    pub const fn from_octet(octet: u8) -> Self {
        if octet == 0 { Self::Ingress } else { Self::Egress }
    }
}

macro_rules! reasons {
    ($( $(#[$doc:meta])* $name:ident = $octet:literal, $word:literal, $text:literal; )*) => {
        /// Why a packet was allowed (below [`Reason::FIRST_DENIAL`]) or denied.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $( $(#[$doc])* $name = $octet, )* }

        impl Reason {
            /// Every reason, in the order of its octet.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )* ];

            /// A short word for metrics and JSON.
            pub const fn word(self) -> &'static str {
                match self { $( Self::$name => $word, )* }
            }

            /// A phrase for people.
            pub const fn text(self) -> &'static str {
                match self { $( Self::$name => $text, )* }
            }

            /// Reads the octet of a record.
            pub const fn from_octet(octet: u8) -> Option<Self> {
                match octet { $( $octet => Some(Self::$name), )* _ => None }
            }
        }
    };
}

reasons! {
    /// A rule allows it.
    Rule = 0, "rule", "a rule allows it";
    /// No policy selects the endpoint in this direction.
    NoPolicy = 1, "no-policy", "no policy selects the endpoint in this direction";
    /// Part of a flow that was allowed before.
    Established = 2, "established", "part of an allowed flow";
    /// The answer direction of an allowed flow.
    Reply = 3, "reply", "the reply of an allowed flow";
    /// An ICMP error about an allowed flow.
    Related = 4, "related", "an ICMP error about an allowed flow";
    /// Neighbour discovery or multicast listener discovery (RFC 4861, RFC 3810), or ARP.
    Neighbour = 5, "neighbour", "address resolution on the link";
    /// The node's own traffic to its endpoints.
    LocalHost = 6, "local-host", "the node may reach its own endpoints";
    /// An answer of Namegate's own proxy.
    Proxy = 7, "proxy", "an answer of the proxy";
    /// A later fragment of an allowed packet.
    Fragment = 8, "fragment", "a fragment of an allowed packet";

    /// No rule allows it and the endpoint's default is to deny.
    DefaultDeny = 32, "default-deny", "no rule allows it";
    /// A deny rule matches.
    DenyRule = 33, "deny-rule", "a deny rule matches";
    /// The name that opened the address has outlived its TTL.
    NameExpired = 34, "name-expired", "the TTL of the name that opened this address has ended";
    /// The source is not an address of the endpoint.
    SpoofedSource = 35, "spoofed-source", "the source is not an address of the endpoint";
    /// Headers are cut short or contradict each other.
    Malformed = 36, "malformed", "the headers cannot be read";
    /// Neither IPv4, IPv6 nor ARP.
    NotIp = 37, "not-ip", "neither IPv4 nor IPv6";
    /// A later fragment whose first one was not seen.
    FragmentAlone = 38, "fragment-alone", "a fragment whose first part was not allowed";
    /// The rule asks for a layer 7 proxy that does not answer.
    ProxyAbsent = 39, "proxy-absent", "the layer 7 proxy does not answer";
    /// The connection asks for a name that did not open the address.
    NameMismatch = 40, "name-mismatch", "the name asked for did not open this address";
    /// ARP, neighbour discovery or an ICMP redirect claims an address, a link address or a role that is not the sender's.
    ForgedNeighbour = 41, "forged-neighbour", "it claims an address or a role on the link that is not the sender's";
    /// ARP or neighbour discovery of a size or form that its standard does not give it.
    NeighbourForm = 42, "neighbour-form", "ARP or neighbour discovery has another size or form than its standard says";
    /// The destination is not an address of the endpoint that is about to receive it.
    ForeignDestination = 43, "foreign-destination", "the destination is not an address of the endpoint";
    /// ARP or neighbour discovery that reached the endpoint with everybody else and is for another one: only counted.
    NeighbourElsewhere = 44, "neighbour-elsewhere", "address resolution on the link that is for another endpoint";
    /// Programs are attached to the interface, and no endpoint is behind it yet or any more: it is closed.
    NoEndpoint = 45, "no-endpoint", "the interface has no complete endpoint yet";
}

impl Reason {
    /// The octet of the first denial; all above are denials too.
    pub const FIRST_DENIAL: u8 = 32;
    /// One more than the highest octet in use: the length of the counter table of one direction.
    pub const SPACE: u32 = 46;

    /// Whether the packet is refused.
    pub const fn denies(self) -> bool {
        self as u8 >= Self::FIRST_DENIAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_come_back_and_fit_the_counter_table() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_octet(reason as u8), Some(reason));
            assert!(u32::from(reason as u8) < Reason::SPACE, "{}", reason.word());
        }
        assert_eq!(Reason::from_octet(31), None);
    }

    #[test]
    fn words_are_distinct() {
        for (at, one) in Reason::ALL.iter().enumerate() {
            assert!(Reason::ALL[at + 1..].iter().all(|other| other.word() != one.word()));
        }
    }
}
