//! One file or object as it was read: its rules, and what is said of it. Its text and its tree are not kept.

use std::{io, path::Path, sync::Arc};

use namegate_api::view::{self, DocumentState};
use namegate_config::{
    diagnostic::Diagnostic,
    intern::Interner,
    policy::{self, Catalog, CidrGroup, Document, Parsed},
    rule::Rule,
};

/// Code of the diagnostic that a file or folder cannot be read, which is no mistake in it.
pub(crate) const UNREADABLE: &str = "namegate::unreadable";

/// One file or object, and which form of it is in force.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// Path of the file, or origin of the object.
    pub(crate) name: Arc<str>,
    /// The form in force; none where everything is refused.
    pub(crate) good: Option<Arc<[Loaded]>>,
    /// Whether that is the form that was read last, and not a former one.
    pub(crate) is_current: bool,
    /// Mistakes and warnings of the form that was read last.
    pub(crate) diagnostics: Vec<view::Diagnostic>,
}

/// One policy without mistakes.
#[derive(Debug)]
pub(crate) struct Loaded {
    kind: String,
    namespace: Option<String>,
    name: String,
    pub(crate) body: Body,
}

/// What a policy comes to.
#[derive(Debug)]
pub(crate) enum Body {
    /// Rules that depend on nothing else.
    Rules(Vec<Arc<Rule>>),
    /// A policy that refers to services or groups: its rules depend on them.
    Refers(Box<Document>),
    /// A group that policies refer to.
    Group(CidrGroup),
}

impl Unit {
    /// Whether both say the same. Forms that were read at different times are different.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let is_same_form = match (&self.good, &other.good) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        is_same_form && self.is_current == other.is_current && self.diagnostics == other.diagnostics
    }

    /// Everything in force.
    pub(crate) fn loaded(&self) -> &[Loaded] {
        self.good.as_deref().unwrap_or_default()
    }

    /// The line of one of its policies with so many rules.
    pub(crate) fn line(&self, of: &Loaded, rules: usize) -> view::Document {
        view::Document {
            file: self.name.to_string(),
            kind: Some(of.kind.clone()),
            namespace: of.namespace.clone(),
            name: Some(of.name.clone()),
            state: if self.is_current { DocumentState::Accepted } else { DocumentState::KeptFormer },
            rules,
        }
    }

    /// The line of a unit of which nothing is in force.
    pub(crate) fn refused_line(&self) -> view::Document {
        view::Document {
            file: self.name.to_string(),
            kind: None,
            namespace: None,
            name: None,
            state: DocumentState::Refused,
            rules: 0,
        }
    }
}

/// The policies of a text or object; `None` where there is a mistake in it.
pub(crate) fn load(parsed: Parsed, interner: &mut Interner) -> Option<Arc<[Loaded]>> {
    if parsed.diagnostics.iter().any(Diagnostic::is_error) {
        return None;
    }
    Some(parsed.documents.into_iter().map(|document| Loaded::new(document, interner)).collect())
}

impl Loaded {
    fn new(document: Document, interner: &mut Interner) -> Self {
        let (kind, namespace, name) = (document.kind.clone(), document.namespace.clone(), document.name.clone());
        let body = match document.cidr_group() {
            Some(group) => Body::Group(group.clone()),
            None if document.is_self_contained() => {
                let rules = policy::translate(&[document], &Catalog::default()).rules;
                Body::Rules(rules.into_iter().map(|rule| interner.rule(rule)).collect())
            }
            None => Body::Refers(Box::new(document)),
        };
        Self { kind, namespace, name, body }
    }
}

/// A diagnostic as the API shows it.
pub(crate) fn shown(found: &Diagnostic) -> view::Diagnostic {
    view::Diagnostic {
        file: found.file().to_owned(),
        line: found.line,
        column: found.column,
        severity: if found.is_error() { view::Severity::Error } else { view::Severity::Warning },
        code: found.code.as_str().to_owned(),
        field: found.field.clone(),
        message: found.problem.clone(),
        help: found.help.clone(),
    }
}

/// The same for an object: lines mean nothing for an object that was written in another form.
pub(crate) fn shown_without_line(found: &Diagnostic) -> view::Diagnostic {
    view::Diagnostic { line: 0, column: 0, ..shown(found) }
}

/// The diagnostic of a file or folder that cannot be read.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> view::Diagnostic {
    view::Diagnostic {
        file: path.display().to_string(),
        line: 0,
        column: 0,
        severity: view::Severity::Error,
        code: UNREADABLE.to_owned(),
        field: String::new(),
        message: format!("cannot be read: {error}"),
        help: Some("make it readable for the agent; the last good form stays in force".to_owned()),
    }
}
