//! Schemas of the policy language, written from the tables that the reader of policies uses.
//!
//! [`of_kind`] and [`all`] are JSON Schemas (draft 2020-12), for editors and pipelines; [`crds`] are the definitions of
//! the kinds for an API server. What needs more than one value to be judged is left to the reader.
//!
//! ```
//! let schema = namegate_config::schema::of_kind("CiliumNetworkPolicy").unwrap();
//! assert_eq!(schema["properties"]["kind"]["enum"][0], "CiliumNetworkPolicy");
//! assert!(namegate_config::schema::of_kind("Pod").is_none());
//! ```

mod crd;

use serde_json::{Map, Value, json};

pub use crd::{Crd, crds};

use crate::{
    language::{Choice, Field, Item, List, Shape, Text, Type},
    policy::shapes::{KINDS, LIST},
};

/// Address of the rules that the schemas keep to.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The kinds that have a schema.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|entry| entry.name)
}

/// The schema of one kind.
pub fn of_kind(kind: &str) -> Option<Value> {
    let entry = KINDS.iter().find(|entry| entry.name == kind)?;
    let mut writer = Writer::new(Form::Draft);
    let mut schema = json!({ "$schema": DRAFT });
    merge(&mut schema, writer.body(entry.shape));
    schema["$defs"] = Value::Object(writer.definitions);
    Some(schema)
}

/// One schema of every kind and of lists of them.
pub fn all() -> Value {
    let mut writer = Writer::new(Form::Draft);
    let mut kinds: Vec<Value> = KINDS.iter().map(|entry| writer.shape(entry.shape)).collect();
    let mut lists = writer.body(&LIST);
    lists["properties"]["items"]["items"] = json!({ "oneOf": kinds });
    writer.definitions.insert(LIST.name.to_owned(), lists);
    kinds.push(reference(&LIST));
    json!({
        "$schema": DRAFT,
        "title": "Policies",
        "description": "Every kind of object that Namegate reads",
        "oneOf": kinds,
        "$defs": writer.definitions,
    })
}

/// Which kind of schema is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// JSON Schema: shapes stand once, unknown fields are refused.
    Draft,
    /// A structural schema: shapes stand where they are used. Unknown fields are kept, so that the reader can refuse
    /// them: an API server would remove them without a word, and a rule without one of its fields may be a wider rule.
    Crd,
}

struct Writer {
    form: Form,
    definitions: Map<String, Value>,
}

impl Writer {
    fn new(form: Form) -> Self {
        Self { form, definitions: Map::new() }
    }

    /// A mapping where it is used.
    fn shape(&mut self, shape: &'static Shape) -> Value {
        if self.form == Form::Crd {
            return self.body(shape);
        }
        if !self.definitions.contains_key(shape.name) {
            let body = self.body(shape);
            self.definitions.insert(shape.name.to_owned(), body);
        }
        reference(shape)
    }

    /// A mapping with all its fields.
    fn body(&mut self, shape: &'static Shape) -> Value {
        let properties: Map<String, Value> =
            shape.fields.iter().map(|field| (field.name.to_owned(), self.field(field))).collect();
        let required: Vec<&str> =
            shape.fields.iter().filter(|field| field.is_required).map(|field| field.name).collect();
        let mut body = json!({ "description": shape.about, "type": "object", "properties": properties });
        match self.form {
            Form::Draft => {
                merge(&mut body, json!({ "title": shape.name, "additionalProperties": false }));
            }
            Form::Crd => body["x-kubernetes-preserve-unknown-fields"] = json!(true),
        }
        if !required.is_empty() {
            body["required"] = json!(required);
        }
        let conditions: Vec<Value> = shape.choices.iter().flat_map(conditions).collect();
        if !conditions.is_empty() {
            body["allOf"] = json!(conditions);
        }
        body
    }

    fn field(&mut self, field: &Field) -> Value {
        let mut schema = self.value(&field.value);
        schema["description"] = json!(field.about);
        schema
    }

