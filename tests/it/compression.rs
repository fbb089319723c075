//! Compressed event streams: the choice of the coding, and decoders that read them.

mod choice;
mod clients;
mod joins;
mod rate;

use std::io::{self, Read as _};

use async_nats::jetstream;
use flate2::bufread::GzDecoder;
use serde_json::Value;

use testkit::http1::{End, Response, head};
use testkit::nats::{Nats, create_stream};
use testkit::sidestream::{Sidestream, config};
use testkit::sse_parser::Parser;
use testkit::transport::Connector;

/// A nats-server with the JetStream stream ORDERS, and a sidecar with these routes.
struct Fixture {
    sidestream: Sidestream,
    nats: Nats,
    jetstream: jetstream::Context,
}

/// Content of an event stream, decoded.
#[derive(Debug, Default)]
struct Received {
    /// Numbers of the events.
    numbers: Vec<u64>,
    /// Reasons of the gaps.
    gaps: Vec<String>,
    /// Reason of the close event.
    close: Option<String>,
    /// Last id.
    id: String,
    /// Number of heartbeats.
    heartbeats: usize,
}

impl Fixture {
    async fn start(routes: &str) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
        let sidestream = Sidestream::start(config(&nats, routes)).await;
        Self {
            sidestream,
            nats,
            jetstream,
        }
    }

    /// Publishes the events with these numbers together.
    async fn publish(&self, numbers: std::ops::RangeInclusive<u64>) {
        let last = *numbers.end();
        for number in numbers {
            let acknowledgement = self.jetstream.publish("orders.1", payload(number).into());
            let acknowledgement = acknowledgement.await.unwrap();
            if number == last {
                acknowledgement.await.unwrap();
            }
        }
    }

    async fn open(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        open(&self.sidestream.url(path), headers).await.unwrap()
    }
}

/// Sends GET over HTTP/1.1.
async fn open(url: &str, headers: &[(&str, &str)]) -> io::Result<Response> {
    let url = url.parse().unwrap();
    let transport = Connector::default().connect(&url).await?;
    let request = head("GET", &url, 1, headers);
    Response::exchange(transport, request.as_bytes(), false).await
}

/// JSON of about 300 bytes with a number.
fn payload(number: u64) -> String {
    let words = [
        "created",
        "paid",
        "packed",
        "shipped",
        "ünïcode",
        "000000000000",
    ];
    let word = words[(number % 6) as usize];
    format!(
        r#"{{"n":{number},"type":"order.{word}","customer":{{"id":{},"name":"Ada Lovelace"}},"items":[{{"sku":"SKU-{:06}","price":{}.{:02}}},{{"sku":"SKU-{:06}","price":19.90}}],"total":{},"currency":"EUR"}}"#,
        number * 7919 % 100_003,
        number * 104_729 % 1_000_000,
        number % 97,
        number % 89,
        number * 31 % 1_000_000,
        number * 13 % 1009,
    )
}

/// Decodes a whole response body, which must be complete.
fn decode(coding: &str, body: &[u8]) -> String {
    let mut plain = Vec::new();
    match coding {
        "gzip" => {
            let mut decoder = GzDecoder::new(body);
            decoder.read_to_end(&mut plain).unwrap();
            assert!(decoder.into_inner().is_empty(), "nothing follows the end");
        }
        "zstd" => {
            plain.resize(1 << 20, 0);
            let length = zstd_safe::decompress(&mut plain[..], body).unwrap();
            plain.truncate(length);
        }
        _ => panic!("{coding}"),
    }
    String::from_utf8(plain).unwrap()
}

impl Received {
    /// Reads Server-Sent Events, or lines of JSON.
    fn of(text: &str, last_event_id: &str) -> Self {
        if text.starts_with('{') {
            return Self::of_lines(text, last_event_id);
        }
        let mut parser = Parser::resuming(last_event_id);
        let mut received = Self::default();
        for event in parser.feed(text.as_bytes()) {
            let data: Value = serde_json::from_str(&event.data).unwrap();
            received.add(&event.name, &data);
        }
        received.id = parser.last_event_id().to_owned();
        received.heartbeats = parser.comments().len();
        received
    }

    fn of_lines(text: &str, last_event_id: &str) -> Self {
        let mut received = Self {
            id: last_event_id.to_owned(),
            ..Self::default()
        };
        for line in text.lines() {
            if line.is_empty() {
                received.heartbeats += 1;
                continue;
            }
            let line: Value = serde_json::from_str(line).unwrap();
            if let Some(id) = line["id"].as_str() {
                id.clone_into(&mut received.id);
            }
            match line["control"].as_str() {
                Some(name) => received.add(&format!("sidestream.{name}"), &line),
                None => received.add("message", &line["data"]),
            }
        }
        received
    }

    fn add(&mut self, name: &str, data: &Value) {
        let reason = || data["reason"].as_str().unwrap().to_owned();
        match name {
            "sidestream.gap" => self.gaps.push(reason()),
            "sidestream.close" => self.close = Some(reason()),
            "message" => {
                assert!(self.close.is_none(), "nothing follows the close event");
                self.numbers.push(data["n"].as_u64().unwrap());
            }
            _ => {}
        }
    }
}

/// Reads a response to its regular end.
async fn read_to_end(mut response: Response) -> Vec<u8> {
    let (body, end) = response.body().await;
    assert_eq!(end, End::Terminated);
    body
}
