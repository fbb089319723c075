//! Generated schemas: what is valid under a compatible new schema is valid under the old one.
//!
//! Schemas and documents come from a small vocabulary, so that they meet often. The judge is the
//! validator, which shares no code with the comparison.

use std::cell::Cell;

use jsonschema::Validator;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value, json};

use super::compare;

/// Step from an old schema to a new one.
#[derive(Clone, Debug)]
enum Change {
    /// Keywords are added to a part, or replace its keywords of the same name.
    Keywords(Index, Value),
    /// A part is replaced.
    Replace(Index, Value),
    /// One keyword of a part is removed.
    Remove(Index, Index),
    /// A part must satisfy another schema too.
    Narrow(Index, Value),
}

fn scalar() -> impl Strategy<Value = Value> {
    let texts = ["", "a", "ab", "abc", "b", "2026-11-30"];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-2..7_i64).prop_map(Value::from),
        select(vec![0.5, 1.0, 2.5]).prop_map(Value::from),
        select(texts.to_vec()).prop_map(Value::from),
    ]
}

fn document() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 12, 3, |inner| {
        let names = select(vec!["a", "b", "c", "d"]).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(names, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Any of these keywords, each with a probability.
fn keywords(all: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let each = all.into_iter().map(|(name, value)| {
        prop::option::weighted(0.3, value).prop_map(move |value| value.map(|value| (name, value)))
    });
    each.collect::<Vec<_>>()
        .prop_map(|found| {
            let members = found.into_iter().flatten();
            Value::Object(
                members
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
            )
        })
        .boxed()
}

fn number(range: std::ops::Range<i64>) -> BoxedStrategy<Value> {
    range.prop_map(Value::from).boxed()
}

fn names() -> BoxedStrategy<Value> {
    subsequence(vec!["a", "b", "c"], 0..3)
        .prop_map(|names| json!(names))
        .boxed()
}

fn leaf() -> impl Strategy<Value = Value> {
    let types = vec![
        "null", "boolean", "integer", "number", "string", "array", "object",
    ];
    prop_oneof![
        1 => any::<bool>().prop_map(Value::Bool),
        1 => Just(json!({})),
        3 => select(types.clone()).prop_map(|name| json!({ "type": name })),
        2 => subsequence(types, 1..4).prop_map(|names| json!({ "type": names })),
        2 => prop::collection::vec(scalar(), 1..4).prop_map(|values| json!({ "enum": values })),
        1 => document().prop_map(|value| json!({ "const": value })),
        1 => select(vec!["#/$defs/x", "#/$defs/y", "#"]).prop_map(|to| json!({ "$ref": to })),
        3 => keywords(vec![
            ("type", select(vec![json!("integer"), json!("number")]).boxed()),
            ("minimum", number(-1..4)),
            ("maximum", number(1..6)),
            ("exclusiveMinimum", number(-1..4)),
            ("exclusiveMaximum", number(1..6)),
            ("multipleOf", select(vec![json!(1), json!(2), json!(0.5)]).boxed()),
        ]),
        3 => keywords(vec![
            ("type", Just(json!("string")).boxed()),
            ("minLength", number(0..3)),
            ("maxLength", number(0..4)),
            ("pattern", select(vec![json!("^a"), json!("b$"), json!("^ab?")]).boxed()),
            ("format", select(vec![json!("date"), json!("email")]).boxed()),
        ]),
    ]
}

fn schema() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(3, 16, 3, |inner| {
        let one = || inner.clone().boxed();
        let list = || prop::collection::vec(inner.clone(), 1..3).prop_map(Value::Array).boxed();
        let map = |names: &'static [&'static str]| {
            let name = select(names.to_vec()).prop_map(str::to_owned);
            prop::collection::btree_map(name, inner.clone(), 1..3)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
                .boxed()
        };
        prop_oneof![
            4 => keywords(vec![
                ("type", Just(json!("object")).boxed()),
                ("properties", map(&["a", "b", "c"])),
                ("required", names()),
                ("additionalProperties", prop_oneof![Just(json!(false)), inner.clone()].boxed()),
                ("patternProperties", map(&["^[ab]", "d"])),
                ("propertyNames", select(vec![json!({ "pattern": "^[ab]" }), json!({ "maxLength": 1 })]).boxed()),
                ("minProperties", number(0..3)),
                ("maxProperties", number(0..4)),
                ("dependentRequired", names().prop_map(|names| json!({ "a": names })).boxed()),
                ("unevaluatedProperties", any::<bool>().prop_map(Value::Bool).boxed()),
            ]),
            3 => keywords(vec![
                ("type", Just(json!("array")).boxed()),
                ("items", one()),
                ("prefixItems", list()),
                ("minItems", number(0..3)),
                ("maxItems", number(0..4)),
                ("uniqueItems", any::<bool>().prop_map(Value::Bool).boxed()),
                ("contains", one()),
            ]),
            2 => keywords(vec![
                ("allOf", list()),
                ("anyOf", list()),
                ("oneOf", list()),
                ("not", one()),
            ]),
            1 => (one(), one(), one()).prop_map(|(a, b, c)| json!({ "if": a, "then": b, "else": c })),
        ]
    })
}

/// Mostly small, so that most changes are outside of it.
fn definition() -> impl Strategy<Value = Value> {
    prop_oneof![3 => leaf().boxed(), 1 => schema().boxed()]
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        2 => (at(), schema()).prop_map(|(at, with)| Change::Keywords(at, with)),
        2 => (at(), schema()).prop_map(|(at, with)| Change::Replace(at, with)),
        5 => (at(), at()).prop_map(|(at, keyword)| Change::Remove(at, keyword)),
        1 => (at(), schema()).prop_map(|(at, with)| Change::Narrow(at, with)),
    ]
}