    fn value(&mut self, value: &Type) -> Value {
        match value {
            Type::Text(text) => self::text(text),
            Type::Flag => json!({ "type": "boolean" }),
            Type::Integer(bounds) => json!({ "type": "integer", "minimum": bounds.0, "maximum": bounds.1 }),
            Type::IntegerOrText(bounds, text) => {
                let number = json!({ "type": "integer", "minimum": bounds.0, "maximum": bounds.1 });
                if self.form == Form::Draft {
                    return json!({ "anyOf": [number, self::text(text)] });
                }
                let mut either = self::text(text);
                merge(&mut either, number);
                merge(&mut either, json!({ "anyOf": [{ "type": "integer" }, { "type": "string" }] }));
                either["x-kubernetes-int-or-string"] = json!(true);
                without_type(either)
            }
            Type::List(list) => self.list(list),
            Type::Object(shape) => self.shape(shape),
            Type::Labels { keys, values } => {
                let mut labels = json!({ "type": "object", "additionalProperties": text(values) });
                if self.form == Form::Draft && keys.pattern.is_some() {
                    labels["propertyNames"] = text(keys);
                }
                labels
            }
            Type::Anything => json!({}),
        }
    }

    fn list(&mut self, list: &List) -> Value {
        let items = match &list.of {
            Item::Text(text) => self::text(text),
            Item::Object(shape) => self.shape(shape),
            Item::Anything => json!({}),
        };
        let mut schema = json!({ "type": "array", "items": items });
        if list.min > 0 {
            schema["minItems"] = json!(list.min);
        }
        if let Some(max) = list.max {
            schema["maxItems"] = json!(max);
        }
        schema
    }
}

fn reference(shape: &Shape) -> Value {
    json!({ "$ref": format!("#/$defs/{}", shape.name) })
}

fn text(text: &Text) -> Value {
    let mut schema = json!({ "type": "string" });
    match text.pattern {
        Some(pattern) => {
            let either: Vec<&str> = [pattern].into_iter().chain(text.words.iter().copied()).collect();
            schema["pattern"] = json!(format!("^(?:{})$", unique(&either).join("|")));
        }
        None if !text.words.is_empty() => schema["enum"] = json!(unique(text.words)),
        None => {}
    }
    if text.min > 0 {
        schema["minLength"] = json!(text.min);
    }
    if let Some(max) = text.max {
        schema["maxLength"] = json!(max);
    }
    schema
}

fn unique<'w>(words: &[&'w str]) -> Vec<&'w str> {
    let mut seen = std::collections::HashSet::new();
    words.iter().copied().filter(|word| seen.insert(*word)).collect()
}

/// What holds between fields, in the words that structural schemas have too.
fn conditions(choice: &Choice) -> Vec<Value> {
    let given = |name: &&str| json!({ "required": [name] });
    let filled = |names: &[&str]| {
        let lists: Map<String, Value> =
            names.iter().map(|name| ((*name).to_owned(), json!({ "minItems": 1 }))).collect();
        json!({ "required": names, "properties": lists })
    };
    match choice {
        Choice::One(names) => vec![json!({ "oneOf": names.iter().map(given).collect::<Vec<_>>() })],
        Choice::Some(names) => vec![json!({ "anyOf": names.iter().map(given).collect::<Vec<_>>() })],
        Choice::AtMostOne(names) => {
            pairs(names).map(|(one, other)| json!({ "not": { "required": [one, other] } })).collect()
        }
        Choice::SomeFilled(names) => {
            vec![json!({ "anyOf": names.iter().map(|name| filled(&[name])).collect::<Vec<_>>() })]
        }
        Choice::AtMostOneFilled(names) => {
            pairs(names).map(|(one, other)| json!({ "not": filled(&[one, other]) })).collect()
        }
        Choice::Needs(one, other) => {
            vec![json!({ "anyOf": [{ "required": [other] }, { "not": { "required": [one] } }] })]
        }
    }
}

/// Every two of these.
fn pairs(names: &'static [&'static str]) -> impl Iterator<Item = (&'static str, &'static str)> {
    names.iter().enumerate().flat_map(|(at, one)| names[at + 1..].iter().map(|other| (*one, *other)))
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn without_type(mut schema: Value) -> Value {
    if let Value::Object(fields) = &mut schema {
        fields.remove("type");
    }
    schema
}

#[cfg(test)]
mod tests;
