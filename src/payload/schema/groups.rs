//! Groups of keywords: a schema is their conjunction.
//!
//! Most keywords are alone. Some depend on others, such as `additionalProperties` on the names in
//! `properties`: their group has those too, without what they require themselves.

use serde_json::{Map, Value, json};

/// Keyword with the companions that it depends on.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) keyword: String,
    pub(super) schema: Value,
}

/// Splits a schema into groups that are equal to it together.
pub(super) fn groups(keywords: &Map<String, Value>) -> Vec<Group> {
    let mut groups = Vec::new();
    for (keyword, value) in keywords {
        let mut schema = Map::from_iter([(keyword.clone(), value.clone())]);
        let mut with = |companions: &[&str]| {
            for companion in companions {
                let value = keywords
                    .get(*companion)
                    .map(|value| ((*companion).into(), value.clone()));
                schema.extend(value);
            }
        };
        let is_annotated = |companion: &str| keywords.contains_key(companion);
        match keyword.as_str() {
            // They mean nothing alone, and belong to the group of another keyword.
            "then" | "else" => continue,
            "minContains" | "maxContains" => continue,
            "exclusiveMinimum" | "exclusiveMaximum" if value.is_boolean() => continue,
            "$schema" | "$id" | "id" | "$defs" | "definitions" => continue,
            "if" => with(&["then", "else"]),
            "contains" => with(&["minContains", "maxContains"]),
            "minimum"
                if keywords
                    .get("exclusiveMinimum")
                    .is_some_and(Value::is_boolean) =>
            {
                with(&["exclusiveMinimum"]);
            }
            "maximum"
                if keywords
                    .get("exclusiveMaximum")
                    .is_some_and(Value::is_boolean) =>
            {
                with(&["exclusiveMaximum"]);
            }
            "additionalProperties" => {
                schema.extend(names_only(keywords, "properties"));
                schema.extend(names_only(keywords, "patternProperties"));
            }
            "items" if is_annotated("prefixItems") => {
                schema.extend(names_only(keywords, "prefixItems"));
            }
            "additionalItems" => schema.extend(names_only(keywords, "items")),
            "unevaluatedProperties" | "unevaluatedItems" => {
                schema = keywords.clone();
                schema.remove("required");
                for map in ["properties", "patternProperties", "prefixItems"] {
                    schema.extend(names_only(keywords, map));
                }
            }
            _ => {}
        }
        groups.push(Group {
            keyword: keyword.clone(),
            schema: Value::Object(schema),
        });
    }
    groups
}

/// A keyword with the same names or the same number of elements, and schemas that accept everything.
fn names_only(keywords: &Map<String, Value>, keyword: &str) -> Option<(String, Value)> {
    let value = match keywords.get(keyword)? {
        Value::Object(map) if keyword != "items" => {
            map.keys().map(|name| (name.clone(), json!({}))).collect()
        }
        Value::Array(items) => items.iter().map(|_| json!({})).collect(),
        other => other.clone(),
    };
    Some((keyword.to_owned(), value))
}