/// Pointers of all parts that may be schemas.
fn parts(schema: &Value, pointer: &str, found: &mut Vec<String>) {
    let Value::Object(map) = schema else {
        if schema.is_boolean() {
            found.push(pointer.to_owned());
        }
        return;
    };
    found.push(pointer.to_owned());
    for (keyword, value) in map {
        let below = format!("{pointer}/{keyword}");
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs", Value::Object(schemas)) => {
                for (name, schema) in schemas {
                    parts(schema, &format!("{below}/{name}"), found);
                }
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems", Value::Array(schemas)) => {
                for (index, schema) in schemas.iter().enumerate() {
                    parts(schema, &format!("{below}/{index}"), found);
                }
            }
            (
                "items" | "additionalProperties" | "contains" | "not" | "if" | "then" | "else",
                value,
            ) => {
                parts(value, &below, found);
            }
            _ => {}
        }
    }
}

fn apply(schema: &mut Value, change: &Change) {
    let mut pointers = Vec::new();
    parts(schema, "", &mut pointers);
    let (Change::Keywords(at, _)
    | Change::Replace(at, _)
    | Change::Remove(at, _)
    | Change::Narrow(at, _)) = change;
    let pointer: &String = at.get(&pointers);
    let part = schema.pointer_mut(pointer).unwrap();
    match change {
        Change::Keywords(_, with) => match (part, with) {
            (Value::Object(part), Value::Object(with)) => part.extend(with.clone()),
            (part, with) => *part = with.clone(),
        },
        Change::Replace(_, with) => *part = with.clone(),
        Change::Remove(_, keyword) => {
            if let Value::Object(map) = part
                && !map.is_empty()
            {
                let keyword = map.keys().nth(keyword.index(map.len())).unwrap().clone();
                map.remove(&keyword);
            }
        }
        Change::Narrow(_, with) => *part = json!({ "allOf": [part.clone(), with] }),
    }
}

/// Adds the definitions to which generated schemas refer.
fn with_definitions(schema: &Value, definitions: &[Value; 2]) -> Value {
    let mut map = match schema {
        Value::Object(map) => map.clone(),
        other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
    };
    map.insert(
        "$defs".into(),
        json!({ "x": definitions[0], "y": definitions[1] }),
    );
    Value::Object(map)
}

/// Validator of a schema; `None` if it is not valid, or refers only to itself.
fn validator(schema: &Value) -> Option<Validator> {
    let options = jsonschema::options()
        .should_validate_formats(true)
        .offline();
    options.build(schema).ok()
}

/// True if a reference may lead back without a step into the document; a validator does not end.
fn may_loop(schema: &Value) -> bool {
    fn in_place(schema: &Value) -> Vec<&str> {
        let Value::Object(map) = schema else {
            return Vec::new();
        };
        let mut found: Vec<&str> = map
            .get("$ref")
            .and_then(Value::as_str)
            .into_iter()
            .collect();
        for keyword in ["not", "if", "then", "else"] {
            found.extend(map.get(keyword).map(in_place).unwrap_or_default());
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            let list = map.get(keyword).and_then(Value::as_array);
            found.extend(list.into_iter().flatten().flat_map(in_place));
        }
        found
    }
    ["", "/$defs/x", "/$defs/y"].into_iter().any(|start| {
        let mut open = vec![start];
        let mut known = Vec::new();
        while let Some(pointer) = open.pop() {
            for next in in_place(schema.pointer(pointer).unwrap()) {
                let next = next.trim_start_matches('#');
                if next == start {
                    return true;
                }
                if !known.contains(&next) {
                    known.push(next);
                    open.push(next);
                }
            }
        }
        false
    })
}

#[test]
fn documents_that_are_valid_under_a_compatible_schema_are_valid_under_the_old_one() {
    let counters = [0; 4].map(Cell::<u32>::new);
    let [pairs, compatible, valid, refuted] = &counters;
    let count = |counter: &Cell<u32>, is_one: bool| counter.set(counter.get() + u32::from(is_one));
    let strategy = (
        schema(),
        [definition(), definition()],
        prop::collection::vec(change(), 1..3),
        prop::collection::vec(document(), 60),
    );
    let config = Config {
        cases: Config::default().cases * 4,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&strategy, |(schema, definitions, changes, documents)| {
        let old = with_definitions(&schema, &definitions);
        let mut new = old.clone();
        changes.iter().for_each(|change| apply(&mut new, change));
        let has_definitions =
            new.pointer("/$defs/x").is_some() && new.pointer("/$defs/y").is_some();
        if !has_definitions || may_loop(&old) || may_loop(&new) {
            return Ok(());
        }
        let (Some(by_old), Some(by_new)) = (validator(&old), validator(&new)) else {
            return Ok(());
        };
        let is_compatible = compare(&old, &new).is_empty();
        count(pairs, true);
        count(compatible, is_compatible);
        let mut is_refuted = false;
        for document in documents
            .iter()
            .filter(|document| by_new.is_valid(document))
        {
            let is_read = by_old.is_valid(document);
            is_refuted |= !is_read;
            count(valid, is_compatible);
            prop_assert!(
                !is_compatible || is_read,
                "old: {old}\nnew: {new}\ndocument: {document}"
            );
        }
        count(refuted, is_refuted);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let [pairs, compatible, valid, refuted] = counters.map(Cell::into_inner);
    println!("{pairs} pairs, {compatible} compatible with {valid} documents, {refuted} refuted");
    // Both answers are frequent, and documents reach both.
    assert!(compatible > pairs / 4 && valid > pairs && refuted > pairs / 8);
}
