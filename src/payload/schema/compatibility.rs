//! Comparison of an old schema with a new one: what the new one accepts and the old one rejects.
//!
//! A schema is the conjunction of its keywords, with companions where one depends on another. An old
//! schema covers a new one if each of these groups does. A group that does not cover the new schema
//! as a whole is compared with the same keyword there: a property with the property, an alternative
//! with the alternative. This finds the place, and it proves more than the question about the
//! whole. What remains is reported, so a schema without an incompatibility is a proof.
//!
//! A pair of places is compared once. A pair that is met again while it is compared, in a recursive
//! schema, counts as covered: documents are finite, so the proof is by their depth.

use std::collections::{BTreeSet, HashMap, HashSet};

use jsonschema::canonical::{self, CanonicalSchema, Containment};
use jsonschema::{Draft, Registry};
use serde_json::{Map, Value, json};

use super::documents::{ResolvedDocuments, SchemaDocuments, shortened};
use super::groups::{Group, groups};
use super::place::Place;

/// Most questions to the set operations in one comparison: about a minute.
const QUESTIONS_MAX: usize = 20_000;

/// Names of the JSON types.
const TYPES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];

/// Place in an old schema that the new one does not satisfy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incompatibility {
    /// Path of the old document.
    pub path: String,
    /// JSON pointer in the old document.
    pub pointer: String,
    /// Reason, for people.
    pub reason: String,
}

/// Compares documents of the same paths; returns every place of an old one that its new one does
/// not satisfy, in the order of paths. Empty: the change is backward compatible.
#[must_use]
pub fn incompatibilities(old: &SchemaDocuments, new: &SchemaDocuments) -> Vec<Incompatibility> {
    let (resolved_old, resolved_new) = (
        old.resolved("json-schema:///old/"),
        new.resolved("json-schema:///new/"),
    );
    let mut comparison = Comparison::new(&resolved_old, &resolved_new);
    for path in old.paths() {
        match new.get(path) {
            None => comparison.report(path, "", "the new schemas have no such file".into()),
            Some(schema) => {
                let is_unchanged = Some(schema) == old.get(path);
                comparison.documents(&resolved_old, &resolved_new, path, is_unchanged);
            }
        }
    }
    comparison.found
}

/// State of one comparison.
struct Comparison<'a> {
    registry: Result<Registry<'a>, String>,
    /// Pairs of places that were compared, or that are being compared.
    known: HashSet<(String, String)>,
    /// Canonical forms of places of the new documents.
    canonical: HashMap<String, Option<CanonicalSchema>>,
    questions: usize,
    found: Vec<Incompatibility>,
}

impl<'a> Comparison<'a> {
    fn new(old: &'a ResolvedDocuments, new: &'a ResolvedDocuments) -> Self {
        Self {
            registry: registry([old, new]).map_err(|error| error.to_string()),
            known: HashSet::new(),
            canonical: HashMap::new(),
            questions: 0,
            found: Vec::new(),
        }
    }

    fn documents(
        &mut self,
        old: &ResolvedDocuments,
        new: &ResolvedDocuments,
        path: &str,
        is_unchanged: bool,
    ) {
        let (Some(old), Some(new)) = (Place::root(old, path), Place::root(new, path)) else {
            return;
        };
        let documents = [old.document(), new.document()];
        // Only such a document has the same meaning for sure.
        if is_unchanged && documents[0].used.is_empty() {
            return;
        }
        let outside = documents
            .iter()
            .find_map(|document| document.outside.as_ref());
        if let Some(outside) = outside {
            let reason = format!(
                "cannot be compared: {:?} is not among the files",
                outside.reference
            );
            self.report(path, &outside.pointer, reason);
        } else if let Err(error) = &self.registry {
            let reason = format!("cannot be compared: {}", shortened(error));
            self.report(path, "", reason);
        } else {
            self.compare(&old, &new);
        }
    }

    fn report(&mut self, path: &str, pointer: &str, reason: String) {
        let found = Incompatibility {
            path: path.to_owned(),
            pointer: pointer.to_owned(),
            reason,
        };
        if !self.found.contains(&found) {
            self.found.push(found);
        }
    }

    /// Reports everything of an old schema that a new one does not satisfy.
    fn compare(&mut self, old: &Place<'_>, new: &Place<'_>) {
        if old.draft() != new.draft() {
            let reason = "cannot be compared: the schemas are of different drafts".into();
            self.report(old.path, "/$schema", reason);
            return;
        }
        if !self.known.insert((old.uri(), new.uri()))
            || self.covers(old.value, new) == Containment::Yes
        {
            return;
        }
        if *old.value == Value::Bool(false) {
            self.report(
                old.path,
                &old.pointer,
                "the old schema forbids any value here".into(),
            );
            return;
        }
        for group in groups(&old.keywords()) {
            let verdict = self.covers(&group.schema, new);
            if verdict != Containment::Yes {
                self.group(&group, old, new, verdict);
            }
        }
    }

