//! Schema documents: parsed, checked by their meta-schema, with references between them.
//!
//! References are resolved within the documents only: to the document itself, to another one by its
//! relative path or by its `$id`. Before a comparison they become absolute, so that a part of a
//! schema means the same outside of its document.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::Draft;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;

/// Characters of a path that are encoded in a URI.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'.')
    .remove(b'-')
    .remove(b'_');

/// Keywords with values that are data, not schemas.
const DATA: [&str; 4] = ["const", "default", "enum", "examples"];

/// Keywords with values that map names to schemas.
const MAPS: [&str; 6] = [
    "$defs",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
];

/// Valid schema documents by their path.
#[derive(Debug, Default)]
pub struct SchemaDocuments(BTreeMap<String, Value>);

/// Reason for which a text is not a schema.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSchema {
    /// It is not JSON.
    #[error("is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Its meta-schema is not one of the drafts of JSON Schema.
    #[error(
        "has an unknown `$schema`: {0}; use a draft of JSON Schema, such as \
         https://json-schema.org/draft/2020-12/schema"
    )]
    Dialect(String),
    /// Its meta-schema rejects it.
    #[error("is not a valid schema: #{pointer}: {reason}")]
    Schema {
        /// JSON pointer of the part that is wrong.
        pointer: String,
        /// Message of the validator.
        reason: String,
    },
    /// A reference leads to nothing.
    #[error("is not a valid schema: #{pointer}: the document has no {reference:?}")]
    Reference {
        /// JSON pointer of the reference.
        pointer: String,
        /// The reference.
        reference: String,
    },
}

impl SchemaDocuments {
    /// Parses a document and adds it under a path with `/` between its parts.
    ///
    /// # Errors
    ///
    /// The text is not a valid schema.
    pub fn add(&mut self, path: &str, text: &[u8]) -> Result<(), InvalidSchema> {
        let schema: Value = serde_json::from_slice(text)?;
        let draft = Draft::default().detect(&schema);
        if draft == Draft::Unknown {
            return Err(InvalidSchema::Dialect(schema["$schema"].to_string()));
        }
        let meta = jsonschema::meta::options();
        meta.validate(&schema)
            .map_err(|error| InvalidSchema::Schema {
                pointer: error.instance_path().to_string(),
                reason: shortened(&error.to_string()),
            })?;
        if let Some((pointer, reference)) = dangling(&schema, draft) {
            return Err(InvalidSchema::Reference { pointer, reference });
        }
        self.0.insert(path.to_owned(), schema);
        Ok(())
    }

    /// Paths of the documents, in ascending order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns the document of a path as it was added.
    pub(super) fn get(&self, path: &str) -> Option<&Value> {
        self.0.get(path)
    }

    /// Makes all references absolute, below a base URI that ends with `/`.
    pub(super) fn resolved(&self, base: &str) -> ResolvedDocuments {
        let ids: BTreeMap<&str, &str> = self
            .0
            .iter()
            .filter_map(|(path, schema)| Some((own_id(schema)?, path.as_str())))
            .collect();
        let mut documents: BTreeMap<String, ResolvedDocument> = self
            .0
            .iter()
            .map(|(path, schema)| {
                let mut references = References {
                    base,
                    path,
                    documents: &self.0,
                    ids: &ids,
                    used: BTreeSet::new(),
                    outside: None,
                };
                let mut schema = schema.clone();
                references.make_absolute(&mut schema, &mut String::new(), true);
                let document = ResolvedDocument {
                    draft: Draft::default().detect(&schema),
                    schema,
                    used: references.used,
                    outside: references.outside,
                };
                (path.clone(), document)
            })
            .collect();
        spread_outside(&mut documents);
        ResolvedDocuments {
            base: base.to_owned(),
            documents,
        }
    }
}

/// Documents with absolute references.
#[derive(Debug)]
pub(super) struct ResolvedDocuments {
    base: String,
    pub(super) documents: BTreeMap<String, ResolvedDocument>,
}

/// Document with absolute references.
#[derive(Debug)]
pub(super) struct ResolvedDocument {
    pub(super) schema: Value,
    pub(super) draft: Draft,
    /// Other documents to which it refers.
    pub(super) used: BTreeSet<String>,
    /// First reference that leads out of the documents.
    pub(super) outside: Option<OutsideReference>,
}

