//! What rules say of a question.

use namegate_config::{l7::L7, question::QueryType, reference::Limits};

use crate::{Asked, Forbidden};

/// Why a question is refused; `None` where it may be asked. A name that no pattern can stand for is none.
pub fn forbidden(limits: &Limits, asked: Asked<'_>) -> Option<Forbidden> {
    match limits {
        Limits::Free => None,
        Limits::Closed(rule) => Some(Forbidden {
            reason: rule.as_ref().map_or_else(|| "no rule allows this resolver".to_owned(), ToString::to_string),
            is_name_allowed: false,
        }),
        Limits::Rules(rules) => {
            let kind = QueryType(asked.kind);
            let mut naming = None;
            for rule in rules {
                let (Some(L7::Dns(questions)), Some(name)) = (rule.l7.as_deref(), asked.name) else { continue };
                if questions.allows(name, kind) {
                    return None;
                }
                if naming.is_none() && questions.names_it(name) {
                    naming = Some((rule, questions));
                }
            }
            let reason = match naming {
                Some((rule, questions)) => {
                    let types: Vec<String> = questions.types.iter().flatten().map(ToString::to_string).collect();
                    format!("{} allows {} only, this asks for {kind}", rule.origin, types.join(", "))
                }
                None => format!("no pattern of {} allows this name", rules.first()?.origin),
            };
            Some(Forbidden { reason, is_name_allowed: naming.is_some() })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use namegate_config::{
        policy::{Catalog, parse, translate},
        rule::Rule,
    };

    use super::*;

    /// Rules of one object for each: the types that it allows, and its pattern.
    fn limits(objects: &[(&str, &str)]) -> Limits {
        let text = |(types, pattern): &(&str, &str)| {
            let annotations =
                if types.is_empty() { String::new() } else { format!("namegate.io/dns-types: '{types}'") };
            format!(
                "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: shop, annotations: \
                 {{{annotations}}}}}\nspec: {{endpointSelector: {{}}, egress: [{{toEntities: [world], toPorts: [{{ports: \
                 [{{port: '53', protocol: ANY}}], rules: {{dns: [{{matchPattern: '{pattern}'}}]}}}}]}}]}}\n"
            )
        };
        let rules = objects.iter().flat_map(|object| {
            let parsed = parse("p.yaml", &text(object));
            assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
            translate(&parsed.documents, &Catalog::default()).rules
        });
        Limits::Rules(rules.map(Arc::<Rule>::new).collect())
    }

    #[test]
    fn questions_pass_by_name_and_type() {
        let no_pattern = Some(("no pattern of shop/p spec.egress[0] allows this name", false));
        let addresses_only = Some(("shop/p spec.egress[0] allows A, AAAA only, this asks for TXT", true));
        for (objects, name, kind, want) in [
            (&[("", "*.io")][..], "a.io", 16, None),
            (&[("A, AAAA", "*.io")], "a.io", 28, None),
            (&[("A, AAAA", "*.io")], "a.io", 16, addresses_only),
            (&[("A, AAAA", "*.io")], "a.com", 1, no_pattern),
            // Rules add up: what one of them allows passes.
            (&[("A, AAAA", "*.io"), ("TXT", "a.io")], "a.io", 16, None),
            (&[("A, AAAA", "*.io"), ("TXT", "*.com")], "a.io", 16, addresses_only),
        ] {
            let name = name.parse().unwrap();
            let found = forbidden(&limits(objects), Asked { name: Some(&name), kind });
            let found = found.as_ref().map(|why| (why.reason.as_str(), why.is_name_allowed));
            assert_eq!(found, want, "{objects:?} {name} {kind}");
        }
        let nameless = forbidden(&limits(&[("", "*")]), Asked { name: None, kind: 1 });
        assert!(nameless.is_some_and(|why| !why.is_name_allowed));
        assert_eq!(forbidden(&Limits::Free, Asked { name: None, kind: 1 }), None);
    }
}