    /// Compares a group of keywords that does not cover the new schema as a whole.
    fn group(&mut self, group: &Group, old: &Place<'_>, new: &Place<'_>, verdict: Containment) {
        let keyword = group.keyword.as_str();
        let is_compared = match keyword {
            "$ref" => self.target(old, new),
            "allOf" => self.all(old, new),
            "properties" | "patternProperties" => self.properties(keyword, old, new),
            "additionalProperties" => self.additional(old, new),
            "propertyNames" => self.same_keyword(keyword, old, new),
            "items" | "additionalItems" => self.items(keyword, group, old, new),
            "prefixItems" => self.prefix(old, new),
            "anyOf" | "oneOf" => self.alternatives(group, old, new),
            "required" => self.required(old, new),
            "type" => self.types(group, old, new),
            "enum" | "const" => self.values(group, old, new),
            _ => false,
        };
        if !is_compared {
            self.leaf(keyword, old, new, verdict);
        }
    }

    /// Reports a keyword with its values.
    fn leaf(&mut self, keyword: &str, old: &Place<'_>, new: &Place<'_>, verdict: Containment) {
        let value = |place: &Place<'_>| place.value.get(keyword).map(ToString::to_string);
        let part = new.part_with(&[keyword]);
        let is_undecided = verdict == Containment::Unknown;
        let (was, is) = (value(old), part.and_then(|(part, _)| value(&part)));
        let is_number = old.value[keyword].is_number();
        let (reason, is_plain) = match (was, is) {
            (Some(was), Some(is)) if was != is => (
                format!("was {}, is {}", shortened(&was), shortened(&is)),
                is_number,
            ),
            (Some(was), None) => (format!("was {}, is absent", shortened(&was)), true),
            _ if is_undecided => ("its meaning depends on other schemas".into(), false),
            _ => ("the new schema accepts what it rejects".into(), true),
        };
        let undecided = if is_undecided && !is_plain {
            "cannot be compared: "
        } else {
            ""
        };
        let pointer = old.pointer_to(keyword);
        self.report(old.path, &pointer, format!("{undecided}{reason}"));
    }

    fn target(&mut self, old: &Place<'_>, new: &Place<'_>) -> bool {
        let Some(target) = old.target() else {
            return false;
        };
        self.compare(&target, new);
        true
    }

    fn all(&mut self, old: &Place<'_>, new: &Place<'_>) -> bool {
        for part in old.child("allOf").iter().flat_map(Place::elements) {
            self.compare(&part, new);
        }
        true
    }

    /// Compares properties of the same name or pattern.
    fn properties(&mut self, map: &str, old: &Place<'_>, new: &Place<'_>) -> bool {
        let names = old.value[map].as_object().into_iter().flat_map(Map::keys);
        for name in names {
            let Some(property) = old.grandchild(map, name) else {
                continue;
            };
            let alone = json!({ map: { name: property.value } });
            if self.covers(&alone, new) == Containment::Yes {
                continue;
            }
            if let Some(counterpart) = new.property(map, name) {
                self.compare(&property, &counterpart);
            } else {
                let reason =
                    "the new schema does not describe it, and accepts any value for it".into();
                self.report(property.path, &property.pointer, reason);
            }
        }
        true
    }

