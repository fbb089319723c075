//! Place in a schema document: a subschema with its path and its JSON pointer.

use std::collections::BTreeSet;

use jsonschema::Draft;
use serde_json::{Map, Value};

use super::documents::{ResolvedDocument, ResolvedDocuments, push_token};

/// Subschema of a document.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    documents: &'a ResolvedDocuments,
    pub(super) path: &'a str,
    pub(super) pointer: String,
    pub(super) value: &'a Value,
}

impl<'a> Place<'a> {
    /// Root of a document.
    pub(super) fn root(documents: &'a ResolvedDocuments, path: &'a str) -> Option<Self> {
        let document = documents.documents.get(path)?;
        Some(Self {
            documents,
            path,
            pointer: String::new(),
            value: &document.schema,
        })
    }

    /// URI of the place.
    pub(super) fn uri(&self) -> String {
        format!("{}#{}", self.documents.uri(self.path), self.pointer)
    }

    /// Document of the place.
    pub(super) fn document(&self) -> &'a ResolvedDocument {
        &self.documents.documents[self.path]
    }

    /// Draft of the document.
    pub(super) fn draft(&self) -> Draft {
        self.document().draft
    }

    /// Member of an object or element of an array.
    pub(super) fn child(&self, token: &str) -> Option<Self> {
        let value = match self.value {
            Value::Object(map) => map.get(token)?,
            Value::Array(items) => items.get(token.parse::<usize>().ok()?)?,
            _ => return None,
        };
        Some(Self {
            pointer: self.pointer_to(token),
            value,
            ..self.clone()
        })
    }

    /// Place below two tokens.
    pub(super) fn grandchild(&self, token: &str, further: &str) -> Option<Self> {
        self.child(token)?.child(further)
    }

    /// JSON pointer of a child, which need not exist.
    pub(super) fn pointer_to(&self, token: &str) -> String {
        let mut pointer = self.pointer.clone();
        push_token(&mut pointer, token);
        pointer
    }

    /// Elements of a list of schemas.
    pub(super) fn elements(&self) -> Vec<Self> {
        let count = self.value.as_array().map_or(0, Vec::len);
        (0..count)
            .filter_map(|index| self.child(&index.to_string()))
            .collect()
    }

    /// Keywords that count: in older drafts `$ref` hides all others.
    pub(super) fn keywords(&self) -> Map<String, Value> {
        let Some(map) = self.value.as_object() else {
            return Map::new();
        };
        let hides = matches!(self.draft(), Draft::Draft4 | Draft::Draft6 | Draft::Draft7);
        match map.get("$ref") {
            Some(reference) if hides => Map::from_iter([("$ref".into(), reference.clone())]),
            _ => map.clone(),
        }
    }

    /// Target of the keyword `$ref`.
    pub(super) fn target(&self) -> Option<Self> {
        let reference = self.value.get("$ref")?.as_str()?;
        let (path, pointer) = self.documents.target(reference)?;
        let value = self.documents.documents[path].schema.pointer(&pointer)?;
        Some(Self {
            documents: self.documents,
            path,
            pointer,
            value,
        })
    }

    /// The schema and others that each of its documents satisfies too: targets of references, and
    /// elements of `allOf`.
    pub(super) fn parts(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut known = BTreeSet::new();
        let mut open = vec![self.clone()];
        while let Some(part) = open.pop() {
            if !known.insert(part.uri()) {
                continue;
            }
            let keywords = part.keywords();
            if keywords.contains_key("$ref") {
                open.extend(part.target());
            }
            if keywords.contains_key("allOf") {
                open.extend(part.child("allOf").iter().flat_map(Self::elements));
            }
            parts.push(part);
        }
        parts
    }

    /// First part with one of these keywords, and the keyword.
    pub(super) fn part_with<'k>(&self, keywords: &[&'k str]) -> Option<(Self, &'k str)> {
        self.parts().into_iter().find_map(|part| {
            let own = part.keywords();
            let keyword = keywords
                .iter()
                .find(|keyword| own.contains_key(**keyword))?;
            Some((part, *keyword))
        })
    }

    /// Schema of a property that every document of this schema satisfies.
    pub(super) fn property(&self, map: &str, name: &str) -> Option<Self> {
        self.parts().into_iter().find_map(|part| {
            if !part.keywords().contains_key(map) {
                return None;
            }
            part.grandchild(map, name)
        })
    }
}
