//! Compiled schemas: validators of payloads with a bounded cost.
//!
//! A validator reads no file and no URL: every reference leads to one of the documents. The cost of
//! one validation is bounded before it is compiled, by [`Cost`]: references are followed, so a
//! schema that is small as a text and doubles at each reference is found. Regular expressions are
//! matched in linear time, without look-around and references to groups.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jsonschema::{PatternOptions, Registry, Validator};
use serde_json::Value;

use super::documents::{
    ResolvedDocument, ResolvedDocuments, SchemaDocuments, children, own_id, shortened,
};

/// Base of the URIs of documents.
pub(super) const BASE: &str = "json-schema:///";

/// 128 schemas within each other, references included: with the 128 levels that a payload can have,
/// far below the stack of a thread.
const DEPTH_MAX: usize = 128;

/// 100,000 schemas with all references followed: a few milliseconds for each value of a payload.
const SCHEMAS_MAX: u64 = 100_000;

/// 1,000 regular expressions of all documents, and 64 KiB of memory for each form of one.
const PATTERNS_MAX: usize = 1000;
const PATTERN_BYTES_MAX: usize = 64 << 10;

/// 200 characters of a violation.
const VIOLATION_CHARACTERS_MAX: usize = 200;

/// Validator of the payloads of one document.
#[derive(Debug)]
pub(super) struct CompiledSchema {
    validator: Validator,
    /// It refers to itself. A search of the first violation may then take very long.
    is_recursive: bool,
}

/// Result of validating one payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// It is not JSON.
    Json,
    /// It violates the schema.
    Schema,
}

impl CompiledSchema {
    /// Validates a payload.
    pub(super) fn validate(&self, payload: &[u8]) -> Result<(), Invalid> {
        let value: Value = serde_json::from_slice(payload).map_err(|_| Invalid::Json)?;
        // Faster than a search for violations, and linear also for recursive schemas.
        if self.validator.is_valid(&value) {
            Ok(())
        } else {
            Err(Invalid::Schema)
        }
    }

    /// Returns the first violation of a payload, for people: its place and rule, without values of
    /// the payload.
    pub(super) fn violation(&self, payload: &[u8]) -> String {
        let value: Value = match serde_json::from_slice(payload) {
            Ok(value) => value,
            Err(error) => return format!("not JSON: line {}", error.line()),
        };
        if self.is_recursive {
            return "not searched: the schema is recursive".to_owned();
        }
        let Err(error) = self.validator.validate(&value) else {
            return String::new();
        };
        let text = format!(
            "#{}: {} (#{} of the schema)",
            error.instance_path(),
            error.masked(),
            error.schema_path()
        );
        text.chars().take(VIOLATION_CHARACTERS_MAX).collect()
    }
}

/// Compiles documents by their paths. An error is the rest of a sentence that begins with a path.
pub(super) fn compile<'p>(
    documents: &SchemaDocuments,
    paths: impl IntoIterator<Item = &'p str>,
) -> BTreeMap<&'p str, Result<CompiledSchema, String>> {
    let documents = documents.resolved(BASE);
    let all = documents.documents.values();
    let patterns: usize = all.map(|document| patterns(&document.schema)).sum();
    let one = |path: &str| {
        let document = documents.documents.get(path);
        let document = document.ok_or("is missing")?;
        if let Some(outside) = &document.outside {
            return Err(format!(
                "refers to {:?}, which is not among the documents",
                outside.reference
            ));
        }
        if patterns > PATTERNS_MAX {
            return Err(format!(
                "cannot be used: the documents have more than {PATTERNS_MAX} regular expressions"
            ));
        }
        let mut cost = Cost::new(&documents);
        cost.of(path, "", &document.schema, 0)?;
        build(&documents, path, document).map(|validator| CompiledSchema {
            validator,
            is_recursive: cost.is_recursive,
        })
    };
    paths.into_iter().map(|path| (path, one(path))).collect()
}

