//! How the language of policies is written down: tables of fields, of what stands in them and of what is refused.
//!
//! The tables themselves stand in `policy/shapes`. The reader takes names, words and bounds from them, and the schemas
//! are written from them, so that the two cannot differ.

use crate::diagnostic::Code;

/// A mapping with known fields.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Name in schemas; one name stands for one shape.
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// In the order in which people are told of them.
    pub(crate) fields: &'static [Field],
    /// Fields of the language that cannot stand here.
    pub(crate) refused: &'static [Refused],
    /// What holds between the fields.
    pub(crate) choices: &'static [Choice],
}

/// One field of a [`Shape`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) value: Type,
    pub(crate) is_required: bool,
    pub(crate) about: &'static str,
}

/// A field that is refused, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
    pub(crate) code: Code,
    pub(crate) help: Option<&'static str>,
}

/// What holds between fields of one mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choice {
    /// Exactly one of these is given.
    One(&'static [&'static str]),
    /// At least one of these is given.
    Some(&'static [&'static str]),
    /// At most one of these is given.
    AtMostOne(&'static [&'static str]),
    /// At least one of these lists has an element.
    SomeFilled(&'static [&'static str]),
    /// At most one of these lists has elements.
    AtMostOneFilled(&'static [&'static str]),
    /// The first is given beside the second only.
    Needs(&'static str, &'static str),
}

/// What a value is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Type {
    Text(Text),
    Flag,
    Integer(Bounds),
    IntegerOrText(Bounds, Text),
    List(List),
    Object(&'static Shape),
    /// Keys of the user's own, and texts below them.
    Labels {
        keys: Text,
        values: Text,
    },
    /// Written by an API server and not looked at.
    Anything,
}

/// Which texts. The patterns are of the kind that ECMA-262, RE2 and `regex` read alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text {
    /// These words, besides what the pattern matches.
    pub(crate) words: &'static [&'static str],
    /// Without the anchors. Words and a pattern: one of both.
    pub(crate) pattern: Option<&'static str>,
    /// In characters.
    pub(crate) min: usize,
    /// In characters.
    pub(crate) max: Option<usize>,
}

/// Whole numbers, both ends included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds(pub(crate) u32, pub(crate) u32);

/// A list and how many elements it can have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    pub(crate) of: Item,
    pub(crate) min: usize,
    pub(crate) max: Option<usize>,
}

/// What the elements of a list are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Item {
    Text(Text),
    Object(&'static Shape),
    Anything,
}

impl Shape {
    /// The field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Whether the language has such a field, refused or not.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.field(name).is_some() || self.refused.iter().any(|refused| refused.name == name)
    }

    /// The fields of which exactly one must be given; none where there is no such choice.
    pub(crate) fn one_of(&self) -> &'static [&'static str] {
        let one =
            self.choices.iter().find_map(|choice| if let Choice::One(names) = choice { Some(*names) } else { None });
        one.unwrap_or_default()
    }
}

impl Bounds {
    /// As the reader takes them.
    pub(crate) const fn range(self) -> std::ops::RangeInclusive<u32> {
        self.0..=self.1
    }
}

impl Text {
    /// Any text.
    pub(crate) const ANY: Self = Self { words: &[], pattern: None, min: 0, max: None };
    /// Text that is not empty.
    pub(crate) const FILLED: Self = Self { min: 1, ..Self::ANY };

    /// One of a few words.
    pub(crate) const fn words(words: &'static [&'static str]) -> Self {
        Self { words, ..Self::ANY }
    }

    /// What a pattern matches, of at most so many characters.
    pub(crate) const fn like(pattern: &'static str, max: Option<usize>) -> Self {
        Self { pattern: Some(pattern), max, ..Self::ANY }
    }
}

impl Refused {
    /// Something to do instead.
    pub(crate) const fn help(self, help: &'static str) -> Self {
        Self { help: Some(help), ..self }
    }
}

/// A field that can be given.
pub(crate) const fn may(name: &'static str, value: Type, about: &'static str) -> Field {
    Field { name, value, is_required: false, about }
}

/// A field that must be given.
pub(crate) const fn must(name: &'static str, value: Type, about: &'static str) -> Field {
    Field { name, value, is_required: true, about }
}

/// A list of any length.
pub(crate) const fn list(of: Item) -> Type {
    Type::List(List { of, min: 0, max: None })
}

/// A list with bounds on its length.
pub(crate) const fn list_of(of: Item, min: usize, max: Option<usize>) -> Type {
    Type::List(List { of, min, max })
}

/// A field that Namegate has no function for.
pub(crate) const fn unsupported(name: &'static str, why: &'static str) -> Refused {
    Refused { name, why, code: Code::Unsupported, help: None }
}

/// A field that does not go with the place where it stands.
pub(crate) const fn conflict(name: &'static str, why: &'static str) -> Refused {
    Refused { name, why, code: Code::Conflict, help: None }
}

/// The words of a table that the reader chooses from.
pub(crate) const fn words_of<T, const N: usize>(table: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut words = [""; N];
    let mut at = 0;
    while at < N {
        words[at] = table[at].0;
        at += 1;
    }
    words
}
