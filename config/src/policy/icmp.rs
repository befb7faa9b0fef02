//! `icmps`: families and types of ICMP, by number or name (IANA "ICMP Type Numbers" and "ICMPv6 Parameters").

use super::{object::Context, shapes::elements};
use crate::{
    diagnostic::Code,
    document,
    language::Bounds,
    reader::{Value, nearest},
    rule::PortMatch,
};

/// Most fields in one element.
pub(super) const FIELDS_MAX: usize = 40;
/// A type as a number.
pub(super) const NUMBER: Bounds = Bounds(0, 255);
/// Words for the families, and whether they are IPv6.
pub(super) const FAMILIES: [(&str, bool); 2] = [("IPv4", false), ("IPv6", true)];

/// Names of types of IPv4.
pub(super) const V4: [(&str, u8); 15] = [
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEcho Request", 42),
    ("ExtendedEchoReply", 43),
];
/// Names of types of IPv6.
pub(super) const V6: [(&str, u8); 27] = [
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

/// The types that an element names.
pub(super) fn icmps(context: &mut Context<'_>, value: &Value<'_>) -> Vec<PortMatch> {
    let mut types = Vec::new();
    for item in filled(context, value) {
        let Some(object) = context.reader.shaped(&item, &elements::ICMP) else { continue };
        let Some(fields) = context.reader.required(&object, "fields") else { continue };
        let items = filled(context, &fields);
        if items.len() > FIELDS_MAX {
            let problem = format!("at most {FIELDS_MAX} types can stand here, these are {}", items.len());
            context.reader.wrong(&fields, Code::BadValue, problem);
        }
        for field in &items {
            types.extend(self::field(context, field));
        }
    }
    types
}

fn filled<'n>(context: &mut Context<'_>, value: &Value<'n>) -> Vec<Value<'n>> {
    let Some(items) = context.reader.list(value) else { return Vec::new() };
    if items.is_empty() {
        context.reader.wrong(value, Code::BadValue, "must name at least one type");
    }
    items
}

fn field(context: &mut Context<'_>, value: &Value<'_>) -> Option<PortMatch> {
    let object = context.reader.shaped(value, &elements::ICMP_TYPE)?;
    let v6 = match object.get("family") {
        Some(family) => context.reader.choice(&family, &FAMILIES),
        None => Some(false),
    };
    let place = context.reader.required(&object, "type");
    let (v6, place) = (v6?, place?.clone());
    let text = match &place.node.kind {
        document::Kind::Text(text) => text.clone(),
        _ => context.reader.integer(&place, NUMBER.range())?.to_string(),
    };
    let is_number = text.bytes().all(|octet| octet.is_ascii_digit()) && !text.is_empty();
    if is_number {
        let kind = text.parse::<u8>().ok().filter(|_| text == "0" || !text.starts_with('0'));
        if kind.is_none() {
            let problem = format!("`{text}` is no type: 0 to 255 without leading zeros");
            context.reader.wrong(&place.at_value(), Code::BadValue, problem);
        }
        return Some(PortMatch::Icmp { v6, kind: kind? });
    }
    let (table, family): (&[(&str, u8)], &str) = if v6 { (&V6, "IPv6") } else { (&V4, "IPv4") };
    if let Some((_, kind)) = table.iter().find(|(name, _)| *name == text) {
        return Some(PortMatch::Icmp { v6, kind: *kind });
    }
    let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
    let mut help = format!("a number, or one of {}", names.join(", "));
    if let Some(near) = nearest(&text, &names) {
        help = format!("did you mean `{near}`? It is {help}");
    }
    let problem = format!("`{text}` is no type of ICMP for {family}");
    context.reader.wrong(&place.at_value(), Code::BadValue, problem).help = Some(help);
    None
}
