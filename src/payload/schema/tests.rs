//! Planted incompatibilities, compatible changes, and generated schemas with generated documents.

use serde_json::{Value, json};

use super::{Incompatibility, InvalidSchema, SchemaDocuments, incompatibilities};

mod generated;

fn documents(files: &[(&str, &Value)]) -> SchemaDocuments {
    let mut documents = SchemaDocuments::default();
    for (path, schema) in files {
        documents.add(path, schema.to_string().as_bytes()).unwrap();
    }
    documents
}

fn compare(old: &Value, new: &Value) -> Vec<Incompatibility> {
    incompatibilities(
        &documents(&[("event.json", old)]),
        &documents(&[("event.json", new)]),
    )
}

/// Pointers and reasons of the incompatibilities.
fn lines(old: &Value, new: &Value) -> Vec<String> {
    compare(old, new)
        .into_iter()
        .map(|found| format!("{}: {}", found.pointer, found.reason))
        .collect()
}

/// A schema as publishers write it.
fn order() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/order.json",
        "type": "object",
        "required": ["id", "status", "total"],
        "properties": {
            "id": { "type": "string", "minLength": 8, "maxLength": 64, "pattern": "^[a-z0-9]+$" },
            "status": { "enum": ["open", "paid", "shipped"] },
            "total": { "$ref": "#/$defs/money" },
            "placed": { "type": "string", "format": "date-time" },
            "note": { "type": "string" },
            "lines": {
                "type": "array",
                "items": { "$ref": "#/$defs/line" },
                "minItems": 1,
                "maxItems": 100
            },
            "tags": { "type": "array", "items": { "type": "string" }, "uniqueItems": true },
            "payment": {
                "oneOf": [
                    {
                        "type": "object",
                        "required": ["kind", "iban"],
                        "properties": { "kind": { "const": "transfer" }, "iban": { "type": "string" } }
                    },
                    {
                        "type": "object",
                        "required": ["kind", "digits"],
                        "properties": { "kind": { "const": "card" }, "digits": { "type": "integer", "maximum": 9999 } }
                    }
                ]
            }
        },
        "additionalProperties": false,
        "$defs": {
            "money": {
                "type": "object",
                "required": ["amount", "currency"],
                "properties": {
                    "amount": { "type": "integer", "minimum": 0, "multipleOf": 5 },
                    "currency": { "const": "EUR" }
                }
            },
            "line": {
                "type": "object",
                "required": ["sku"],
                "properties": {
                    "sku": { "type": "string" },
                    "count": { "type": "integer" },
                    "next": { "$ref": "#/$defs/line" }
                }
            }
        }
    })
}

/// The schema with one part replaced; `null` removes it.
fn changed(pointer: &str, value: Value) -> Value {
    let mut schema = order();
    let (parent, token) = pointer.rsplit_once('/').unwrap();
    let parent = schema.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Object(map), Value::Null) => assert!(map.remove(token).is_some()),
        (Value::Object(map), value) => {
            map.insert(token.into(), value);
        }
        (Value::Array(list), Value::Null) => {
            list.remove(token.parse().unwrap());
        }
        (Value::Array(list), value) if token == "-" => list.push(value),
        (Value::Array(list), value) => list[token.parse::<usize>().unwrap()] = value,
        _ => panic!("{pointer}: no such parent"),
    }
    schema
}

