//! Schemas of payloads in the document, and the messages of clients.

use serde_json::{Value, json};

use super::{FIXTURE, asyncapi, document, problems, validate};

fn payload(channel: &str, message: &str, payload: Value) -> Value {
    let mut of_channel = json!({ "channel": channel, "message": message });
    of_channel["payload"] = payload;
    of_channel
}

#[test]
fn messages_have_the_schemas_of_their_payloads_by_version_and_format() {
    let text = document(&["--config", FIXTURE]);
    let orders = |message, data| {
        payload(
            "events.orders.id",
            message,
            json!({ "id": "a-1-b", "subject": "orders.1", "data": data }),
        )
    };
    let event = |data: Value| {
        let event = json!({
            "specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": data
        });
        payload(
            "changes",
            "ndjson",
            json!({ "id": "a", "subject": "orders.1", "data": event }),
        )
    };
    let poll = |data| {
        let events = json!([{ "id": "a", "subject": "orders.1", "data": data }]);
        payload(
            "events.orders.id",
            "long_poll_v2",
            json!({ "events": events, "id": "a" }),
        )
    };
    let price = |name: Option<&str>, data| {
        let mut event = json!({ "id": "a", "subject": "1.prices.x", "data": data });
        if let Some(name) = name {
            event["event"] = json!(name);
        }
        payload("events.orders.id-2", "websocket", event)
    };
    let valid = [
        orders("ndjson_v1", json!({ "sum": 1 })),
        orders("ndjson_v2", json!({ "total": 1, "note": "a" })),
        orders("websocket_v2", json!({ "total": 7 })),
        poll(json!({ "total": 7 })),
        event(json!({ "total": 7 })),
        price(None, json!(1)),
        price(Some("sidestream.removed"), json!({})),
        payload(
            "changes",
            "websocket_subscribe",
            json!({ "subscribe": ["orders.1"] }),
        ),
        payload(
            "changes",
            "websocket_unsubscribe",
            json!({ "unsubscribe": ["orders.1"] }),
        ),
        payload(
            "changes",
            "websocket_control",
            json!({ "control": "subscribed", "subjects": ["orders.1"], "id": "a" }),
        ),
    ];
    let invalid = [
        orders("ndjson_v1", json!({ "total": 1 })),
        orders("ndjson_v2", json!({ "sum": 1 })),
        orders("ndjson_v2", json!({ "total": 0 })),
        orders("ndjson_v2", json!({ "total": 1, "note": 7 })),
        poll(json!({ "total": 0 })),
        event(json!({ "total": 0 })),
        payload(
            "changes",
            "ndjson",
            json!({ "id": "a", "subject": "b", "data": { "total": 7 } }),
        ),
        payload(
            "changes",
            "websocket_subscribe",
            json!({ "unsubscribe": ["orders.1"] }),
        ),
        payload(
            "changes",
            "websocket_control",
            json!({ "control": "subscribed" }),
        ),
    ];
    let payloads = [&valid[..], &invalid].concat();
    let result = validate(&text, &payloads);
    assert_eq!(problems(&result), Vec::<&Value>::new());
    let results = result["payloads"].as_array().unwrap();
    for (nth, (payload, errors)) in payloads.iter().zip(results).enumerate() {
        let is_valid = *errors == json!([]);
        assert_eq!(is_valid, nth < valid.len(), "{payload}: {errors}");
    }
    let content = &result["content"];
    let operation = &content["operations"]["changes.subjects"];
    assert_eq!(operation["action"], "receive");
    assert_eq!(operation["messages"].as_array().unwrap().len(), 2);
    let schemas = content["components"]["schemas"].as_object().unwrap();
    // A document has a name of its own, and no name of another resource.
    for name in [
        "orders.v1.json",
        "orders.v2.json",
        "money.json",
        "Event.json",
        "Event",
    ] {
        assert!(schemas.contains_key(name), "{name}");
    }
    assert_eq!(schemas["orders.v1.json"].get("$id"), None);
    let sse = &content["channels"]["events.orders.id"]["messages"]["sse_v2"]["payload"];
    let data = &sse["allOf"][1]["properties"]["data"];
    let reference = json!({ "$ref": "#/components/schemas/orders.v2.json" });
    assert_eq!(data["contentSchema"], reference);
}

#[test]
fn documents_of_a_bucket_are_named_or_read_from_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.yaml");
    let config = r#"
routes: [{ path: /a, sources: [{ subjects: ["orders.>"] }] }]
schemas: { bucket: SCHEMAS, payloads: [{ subjects: ["orders.1"], schema: orders/v2.json }] }
"#;
    std::fs::write(&file, config).unwrap();
    let file = file.to_str().unwrap();
    let text = document(&["--config", file]);
    let result = validate(&text, &[]);
    assert_eq!(problems(&result), Vec::<&Value>::new());
    let component =
        |result: &Value| result["content"]["components"]["schemas"]["orders.v2.json"].clone();
    let description = "JSON Schema orders/v2.json of the KV bucket SCHEMAS.";
    assert_eq!(component(&result), json!({ "description": description }));
    let folder = "tests/fixtures/config/asyncapi-schemas";
    let text = document(&["--config", file, "--schemas", folder]);
    let result = validate(&text, &[]);
    assert_eq!(component(&result)["required"], json!(["total"]));
    // Only some subjects of the route are described.
    let event = &result["content"]["channels"]["a"]["messages"]["ndjson"]["payload"]["allOf"][1];
    assert_eq!(
        event["properties"]["data"]["anyOf"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let output = asyncapi(&["--config", file, "--schemas", "missing"]);
    assert_eq!(output.status.code(), Some(0));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("missing: No such file"), "{errors}");
}
