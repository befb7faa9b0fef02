//! Two endpoints that share a link, and one flow of the first: what the targets about packets are judged by.

use namegate_abi::{
    Address, AddressKey, AddressValue, CidrKey, EndpointValue, FlowKey, FlowValue, FragmentKey, FragmentValue,
    PolicyKey, PolicyValue, Reader, Tables, address_flags,
};

/// The endpoint whose packets are judged, another one of the same link, and a host elsewhere.
pub(crate) const ENDPOINT: u32 = 7;
pub(crate) const OTHER: u32 = 8;
pub(crate) const OWN_V4: [u8; 4] = [10, 0, 0, 7];
pub(crate) const OTHER_V4: [u8; 4] = [10, 0, 0, 8];
pub(crate) const REMOTE_V4: [u8; 4] = [192, 0, 2, 1];
pub(crate) const NODE_V4: [u8; 4] = [10, 0, 0, 1];
pub(crate) const OWN_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
pub(crate) const OTHER_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8];
pub(crate) const REMOTE_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Now, nanoseconds since boot.
pub(crate) const NOW_NS: u64 = 1_000_000_000_000;
/// Revision of the endpoint's policy.
pub(crate) const REVISION: u32 = 3;

/// A row of the endpoint; its policy allows nothing.
pub(crate) const ROW: EndpointValue = EndpointValue {
    endpoint: ENDPOINT,
    policy: 1,
    scope: ENDPOINT,
    revision: REVISION,
    flags: namegate_abi::endpoint_flags::ENFORCE_EGRESS | namegate_abi::endpoint_flags::ENFORCE_INGRESS,
    moved: 0,
};

/// The kernel's tables: addresses of the link, and at most one flow.
#[derive(Default)]
pub(crate) struct Link {
    rows: Vec<(AddressKey, AddressValue)>,
    /// The only flow.
    pub(crate) flow: Option<(FlowKey, FlowValue)>,
}

impl Link {
    /// Both endpoints and the node.
    pub(crate) fn new() -> Self {
        let v4 = [(OWN_V4, ENDPOINT, 0), (OTHER_V4, OTHER, 0), (NODE_V4, 0, address_flags::LOCAL_HOST)];
        let v4 = v4.map(|(octets, endpoint, flags)| (Address::from_v4(octets), endpoint, flags));
        let v6 = [(OWN_V6, ENDPOINT, 0), (OTHER_V6, OTHER, 0)];
        let v6 = v6.map(|(octets, endpoint, flags)| (Address(octets), endpoint, flags));
        let row = |(address, endpoint, flags)| {
            (AddressKey { scope: 0, address }, AddressValue { endpoint, flags, ..AddressValue::default() })
        };
        Self { rows: v4.into_iter().chain(v6).map(row).collect(), flow: None }
    }
}

impl Tables for Link {
    fn now_ns(&self) -> u64 {
        NOW_NS
    }

    fn address(&self, key: &AddressKey) -> Option<&AddressValue> {
        self.rows.iter().find(|(known, _)| known == key).map(|(_, row)| row)
    }

    fn cidr(&self, _: &CidrKey) -> Option<u32> {
        None
    }

    fn policy(&self, _: &PolicyKey) -> Option<PolicyValue> {
        None
    }

    fn flow(&self, key: &FlowKey) -> Option<FlowValue> {
        self.flow.filter(|(known, _)| known == key).map(|(_, flow)| flow)
    }

    fn fragment(&self, _: &FragmentKey) -> Option<FragmentValue> {
        None
    }
}

/// Bytes of a frame or packet.
pub(crate) struct Bytes<'f>(pub(crate) &'f [u8]);

impl Reader for Bytes<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}

/// Changes single bytes: pairs of a place and a value. A place beyond the end cuts the bytes to a length.
pub(crate) fn mutate(mut bytes: Vec<u8>, changes: &[u8]) -> Vec<u8> {
    for change in changes.chunks_exact(2) {
        match bytes.get_mut(usize::from(change[0])) {
            Some(byte) => *byte = change[1],
            None if change[0] >= 0xf0 => bytes.truncate(usize::from(change[1])),
            None => bytes.push(change[1]),
        }
    }
    bytes
}
