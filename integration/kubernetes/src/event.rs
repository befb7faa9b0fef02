//! Events about policy objects (events.k8s.io/v1).
//!
//! `kube::runtime::events::Recorder` is not used, since it would tell more and say less. It names an event by the clock and
//! remembers it in memory: each of a thousand nodes, and each start of an agent, would write an event of its own. It also
//! counts events of one reason as one, so that of two mistakes of an object the second would be lost. Here the name of an
//! event is made of its words and of the object's generation, so that the API server itself keeps one of each.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::core::ObjectMeta;

use crate::object::Object;

/// Who tells events.
const CONTROLLER: &str = "namegate.io/agent";
/// Longest note of an event in octets (events.k8s.io/v1).
const NOTE_OCTETS_MAX: usize = 1_024;

/// What an event is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum About {
    Mistake,
    Warning,
    /// A selector that selects nobody; that may be meant.
    Nobody,
}

impl About {
    const fn reason(self) -> &'static str {
        match self {
            Self::Mistake => "Refused",
            Self::Warning => "Doubtful",
            Self::Nobody => "SelectsNobody",
        }
    }

    /// As `kubectl` shows it.
    const fn kind(self) -> &'static str {
        match self {
            Self::Mistake | Self::Warning => "Warning",
            Self::Nobody => "Normal",
        }
    }

    /// The same on every node, for the same words about an object; a change of the object says mistakes anew.
    pub(crate) fn mark(self, object: &Object, text: &str) -> u64 {
        let generation = if matches!(self, Self::Nobody) { 0 } else { object.generation };
        let mut hasher = DefaultHasher::new();
        (&object.uid, generation, self.reason(), text).hash(&mut hasher);
        hasher.finish()
    }
}

/// The event that tells `text` of an object.
pub(crate) fn event(object: &Object, about: About, text: &str, mark: u64, node: &str) -> Event {
    let namespace = if object.namespace.is_empty() { "default" } else { &*object.namespace };
    let mut told = text.to_owned();
    while told.len() > NOTE_OCTETS_MAX {
        told.pop();
    }
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{mark:016x}", object.name)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        action: Some("Enforce".to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        note: Some(told),
        reason: Some(about.reason().to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(object.version.clone()),
            kind: Some(object.kind.name().to_owned()),
            name: Some(object.name.to_string()),
            namespace: Some(object.namespace.to_string()).filter(|namespace| !namespace.is_empty()),
            uid: Some(object.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(node.to_owned()),
        type_: Some(about.kind().to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::row::Kind;

    fn object(generation: i64) -> Object {
        Object {
            kind: Kind::CiliumNetworkPolicy,
            version: "cilium.io/v2".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u".into(),
            generation,
            status: Arc::new(Value::Null),
        }
    }

    fn name(object: &Object, about: About, text: &str, node: &str) -> String {
        event(object, about, text, about.mark(object, text), node).metadata.name.unwrap()
    }

    #[test]
    fn nodes_that_say_the_same_write_one_event() {
        let of = |about, text, node| name(&object(3), about, text, node);
        assert_eq!(of(About::Mistake, "wrong", "a"), of(About::Mistake, "wrong", "b"));
        assert_ne!(of(About::Mistake, "wrong", "a"), of(About::Mistake, "also wrong", "a"), "each mistake is told");
        assert_ne!(of(About::Mistake, "wrong", "a"), of(About::Warning, "wrong", "a"));
        assert!(of(About::Mistake, "wrong", "a").starts_with("web."));
    }

    #[test]
    fn a_change_of_the_object_tells_mistakes_anew() {
        let of = |about, generation| name(&object(generation), about, "text", "a");
        assert_ne!(of(About::Mistake, 3), of(About::Mistake, 4));
        assert_ne!(of(About::Warning, 3), of(About::Warning, 4));
        assert_eq!(of(About::Nobody, 3), of(About::Nobody, 4));
    }

    #[test]
    fn an_event_says_why_about_what_and_by_whom() {
        for (about, reason, kind) in [
            (About::Mistake, "Refused", "Warning"),
            (About::Warning, "Doubtful", "Warning"),
            (About::Nobody, "SelectsNobody", "Normal"),
        ] {
            let event = event(&object(1), about, "text", 7, "node-1");
            let regarding = event.regarding.unwrap();
            assert_eq!((event.reason.as_deref(), event.type_.as_deref()), (Some(reason), Some(kind)));
            assert_eq!((event.note.as_deref(), event.action.as_deref()), (Some("text"), Some("Enforce")));
            assert_eq!((regarding.namespace.as_deref(), regarding.uid.as_deref()), (Some("shop"), Some("u")));
            assert_eq!(event.reporting_instance.as_deref(), Some("node-1"));
        }
    }

    #[test]
    fn objects_without_a_namespace_have_their_events_in_default() {
        let object = Object { namespace: "".into(), ..object(1) };
        let event = event(&object, About::Mistake, "text", 7, "a");
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.regarding.unwrap().namespace, None);
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let event = event(&object(1), About::Mistake, &"\u{e9}".repeat(600), 7, "a");
        assert_eq!(event.note, Some("\u{e9}".repeat(512)));
    }
}
