//! Versions of the state with which `begin: latest` begins.

use serde_json::{Value, json};
use testkit::http1;
use testkit::sse::Event;
use testkit::websocket;

use super::{Fixture, pod};

#[tokio::test]
async fn state_has_the_version_and_is_converted_once_for_clients_that_share_it() {
    let mut fixture = Fixture::start().await;
    let (new, old) = (r#"{"customer":{"name":"Ada"}}"#, r#"{"name":"Bob"}"#);
    fixture.publish("orders.1", "2", new).await;
    fixture.publish("orders.2", "2", "no JSON").await;
    fixture.publish("orders.3", "1", old).await;
    fixture.publish("orders.4", "", new).await;
    // The metrics of another sidecar begin at 0.
    fixture.sidestream = pod(&fixture.nats).await;

    let (mut client, mut lines) = tokio::join!(
        fixture.sse("/state?version=1"),
        fixture.ndjson("/state?version=1", "")
    );
    let synced = |event: &Event| event.name == "sidestream.synced";
    let state = client.until(synced).await;
    let state = state.iter().map(|event| (&*event.name, &*event.data));
    let converted = r#"{"name":"Ada"}"#;
    assert_eq!(
        state
            .skip_while(|(name, _)| *name != "sidestream.snapshot")
            .collect::<Vec<_>>(),
        [
            ("sidestream.snapshot", "{}"),
            ("message", converted),
            (
                "sidestream.gap",
                r#"{"reason":"conversion","missed":1,"resume":"live"}"#
            ),
            ("message", old),
            ("message", converted),
            ("sidestream.synced", "{}"),
        ]
    );
    let (state, _) = lines.until_control("synced").await;
    let payloads: Vec<&Value> = state.iter().filter_map(|line| line.get("data")).collect();
    assert_eq!(
        payloads,
        [
            &json!({ "name": "Ada" }),
            &json!({ "name": "Bob" }),
            &json!({ "name": "Ada" })
        ]
    );
    let gap = state.iter().find(|line| line["control"] == "gap").unwrap();
    assert_eq!(
        (&gap["reason"], gap.get("id")),
        (&json!("conversion"), None)
    );

    let url = fixture.sidestream.url("/state?version=1");
    let mut messages = websocket::Request::new(&url).open().await;
    let (state, _) = messages.until_control("synced").await;
    let of_ada = state.iter().find(|object| object["subject"] == "orders.1");
    assert_eq!(of_ada.unwrap()["data"], json!({ "name": "Ada" }));
    assert!(state.iter().any(|object| object["control"] == "gap"));
    let headers = [("Accept", "application/json")];
    let answer = http1::request("GET", &url, &headers).await.unwrap().json();
    let elements: Vec<&Value> = answer["events"].as_array().unwrap().iter().collect();
    let names = elements.iter().map(|element| match &element["control"] {
        Value::String(name) => name,
        _ => "event",
    });
    let expected = ["snapshot", "event", "gap", "event", "event", "synced"];
    assert_eq!(names.collect::<Vec<_>>(), expected);
    assert_eq!(elements[1]["data"], json!({ "name": "Ada" }));
    let gaps = [("route", "/state"), ("reason", "conversion")];
    let name = "sidestream_gaps_total";
    assert_eq!(fixture.sidestream.metric(name, &gaps).await, 4.0);

    fixture.publish("orders.2", "2", new).await;
    let change = client.until(|event| event.name == "message").await;
    assert_eq!(change.last().unwrap().data, converted);
    assert_eq!(lines.events(1).await[0]["data"]["name"], "Ada");
    // Two in each state that clients share, the same two in the window of the feeds, and the change.
    let failed = fixture.conversions("/state", "1", "failed").await;
    assert!((2.0..=4.0).contains(&failed), "{failed}");
    let converted = fixture.conversions("/state", "1", "converted").await;
    assert_eq!(converted, 2.0 * failed + 1.0);

    // Clients of the current version share the same state; an older message is converted for them.
    let mut current = fixture.ndjson("/state", "").await;
    let (state, _) = current.until_control("synced").await;
    let of_bob = state
        .iter()
        .find(|line| line["subject"] == "orders.3")
        .unwrap();
    assert_eq!(of_bob["data"], json!({ "customer": { "name": "Bob" } }));
}