/// Reference to what is not among the documents.
#[derive(Clone, Debug)]
pub(super) struct OutsideReference {
    /// JSON pointer in the document that has it.
    pub(super) pointer: String,
    /// Text of the reference.
    pub(super) reference: String,
}

impl ResolvedDocuments {
    /// URI of a document.
    pub(super) fn uri(&self, path: &str) -> String {
        uri(&self.base, path)
    }

    /// Returns the path and the JSON pointer of an absolute reference into these documents; `None`
    /// if it leads elsewhere or names an anchor.
    pub(super) fn target<'a>(&'a self, reference: &str) -> Option<(&'a str, String)> {
        let (document, fragment) = split(reference);
        let (path, _) = self
            .documents
            .iter()
            .find(|(path, _)| self.uri(path) == document)?;
        let pointer = percent_decode_str(fragment).decode_utf8().ok()?;
        (pointer.is_empty() || pointer.starts_with('/')).then(|| (path.as_str(), pointer.into()))
    }
}

/// References of one document while they become absolute.
struct References<'a> {
    base: &'a str,
    path: &'a str,
    documents: &'a BTreeMap<String, Value>,
    /// Paths by `$id`.
    ids: &'a BTreeMap<&'a str, &'a str>,
    used: BTreeSet<String>,
    outside: Option<OutsideReference>,
}

impl References<'_> {
    /// Changes the references of a schema, and removes the `$id` of the document.
    fn make_absolute(&mut self, schema: &mut Value, pointer: &mut String, is_root: bool) {
        if is_root
            && own_id(schema).is_some()
            && let Some(map) = schema.as_object_mut()
        {
            map.remove("$id");
            map.remove("id");
        }
        match schema {
            Value::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    within(pointer, &index.to_string(), |pointer| {
                        self.make_absolute(item, pointer, false);
                    });
                }
            }
            // References within a resource of its own are relative to its `$id`.
            Value::Object(_) if !is_root && own_id(schema).is_some() => {}
            Value::Object(map) => {
                for (keyword, value) in map {
                    within(pointer, keyword, |pointer| {
                        self.keyword(keyword, value, pointer);
                    });
                }
            }
            _ => {}
        }
    }

    fn keyword(&mut self, keyword: &str, value: &mut Value, pointer: &mut String) {
        match (keyword, value) {
            ("$ref", Value::String(reference)) => *reference = self.absolute(reference, pointer),
            (keyword, Value::Object(schemas)) if MAPS.contains(&keyword) => {
                for (name, schema) in schemas {
                    within(pointer, name, |pointer| {
                        self.make_absolute(schema, pointer, false);
                    });
                }
            }
            (keyword, value) if !DATA.contains(&keyword) => {
                self.make_absolute(value, pointer, false);
            }
            _ => {}
        }
    }

    fn absolute(&mut self, reference: &str, pointer: &str) -> String {
        let (document, fragment) = split(reference);
        let target = if document.is_empty() {
            Some(self.path.to_owned())
        } else {
            self.document(document)
        };
        let Some(path) = target else {
            self.outside.get_or_insert_with(|| OutsideReference {
                pointer: pointer.to_owned(),
                reference: reference.to_owned(),
            });
            return reference.to_owned();
        };
        let absolute = format!("{}#{fragment}", uri(self.base, &path));
        if path != self.path {
            self.used.insert(path);
        }
        absolute
    }

    /// Path of the document with a URI, or with a path that is relative to this one.
    fn document(&self, reference: &str) -> Option<String> {
        let by_id = |id: &str| self.ids.get(id).map(|path| (*path).to_owned());
        let beside_id = || {
            let own = own_id(self.documents.get(self.path)?)?;
            by_id(&format!("{}{reference}", &own[..=own.rfind('/')?]))
        };
        by_id(reference).or_else(beside_id).or_else(|| {
            let path = joined(
                self.path,
                &percent_decode_str(reference).decode_utf8().ok()?,
            )?;
            self.documents.contains_key(&path).then_some(path)
        })
    }
}