/// Paths of a document and of all others that it needs.
pub(super) fn needed<'d>(documents: &'d ResolvedDocuments, path: &'d str) -> BTreeSet<&'d str> {
    let mut needed = BTreeSet::new();
    let mut open = vec![path];
    while let Some(path) = open.pop() {
        if needed.insert(path) {
            let used = documents.documents.get(path).map(|document| &document.used);
            open.extend(used.into_iter().flatten().map(String::as_str));
        }
    }
    needed
}

fn build(
    documents: &ResolvedDocuments,
    path: &str,
    document: &ResolvedDocument,
) -> Result<Validator, String> {
    let unusable = |error: &dyn std::fmt::Display| format!("cannot be used: {error}");
    let mut registry = Registry::new();
    for path in needed(documents, path) {
        let schema = &documents.documents[path].schema;
        let with = registry.add(documents.uri(path), schema);
        registry = with.map_err(|error| unusable(&error))?;
    }
    let registry = registry.prepare().map_err(|error| unusable(&error))?;
    let patterns = PatternOptions::regex()
        .size_limit(PATTERN_BYTES_MAX)
        .dfa_size_limit(PATTERN_BYTES_MAX);
    jsonschema::options()
        .offline()
        .with_draft(document.draft)
        .with_base_uri(documents.uri(path))
        .with_registry(&registry)
        .with_pattern_options(patterns)
        .should_validate_formats(true)
        .build(&document.schema)
        .map_err(|error| {
            let text = error.to_string();
            let hint = if text.ends_with("is not a \"regex\"") {
                "; regular expressions have no look-around and no references to groups"
            } else {
                ""
            };
            let place = error.instance_path();
            format!("cannot be used: #{place}: {}{hint}", shortened(&text))
        })
}

/// Number of regular expressions in a schema.
fn patterns(schema: &Value) -> usize {
    let of_properties = schema.get("patternProperties").and_then(Value::as_object);
    let own = usize::from(schema.get("pattern").is_some_and(Value::is_string))
        + of_properties.map_or(0, serde_json::Map::len);
    let parts = children(schema).into_iter();
    own + parts.map(|(_, part)| patterns(part)).sum::<usize>()
}

/// Cost of one validation: schemas and their depth, with all references followed.
struct Cost<'a> {
    documents: &'a ResolvedDocuments,
    known: HashMap<(String, String), Size>,
    /// Places that are being measured; a reference to one of them is recursive.
    open: BTreeSet<(String, String)>,
    is_recursive: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Size {
    schemas: u64,
    depth: usize,
}

impl<'a> Cost<'a> {
    fn new(documents: &'a ResolvedDocuments) -> Self {
        Self {
            documents,
            known: HashMap::new(),
            open: BTreeSet::new(),
            is_recursive: false,
        }
    }

    /// Measures a place `depth` levels below the root. The error is the rest of a sentence.
    fn of(
        &mut self,
        path: &str,
        pointer: &str,
        schema: &Value,
        depth: usize,
    ) -> Result<Size, String> {
        let key = (path.to_owned(), pointer.to_owned());
        if self.open.contains(&key) {
            self.is_recursive = true;
            return Ok(Size {
                schemas: 1,
                depth: 1,
            });
        }
        let size = match self.known.get(&key) {
            Some(size) => *size,
            None if depth > DEPTH_MAX => return Err(too_deep(path, pointer)),
            None => {
                self.open.insert(key.clone());
                let size = self.measured(path, pointer, schema, depth)?;
                self.open.remove(&key);
                self.known.insert(key, size);
                size
            }
        };
        if depth + size.depth > DEPTH_MAX {
            return Err(too_deep(path, pointer));
        }
        if size.schemas > SCHEMAS_MAX {
            return Err(format!(
                "cannot be used: with its references it has more than {SCHEMAS_MAX} schemas"
            ));
        }
        Ok(size)
    }