#[test]
fn each_planted_incompatibility_is_found_at_its_place() {
    let cash = json!({
        "type": "object",
        "required": ["kind"],
        "properties": { "kind": { "const": "cash" } }
    });
    let text = json!({ "type": "string" });
    let planted = [
        // Objects.
        (
            "/required/2",
            Value::Null,
            "/required",
            "property \"total\" is no longer required",
        ),
        (
            "/$defs/money/required/1",
            Value::Null,
            "/$defs/money/required",
            "property \"currency\" is no longer required",
        ),
        (
            "/properties/discount",
            json!({ "type": "integer" }),
            "/additionalProperties",
            "property \"discount\" is new, and the old schema forbids other properties",
        ),
        (
            "/additionalProperties",
            text.clone(),
            "/additionalProperties",
            "the new schema accepts other properties",
        ),
        (
            "/additionalProperties",
            Value::Null,
            "/additionalProperties",
            "the new schema accepts other properties",
        ),
        (
            "/$defs/line/properties/count",
            Value::Null,
            "/$defs/line/properties/count",
            "the new schema does not describe it, and accepts any value for it",
        ),
        // Types.
        (
            "/type",
            Value::Null,
            "/type",
            "the new schema also accepts null, boolean, integer, number, string, array",
        ),
        (
            "/properties/id/type",
            json!(["string", "null"]),
            "/properties/id/type",
            "the new schema also accepts null",
        ),
        (
            "/properties/tags/items/type",
            json!("integer"),
            "/properties/tags/items/type",
            "the new schema also accepts integer",
        ),
        (
            "/$defs/line/properties/count/type",
            json!("number"),
            "/$defs/line/properties/count/type",
            "the new schema also accepts number",
        ),
        // Values.
        (
            "/properties/status/enum/-",
            json!("lost"),
            "/properties/status/enum",
            "the new schema also accepts \"lost\"",
        ),
        (
            "/properties/status/enum",
            Value::Null,
            "/properties/status/enum",
            "was [\"open\",\"paid\",\"shipped\"], is absent",
        ),
        (
            "/$defs/money/properties/currency",
            json!({ "enum": ["EUR", "USD"] }),
            "/$defs/money/properties/currency/const",
            "the new schema also accepts \"USD\"",
        ),
        // Strings.
        (
            "/properties/id/minLength",
            json!(4),
            "/properties/id/minLength",
            "was 8, is 4",
        ),
        (
            "/properties/id/maxLength",
            Value::Null,
            "/properties/id/maxLength",
            "was 64, is absent",
        ),
        (
            "/properties/id/pattern",
            json!("^[a-zA-Z0-9]+$"),
            "/properties/id/pattern",
            "cannot be compared: was \"^[a-z0-9]+$\", is \"^[a-zA-Z0-9]+$\"",
        ),
        (
            "/properties/id/pattern",
            Value::Null,
            "/properties/id/pattern",
            "was \"^[a-z0-9]+$\", is absent",
        ),
        (
            "/properties/placed/format",
            json!("date"),
            "/properties/placed/format",
            "was \"date-time\", is \"date\"",
        ),
        (
            "/properties/placed/format",
            Value::Null,
            "/properties/placed/format",
            "was \"date-time\", is absent",
        ),
        // Numbers.
        (
            "/$defs/money/properties/amount/minimum",
            json!(-100),
            "/$defs/money/properties/amount/minimum",
            "was 0, is -100",
        ),
        (
            "/$defs/money/properties/amount/multipleOf",
            json!(1),
            "/$defs/money/properties/amount/multipleOf",
            "was 5, is 1",
        ),
        // Arrays.
        (
            "/properties/lines/minItems",
            json!(0),
            "/properties/lines/minItems",
            "was 1, is 0",
        ),
        (
            "/properties/lines/maxItems",
            json!(200),
            "/properties/lines/maxItems",
            "was 100, is 200",
        ),
        (
            "/properties/tags/uniqueItems",
            Value::Null,
            "/properties/tags/uniqueItems",
            "was true, is absent",
        ),
        // Alternatives.
        (
            "/properties/payment/oneOf/-",
            cash,
            "/properties/payment/oneOf",
            "the new schema has an alternative that the old one rejects: #/properties/payment/oneOf/2",
        ),
        (
            "/properties/payment/oneOf/0/required/1",
            Value::Null,
            "/properties/payment/oneOf/0/required",
            "property \"iban\" is no longer required",
        ),
        (
            "/properties/payment/oneOf/1/properties/digits/maximum",
            Value::Null,
            "/properties/payment/oneOf/1/properties/digits/maximum",
            "was 9999, is absent",
        ),
    ];
    for (pointer, value, place, reason) in planted {
        let found = lines(&order(), &changed(pointer, value.clone()));
        assert_eq!(found, [format!("{place}: {reason}")], "{pointer}: {value}");
    }
}