    /// Compares the schema of other properties with what the new schema accepts for them.
    fn additional(&mut self, old: &Place<'_>, new: &Place<'_>) -> bool {
        const KEYWORD: &str = "additionalProperties";
        let (Some(additional), Some((part, found))) =
            (old.child(KEYWORD), new.part_with(&[KEYWORD, "properties"]))
        else {
            return false;
        };
        let patterns = |place: &Place<'_>| place.value.get("patternProperties").is_some();
        if patterns(old) || patterns(&part) {
            return false;
        }
        let names = |place: &Place<'_>| -> BTreeSet<String> {
            let properties = place.value.get("properties").and_then(Value::as_object);
            properties
                .into_iter()
                .flat_map(Map::keys)
                .cloned()
                .collect()
        };
        for name in names(&part).difference(&names(old)) {
            let Some(property) = part.grandchild("properties", name) else {
                continue;
            };
            if *additional.value != Value::Bool(false) {
                self.compare(&additional, &property);
            } else if self.covers(additional.value, &property) != Containment::Yes {
                let reason = format!(
                    "property {name:?} is new, and the old schema forbids other properties"
                );
                self.report(additional.path, &additional.pointer, reason);
            }
        }
        match part.child(KEYWORD).filter(|_| found == KEYWORD) {
            Some(counterpart) if *additional.value != Value::Bool(false) => {
                self.compare(&additional, &counterpart);
            }
            Some(counterpart)
                if self.covers(additional.value, &counterpart) == Containment::Yes => {}
            _ => self.report(
                additional.path,
                &additional.pointer,
                "the new schema accepts other properties".into(),
            ),
        }
        true
    }

    /// Compares a keyword with the same one of the new schema.
    fn same_keyword(&mut self, keyword: &str, old: &Place<'_>, new: &Place<'_>) -> bool {
        let part = new.part_with(&[keyword]);
        let counterpart = part.and_then(|(part, _)| part.child(keyword));
        let (Some(schema), Some(counterpart)) = (old.child(keyword), counterpart) else {
            return false;
        };
        self.compare(&schema, &counterpart);
        true
    }

    /// Compares the schema of all elements after the ones with a schema of their own.
    fn items(&mut self, keyword: &str, group: &Group, old: &Place<'_>, new: &Place<'_>) -> bool {
        let Some((part, _)) = new.part_with(&[keyword]) else {
            return false;
        };
        let with_own = |place: &Place<'_>| {
            let list = ["prefixItems", "items"].map(|keyword| place.value.get(keyword));
            list.into_iter()
                .flatten()
                .filter_map(Value::as_array)
                .map(Vec::len)
                .max()
        };
        // More elements of their own in the new schema would have to be compared one by one.
        let is_list = group.schema[keyword].is_array() || part.value[keyword].is_array();
        // Without a list of elements this keyword has no effect.
        let is_idle = keyword == "additionalItems" && !part.value["items"].is_array();
        if is_list || is_idle || with_own(&part) > with_own(old) {
            return false;
        }
        self.same_keyword(keyword, old, &part)
    }

    /// Compares elements with a schema of their own.
    fn prefix(&mut self, old: &Place<'_>, new: &Place<'_>) -> bool {
        let elements = old
            .child("prefixItems")
            .iter()
            .flat_map(Place::elements)
            .collect::<Vec<_>>();
        for (index, element) in elements.iter().enumerate() {
            let mut list = vec![Value::Bool(true); index];
            list.push(element.value.clone());
            if self.covers(&json!({ "prefixItems": list }), new) == Containment::Yes {
                continue;
            }
            let part = new.part_with(&["prefixItems", "items"]);
            let counterpart = part.and_then(|(part, _)| {
                let own = part.grandchild("prefixItems", &index.to_string());
                own.or_else(|| part.child("items"))
            });
            if let Some(counterpart) = counterpart {
                self.compare(element, &counterpart);
            } else {
                let reason = "the new schema accepts any value for this element".into();
                self.report(element.path, &element.pointer, reason);
            }
        }
        true
    }

    /// Compares alternatives of the old schema with each one of the new schema.
    fn alternatives(&mut self, group: &Group, old: &Place<'_>, new: &Place<'_>) -> bool {
        let keyword = group.keyword.as_str();
        let part = new.part_with(&["oneOf", "anyOf"]);
        let list = part.and_then(|(part, keyword)| part.child(keyword));
        let (Some(old_list), Some(list)) = (old.child(keyword), list) else {
            return false;
        };
        let (old_alternatives, alternatives) = (old_list.elements(), list.elements());
        for (index, alternative) in alternatives.iter().enumerate() {
            if self.covers_both(&group.schema, new, alternative.value) {
                continue;
            }
            let is_same_length = old_alternatives.len() == alternatives.len();
            let by_position = old_alternatives.get(index).filter(|_| is_same_length);
            let closest = old_alternatives
                .iter()
                .find(|old| has_same_tag(old, alternative))
                .or(by_position);
            let found = self.found.len();
            if let Some(closest) = closest {
                self.compare(closest, alternative);
            }
            // One of several is enough for `anyOf`; for `oneOf` the others have to reject it.
            let is_proven = keyword == "anyOf" && closest.is_some();
            if !is_proven && self.found.len() == found {
                let reason = format!(
                    "the new schema has an alternative that the old one rejects: #{}",
                    alternative.pointer
                );
                self.report(old_list.path, &old_list.pointer, reason);
            }
        }
        true
    }

    fn required(&mut self, old: &Place<'_>, new: &Place<'_>) -> bool {
        let names = old.value["required"].as_array();
        for name in names.into_iter().flatten() {
            if self.covers(&json!({ "required": [name] }), new) != Containment::Yes {
                let reason = format!("property {name} is no longer required");
                self.report(old.path, &old.pointer_to("required"), reason);
            }
        }
        true
    }

    fn types(&mut self, group: &Group, old: &Place<'_>, new: &Place<'_>) -> bool {
        let mut added: Vec<&str> = Vec::new();
        for name in TYPES {
            let of_type = if name == "number" {
                json!({ "type": name, "not": { "type": "integer" } })
            } else {
                json!({ "type": name })
            };
            if !self.covers_both(&group.schema, new, &of_type) {
                added.push(name);
            }
        }
        if added.is_empty() {
            return false;
        }
        let reason = format!("the new schema also accepts {}", added.join(", "));
        self.report(old.path, &old.pointer_to("type"), reason);
        true
    }

    /// Reports values that only the new schema lists.
    fn values(&mut self, group: &Group, old: &Place<'_>, new: &Place<'_>) -> bool {
        // Draft 4 does not know the second one.
        let known = if new.draft() == Draft::Draft4 { 1 } else { 2 };
        let Some((part, keyword)) = new.part_with(&["enum", "const"][..known]) else {
            return false;
        };
        let listed = &part.value[keyword];
        let values = match listed {
            Value::Array(values) if keyword == "enum" => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in values {
            if !self.covers_both(&group.schema, new, &json!({ "enum": [value] })) {
                let reason = format!(
                    "the new schema also accepts {}",
                    shortened(&value.to_string())
                );
                self.report(old.path, &old.pointer_to(&group.keyword), reason);
            }
        }
        true
    }

    /// Asks if a schema accepts everything that a place of the new documents accepts.
    fn covers(&mut self, old: &Value, new: &Place<'_>) -> Containment {
        let mut verdict = None;
        for part in new.parts() {
            let uri = part.uri();
            if !self.canonical.contains_key(&uri) {
                let form = self.canonicalize(part.value, part.draft());
                self.canonical.insert(uri.clone(), form);
            }
            let answer = self.question(old, part.draft(), |comparison| {
                comparison.canonical.get(&uri).cloned().flatten()
            });
            if answer == Containment::Yes {
                return answer;
            }
            // The first part is the whole.
            verdict = verdict.or(Some(answer));
        }
        verdict.unwrap_or(Containment::Unknown)
    }

    /// Returns true if a schema accepts everything that a place of the new documents and a further
    /// schema accept together.
    fn covers_both(&mut self, old: &Value, new: &Place<'_>, further: &Value) -> bool {
        new.parts().iter().any(|part| {
            let both = json!({ "allOf": [part.value, further] });
            let draft = part.draft();
            let answer = self.question(old, draft, |comparison| {
                comparison.canonicalize(&both, draft)
            });
            answer == Containment::Yes
        })
    }

    fn question(
        &mut self,
        old: &Value,
        draft: Draft,
        new: impl FnOnce(&Self) -> Option<CanonicalSchema>,
    ) -> Containment {
        self.questions += 1;
        if self.questions > QUESTIONS_MAX {
            return Containment::Unknown;
        }
        let (Some(old), Some(new)) = (self.canonicalize(old, draft), new(self)) else {
            return Containment::Unknown;
        };
        old.covers(&new).unwrap_or(Containment::Unknown)
    }

    fn canonicalize(&self, schema: &Value, draft: Draft) -> Option<CanonicalSchema> {
        let options = canonical::options()
            .with_registry(self.registry.as_ref().ok()?)
            .offline()
            .with_draft(draft)
            .should_validate_formats(true);
        options.canonicalize(schema).ok()
    }
}

/// Registry of all documents that can be compared.
fn registry<'a>(
    sides: [&'a ResolvedDocuments; 2],
) -> Result<Registry<'a>, jsonschema::ReferencingError> {
    let mut registry = Registry::new();
    for side in sides {
        for (path, document) in &side.documents {
            if document.outside.is_none() {
                registry = registry.add(side.uri(path), &document.schema)?;
            }
        }
    }
    registry.prepare()
}

/// True if two alternatives are of one reference, or have a property with the same single value.
fn has_same_tag(old: &Place<'_>, new: &Place<'_>) -> bool {
    let same_target = || {
        let (old, new) = (old.target()?, new.target()?);
        Some(old.path == new.path && old.pointer == new.pointer)
    };
    let tags = |place: &Place<'_>| -> Vec<(String, Value)> {
        let maps = place
            .parts()
            .into_iter()
            .filter_map(|part| part.child("properties"));
        let constants = maps.filter_map(|map| map.value.as_object()).flatten();
        constants
            .filter_map(|(name, schema)| Some((name.clone(), schema.get("const")?.clone())))
            .collect()
    };
    let of_old = tags(old);
    same_target().unwrap_or(false) || tags(new).iter().any(|tag| of_old.contains(tag))
}