    fn measured(
        &mut self,
        path: &str,
        pointer: &str,
        schema: &Value,
        depth: usize,
    ) -> Result<Size, String> {
        let unsupported = ["$dynamicRef", "$recursiveRef"]
            .into_iter()
            .find(|keyword| schema.get(keyword).is_some());
        let own_resource = (!pointer.is_empty() && own_id(schema).is_some()).then_some("$id");
        if let Some(keyword) = unsupported.or(own_resource) {
            return Err(format!(
                "cannot be used: #{pointer}/{keyword}: schemas refer to each other by `$ref` only"
            ));
        }
        let mut size = Size {
            schemas: 1,
            depth: 0,
        };
        let mut add = |part: Size| {
            size.schemas = size.schemas.saturating_add(part.schemas);
            size.depth = size.depth.max(part.depth);
        };
        for (relative, part) in children(schema) {
            // Only objects cost something, and only they and lists have parts.
            if part.is_object() || part.is_array() {
                add(self.of(path, &format!("{pointer}{relative}"), part, depth + 1)?);
            }
        }
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let documents = self.documents;
            let target = documents.target(reference).and_then(|(path, pointer)| {
                let schema = documents.documents.get(path)?.schema.pointer(&pointer)?;
                Some((path, pointer, schema))
            });
            let Some((path, target, schema)) = target else {
                let shown = reference.strip_prefix(BASE).unwrap_or(reference);
                return Err(format!(
                    "cannot be used: #{pointer}/$ref: {shown:?} is not a JSON pointer of a document"
                ));
            };
            add(self.of(path, &target, schema, depth + 1)?);
        }
        size.depth += 1;
        Ok(size)
    }
}