#[test]
fn all_incompatibilities_of_a_change_are_found() {
    let mut new = order();
    new["required"] = json!(["id"]);
    new["properties"]["id"]["minLength"] = json!(1);
    new["$defs"]["line"]["required"] = json!([]);
    let expected = [
        "/properties/id/minLength: was 8, is 1",
        "/$defs/line/required: property \"sku\" is no longer required",
        "/required: property \"status\" is no longer required",
        "/required: property \"total\" is no longer required",
    ];
    assert_eq!(lines(&order(), &new), expected);
}

#[test]
fn compatible_changes_pass() {
    let narrow_line = json!({ "allOf": [{ "$ref": "#/$defs/line" }, { "required": ["next"] }] });
    let card = json!({
        "type": "object",
        "required": ["kind", "digits"],
        "properties": { "kind": { "const": "card" }, "digits": { "const": 7 } }
    });
    let compatible = [
        ("/description", json!("an order")),
        (
            "/properties/note",
            json!({ "type": "string", "maxLength": 200 }),
        ),
        ("/properties/note", json!(false)),
        ("/properties/note", Value::Null),
        ("/required/-", json!("placed")),
        ("/properties/status/enum/2", Value::Null),
        ("/properties/status", json!({ "const": "open" })),
        ("/properties/id/minLength", json!(10)),
        ("/properties/id/maxLength", json!(20)),
        ("/properties/lines/maxItems", json!(10)),
        ("/properties/lines/items", narrow_line),
        ("/$defs/money/properties/amount/multipleOf", json!(10)),
        ("/$defs/money/properties/vat", json!({ "type": "integer" })),
        ("/$defs/line/properties/size", json!({ "type": "string" })),
        ("/$defs/line/required/-", json!("next")),
        ("/properties/payment/oneOf/0", Value::Null),
        ("/properties/payment", json!({ "anyOf": [card] })),
    ];
    for (pointer, value) in compatible {
        let found = lines(&order(), &changed(pointer, value.clone()));
        assert_eq!(found, [""; 0], "{pointer}: {value}");
    }
    assert_eq!(lines(&order(), &order()), [""; 0]);
}

#[test]
fn optional_property_is_compatible_unless_the_old_schema_describes_other_properties() {
    let new = json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
    assert_eq!(lines(&json!({ "type": "object" }), &new), [""; 0]);
    let old = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    let found = lines(&old, &new);
    let expected = [
        "/additionalProperties/type: the new schema also accepts integer",
        "/additionalProperties: the new schema accepts other properties",
    ];
    assert_eq!(found, expected);
}

#[test]
fn elements_with_a_schema_of_their_own_are_compared_by_position() {
    let list = |prefix: Value, items: Value| json!({ "type": "array", "prefixItems": prefix, "items": items });
    let (text, count) = (json!({ "type": "string" }), json!({ "type": "integer" }));
    let old = list(json!([text, count]), count.clone());
    assert_eq!(lines(&old, &list(json!([text]), count.clone())), [""; 0]);
    let found = lines(&old, &list(json!([text, text]), count.clone()));
    assert_eq!(
        found,
        ["/prefixItems/1/type: the new schema also accepts string"]
    );
    let found = lines(&old, &list(json!([text, count, text]), count.clone()));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("/items: "), "{found:?}");
    let found = lines(&old, &list(json!([text, count]), text.clone()));
    assert_eq!(found, ["/items/type: the new schema also accepts string"]);
}