/// Marks all documents that reach one with a reference out of the documents.
fn spread_outside(documents: &mut BTreeMap<String, ResolvedDocument>) {
    loop {
        let reached = documents.iter().find_map(|(path, document)| {
            if document.outside.is_some() {
                return None;
            }
            let outside = |used: &String| documents[used].outside.clone();
            let reference = document.used.iter().find_map(outside)?.reference;
            let pointer = String::new();
            Some((path.clone(), OutsideReference { pointer, reference }))
        });
        let Some((path, outside)) = reached else {
            return;
        };
        if let Some(document) = documents.get_mut(&path) {
            document.outside = Some(outside);
        }
    }
}

/// Returns the first reference to a place that the document does not have.
fn dangling(schema: &Value, draft: Draft) -> Option<(String, String)> {
    let mut found = None;
    let mut has_resources = false;
    each_reference(schema, "", &mut |pointer, value| {
        if !pointer.is_empty() && own_id(value).is_some() {
            has_resources = true;
        }
        let Some(reference) = value.get("$ref").and_then(Value::as_str) else {
            return;
        };
        let Some(target) = reference.strip_prefix('#') else {
            return;
        };
        let exists = percent_decode_str(target)
            .decode_utf8()
            .is_ok_and(|target| !target.starts_with('/') || schema.pointer(&target).is_some());
        if !exists && found.is_none() {
            found = Some((format!("{pointer}/$ref"), reference.to_owned()));
        }
    });
    // References within another resource are relative to it.
    found.filter(|_| !has_resources && draft != Draft::Unknown)
}

/// Calls `visit` with every object that may be a schema.
fn each_reference(schema: &Value, pointer: &str, visit: &mut impl FnMut(&str, &Value)) {
    if schema.is_object() {
        visit(pointer, schema);
    }
    for (relative, child) in children(schema) {
        each_reference(child, &format!("{pointer}{relative}"), visit);
    }
}

/// Parts of a schema that may be schemas, with their JSON pointers in it.
pub(super) fn children(schema: &Value) -> Vec<(String, &Value)> {
    let at = |tokens: &[&str]| {
        let mut pointer = String::new();
        tokens
            .iter()
            .for_each(|token| push_token(&mut pointer, token));
        pointer
    };
    if let Value::Array(items) = schema {
        let items = items.iter().enumerate();
        return items
            .map(|(index, item)| (at(&[&index.to_string()]), item))
            .collect();
    }
    let mut children = Vec::new();
    let keywords = schema.as_object().into_iter().flatten();
    for (keyword, value) in keywords.filter(|(keyword, _)| !DATA.contains(&keyword.as_str())) {
        match value {
            Value::Object(schemas) if MAPS.contains(&keyword.as_str()) => {
                let schemas = schemas.iter();
                children.extend(schemas.map(|(name, schema)| (at(&[keyword, name]), schema)));
            }
            value => children.push((at(&[keyword]), value)),
        }
    }
    children
}

/// Calls `f` with the pointer of a child.
fn within<T>(pointer: &mut String, token: &str, f: impl FnOnce(&mut String) -> T) -> T {
    let length = pointer.len();
    push_token(pointer, token);
    let result = f(pointer);
    pointer.truncate(length);
    result
}

/// Appends a token to a JSON pointer (RFC 6901).
pub(super) fn push_token(pointer: &mut String, token: &str) {
    pointer.push('/');
    pointer.push_str(&token.replace('~', "~0").replace('/', "~1"));
}

/// Base URI that a schema gives itself.
pub(super) fn own_id(schema: &Value) -> Option<&str> {
    let id = schema.get("$id").or_else(|| schema.get("id"))?.as_str()?;
    let (id, _) = split(id);
    (!id.is_empty()).then_some(id)
}

/// Splits a reference at its fragment.
fn split(reference: &str) -> (&str, &str) {
    reference.split_once('#').unwrap_or((reference, ""))
}

fn uri(base: &str, path: &str) -> String {
    format!("{base}{}", utf8_percent_encode(path, ENCODED))
}

/// Path that is relative to another one; `None` if it leads out of the folder.
fn joined(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Cuts a text for a line of output.
pub(super) fn shortened(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    if text.chars().count() <= CHARACTERS_MAX {
        return text.to_owned();
    }
    text.chars()
        .take(CHARACTERS_MAX - 1)
        .chain(['\u{2026}'])
        .collect()
}
