//! One Rust client library, used as its README says, prints what `../clients.mjs` prints: clients LIBRARY URL.

use std::time::Duration;

use futures::StreamExt;
use serde_json::json;

fn event(name: &str, data: &str, id: &str) {
    let name = if name.is_empty() { "message" } else { name };
    println!("{}", json!({ "kind": "event", "name": name, "data": data, "id": id }));
    if data == "END" {
        std::process::exit(0);
    }
}

fn show(kind: &str, message: impl std::fmt::Display) {
    println!("{}", json!({ "kind": kind, "message": message.to_string() }));
}

async fn eventsource_client(url: &str) {
    use eventsource_client::{Client, ClientBuilder, ReconnectOptions, SSE};

    let transport = launchdarkly_sdk_transport::HyperTransport::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_secs(60))
        .build_http()
        .expect("a transport without TLS needs nothing");
    let reconnect = ReconnectOptions::reconnect(true)
        .retry_initial(true)
        .delay(Duration::from_millis(500))
        .delay_max(Duration::from_secs(5))
        .build();
    let client = ClientBuilder::for_url(url).expect("a URL").reconnect(reconnect).build_with_transport(transport);
    let mut events = client.stream();
    while let Some(given) = events.next().await {
        match given {
            Ok(SSE::Event(given)) => event(&given.event_type, &given.data, given.id.as_deref().unwrap_or_default()),
            Ok(_) => {}
            Err(error) => show("error", format_args!("{error:?}")),
        }
    }
    show("over", "the stream ended");
}

async fn reqwest_eventsource(url: &str) {
    use reqwest_eventsource::{Event, EventSource};

    let mut events = EventSource::get(url);
    while let Some(given) = events.next().await {
        match given {
            Ok(Event::Open) => {}
            Ok(Event::Message(given)) => event(&given.event, &given.data, &given.id),
            Err(error) => show("error", error),
        }
    }
    show("over", "the stream ended");
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments[1].as_str() {
        "eventsource-client-rust" => eventsource_client(&arguments[2]).await,
        "reqwest-eventsource" => reqwest_eventsource(&arguments[2]).await,
        library => show("over", format_args!("no library {library}")),
    }
}