#[test]
fn what_cannot_be_compared_is_an_incompatibility_with_that_reason() {
    let reason = |old: &Value, new: &Value| lines(old, new).concat();
    let (seventh, newest) = (
        json!({ "$schema": "http://json-schema.org/draft-07/schema#" }),
        json!({ "$schema": "https://json-schema.org/draft/2020-12/schema" }),
    );
    let drafts = "/$schema: cannot be compared: the schemas are of different drafts";
    assert_eq!(reason(&seventh, &newest), drafts);
    let elsewhere = json!({ "properties": { "a": { "$ref": "https://example.com/a.json" } } });
    let outside = "/properties/a/$ref: cannot be compared: \"https://example.com/a.json\" is not among the files";
    assert_eq!(reason(&elsewhere, &json!({})), outside);
    let patterns = reason(&json!({ "pattern": "^a" }), &json!({ "pattern": "^ab" }));
    assert!(patterns.contains("cannot be compared"), "{patterns}");
    let format = reason(&json!({ "format": "x-own" }), &json!({ "format": "date" }));
    assert!(format.contains("cannot be compared"), "{format}");
}

#[test]
fn documents_refer_to_each_other_by_path_and_by_id() {
    let uses = |reference: &str| json!({ "properties": { "total": { "$ref": reference } } });
    let money = |minimum: i64| {
        json!({
            "$id": "https://example.com/common/money.json",
            "$defs": { "amount": { "type": "integer", "minimum": minimum } },
            "type": "object"
        })
    };
    let references = [
        "common/money.json#/$defs/amount",
        "./common/../common/money.json#/$defs/amount",
        "https://example.com/common/money.json#/$defs/amount",
    ];
    for reference in references {
        let all = |minimum| {
            let (order, money) = (uses(reference), money(minimum));
            documents(&[("order.json", &order), ("common/money.json", &money)])
        };
        assert_eq!(incompatibilities(&all(0), &all(5)), []);
        let expected = Incompatibility {
            path: "common/money.json".into(),
            pointer: "/$defs/amount/minimum".into(),
            reason: "was 5, is 0".into(),
        };
        assert_eq!(
            incompatibilities(&all(5), &all(0)),
            [expected],
            "{reference}"
        );
    }
}

#[test]
fn file_that_only_one_side_has_is_incompatible_if_it_is_the_old_one() {
    let (one, two) = (
        documents(&[("a.json", &json!({}))]),
        documents(&[("a.json", &json!({})), ("b.json", &json!({}))]),
    );
    assert_eq!(incompatibilities(&one, &two), []);
    let removed = incompatibilities(&two, &one);
    assert_eq!((removed.len(), removed[0].path.as_str()), (1, "b.json"));
}

#[test]
fn text_that_is_not_a_schema_is_rejected_with_its_place() {
    let add = |text: &str| SchemaDocuments::default().add("a.json", text.as_bytes());
    let message = |text: &str| add(text).unwrap_err().to_string();
    assert!(matches!(add("{"), Err(InvalidSchema::Json(_))));
    let wrong_type = r#"{"properties":{"a":{"type":"strnig"}}}"#;
    let prefix = "is not a valid schema: #/properties/a/type: ";
    assert!(
        message(wrong_type).starts_with(prefix),
        "{}",
        message(wrong_type)
    );
    assert!(
        message("7").starts_with("is not a valid schema: #: "),
        "{}",
        message("7")
    );
    let dangling = r##"{"items":{"$ref":"#/$defs/none"}}"##;
    let expected = "is not a valid schema: #/items/$ref: the document has no \"#/$defs/none\"";
    assert_eq!(message(dangling), expected);
    let dialect = r#"{"$schema":"https://example.com/own"}"#;
    assert!(message(dialect).starts_with("has an unknown `$schema`: \"https://example.com/own\""));
    let deep = "[".repeat(100_000);
    assert!(matches!(add(&deep), Err(InvalidSchema::Json(_))));
}
