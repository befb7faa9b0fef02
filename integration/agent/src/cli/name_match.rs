//! `namegate fqdn match`: one pattern, one name.

use anyhow::Context;
use namegate_config::name::{Fqdn, NamePattern};

use super::{Outcome, output};

pub(crate) fn run(pattern: &str, name: &str) -> anyhow::Result<Outcome> {
    let read = NamePattern::pattern(pattern).with_context(|| format!("`{pattern}` is no name pattern"))?;
    let matches = match name.parse::<Fqdn>() {
        Ok(name) => read.matches(&name),
        Err(error) => {
            anstream::eprintln!("note: no pattern stands for `{name}`: {error}");
            false
        }
    };
    output::text(if matches { "match\n" } else { "no match\n" })?;
    Ok(if matches { Outcome::Good } else { Outcome::Bad })
}