fn too_deep(path: &str, pointer: &str) -> String {
    format!("cannot be used: {path}#{pointer} is more than {DEPTH_MAX} levels deep")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compiled(documents: &[(&str, Value)]) -> Result<CompiledSchema, String> {
        let mut all = SchemaDocuments::default();
        for (path, schema) in documents {
            let added = all.add(path, schema.to_string().as_bytes());
            added.map_err(|error| error.to_string())?;
        }
        let (first, _) = documents[0];
        compile(&all, [first]).remove(first).unwrap()
    }

    fn is_valid(schema: &CompiledSchema, payload: &str) -> bool {
        schema.validate(payload.as_bytes()).is_ok()
    }

    #[test]
    fn payloads_are_valid_by_all_documents_that_a_schema_refers_to() {
        let order = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$id": "https://example.com/orders/order.json",
            "properties": { "price": { "$ref": "../money.json#/definitions/money" },
                "at": { "format": "date-time" }, "next": { "$ref": "order.json" } },
            "required": ["price"]
        });
        let money = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$id": "https://example.com/money.json",
            "definitions": { "money": { "type": "integer", "minimum": 0 } }
        });
        let schema = compiled(&[("orders/order.json", order), ("money.json", money)]).unwrap();
        assert!(is_valid(&schema, r#"{"price":1,"next":{"price":2}}"#));
        for payload in [
            r#"{"price":-1}"#,
            r#"{"price":1,"at":"noon"}"#,
            r#"{"price":1,"next":{}}"#,
            "{}",
        ] {
            assert_eq!(
                schema.validate(payload.as_bytes()),
                Err(Invalid::Schema),
                "{payload}"
            );
        }
        for payload in ["", "text", "{", "[1,]", "\u{feff}1"] {
            assert_eq!(
                schema.validate(payload.as_bytes()),
                Err(Invalid::Json),
                "{payload}"
            );
        }
        assert_eq!(schema.validate(b"\xff"), Err(Invalid::Json));
        let violation = schema.violation(b"{");
        assert!(violation.starts_with("not JSON"), "{violation}");
    }

    #[test]
    fn violation_has_the_place_and_the_rule_but_no_value() {
        let schema = compiled(&[("a", json!({ "properties": { "n": { "type": "integer" } } }))]);
        let violation = schema.unwrap().violation(br#"{"n":"secret"}"#);
        let expected =
            r##"#/n: value is not of type "integer" (#/properties/n/type of the schema)"##;
        assert_eq!(violation, expected);
    }

    #[test]
    fn schemas_refer_to_their_documents_only() {
        let refused = |schema: Value| compiled(&[("a", schema)]).unwrap_err();
        for reference in ["http://example.com/x", "file:///etc/passwd", "other.json"] {
            let why = refused(json!({ "$ref": reference }));
            assert!(why.contains("is not among the documents"), "{why}");
        }
        for schema in [
            json!({ "$dynamicRef": "http://example.com/x#a" }),
            json!({ "$ref": "#anchor", "$defs": { "x": { "$anchor": "anchor" } } }),
            json!({ "properties": { "x": { "$id": "http://example.com/x", "$ref": "y" } } }),
            json!({ "$schema": "http://example.com/meta" }),
        ] {
            let why = refused(schema);
            assert!(!why.is_empty());
        }
    }

    #[test]
    fn regular_expressions_are_linear_and_bounded() {
        let pattern = |pattern: &str| compiled(&[("a", json!({ "pattern": pattern }))]);
        let nested = pattern("^(a+)+$").unwrap();
        let text = json!("a".repeat(100_000) + "b").to_string();
        assert!(!is_valid(&nested, &text));
        assert!(is_valid(&pattern("^\\d+$").unwrap(), "\"12\""));
        for refused in ["(?=a)b", "(a)\\1", "(x{1000}){1000}"] {
            let why = pattern(refused).unwrap_err();
            assert!(why.contains("regular expressions"), "{why}");
        }
        let many = (0..=PATTERNS_MAX).map(|number| (number.to_string(), json!({ "pattern": "a" })));
        let many: serde_json::Map<_, _> = many.collect();
        let why = compiled(&[("a", json!({ "properties": many }))]).unwrap_err();
        assert!(why.contains("more than 1000 regular expressions"), "{why}");
    }

    /// A chain of definitions, each of which is made of the next one.
    fn chain(length: usize, link: impl Fn(Value) -> Value) -> Value {
        let mut definitions = serde_json::Map::new();
        for number in 0..length {
            let next = json!({ "$ref": format!("#/$defs/{}", number + 1) });
            definitions.insert(number.to_string(), link(next));
        }
        definitions.insert(length.to_string(), json!({ "type": "integer" }));
        json!({ "$defs": definitions, "$ref": "#/$defs/0" })
    }

    #[test]
    fn cost_is_bounded_with_references_followed() {
        let twice = |next: Value| json!({ "allOf": [next, next] });
        assert!(is_valid(
            &compiled(&[("a", chain(12, twice))]).unwrap(),
            "1"
        ));
        let why = compiled(&[("a", chain(40, twice))]).unwrap_err();
        assert!(why.contains("more than 100000 schemas"), "{why}");
        let once = |next: Value| json!({ "not": { "not": next } });
        assert!(compiled(&[("a", chain(20, once))]).is_ok());
        let why = compiled(&[("a", chain(100, once))]).unwrap_err();
        assert!(why.contains("more than 128 levels deep"), "{why}");
    }

    #[test]
    fn recursive_schemas_end() {
        for schema in [
            json!({ "$ref": "#" }),
            json!({ "allOf": [{ "$ref": "#" }] }),
        ] {
            assert!(is_valid(&compiled(&[("a", schema)]).unwrap(), "1"));
        }
        let branch = json!({ "properties": { "a": { "$ref": "#" } }, "required": ["a"] });
        let schema = compiled(&[("a", json!({ "anyOf": [branch, branch, branch] }))]).unwrap();
        let deep = "{\"a\":".repeat(120) + "1" + &"}".repeat(120);
        assert!(is_valid(&schema, "1") || !is_valid(&schema, &deep));
        assert!(schema.violation(b"{}").contains("recursive"));
    }
}
