//! Which texts the language takes, as patterns. Where a pattern takes more than the reader its line says so.
//!
//! The readers of these texts tell what is wrong with one; a test compares their answers with the patterns.

use crate::{language::Text, name::PATTERN_CHARS_MAX};

use super::super::ports::NAME_CHARS_MAX;

/// A name of an object or namespace (RFC 1123 subdomain).
pub(crate) const NAME: Text =
    Text::like("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*", Some(253));

/// `matchName`.
pub(crate) const DNS_NAME: Text = Text::like("[-_A-Za-z0-9]+(\\.[-_A-Za-z0-9]+)*\\.?", Some(PATTERN_CHARS_MAX));

/// `matchPattern` and `serverNames`.
pub(crate) const DNS_PATTERN: Text = Text::like("[-_*A-Za-z0-9]+(\\.[-_*A-Za-z0-9]+)*\\.?", Some(PATTERN_CHARS_MAX));

/// `domainNames`; with the star at most 254 characters.
pub(crate) const DOMAIN_NAME: Text =
    Text::like("(\\*\\.)?[-_A-Za-z0-9]+(\\.[-_A-Za-z0-9]+)*\\.?", Some(PATTERN_CHARS_MAX));

/// An address and a length. Of IPv6 addresses the characters alone are looked at.
pub(crate) const PREFIX: Text = Text::like(
    "((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}/(3[0-2]|[12]?[0-9])\
     |[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))",
    None,
);

/// The same, or an address alone.
pub(crate) const PREFIX_OR_ADDRESS: Text = Text::like(
    "((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}(/(3[0-2]|[12]?[0-9]))?\
     |[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)",
    None,
);

/// A port of Cilium's policies: a number from 0 to 65535 as text, or a name.
pub(crate) const PORT: Text = Text::like(
    "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9][0-9]|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}|0\
     |([0-9]+-)*[0-9]*[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*)",
    Some(NAME_CHARS_MAX),
);

/// A name of a port (RFC 6335 §5.1).
pub(crate) const PORT_NAME: Text =
    Text::like("([0-9]+-)*[0-9]*[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*", Some(NAME_CHARS_MAX));

/// A type of ICMP as a number in text, 0 to 255; names stand beside it.
pub(crate) const ICMP_NUMBER: &str = "25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9]";

/// A label's key without a source. Its prefix is not looked at closely.
pub(crate) const LABEL_KEY: Text = Text::like(
    "(io\\.cilium\\.k8s\\.namespace\\.labels\\.)?([-.a-z0-9]{1,253}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?",
    None,
);

/// The same with a source, or without one.
pub(crate) const SOURCED_KEY: Text = Text::like(
    "((k8s|node|reserved|any):)?(io\\.cilium\\.k8s\\.namespace\\.labels\\.)?([-.a-z0-9]{1,253}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?",
    None,
);

/// A label's value.
pub(crate) const LABEL_VALUE: Text = Text::like("([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?", Some(63));

/// `Name: value`, or the name of a header alone (RFC 9110 §5.1).
pub(crate) const HEADER: Text = Text::like("[-!#$%&'*+.^_`|~0-9A-Za-z]+:?( (.|[\\r\\n])*)?", None);

/// The name of a header.
pub(crate) const HEADER_NAME: Text = Text::like("[-!#$%&'*+.^_`|~0-9A-Za-z]+", None);

/// `log.value`: printable characters.
pub(crate) const LOG: Text = Text::like("[^\\x00-\\x1f\\x7f-\\x9f]*", Some(super::super::cilium::LOG_CHARS_MAX));
