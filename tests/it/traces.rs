//! Traces by OTLP: spans of events and event streams, as a collector receives them.

mod collector;
mod failures;

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use testkit::certs::Authority;
use testkit::endpoint::{Endpoint, Reply};
use testkit::http1;
use testkit::nats::{Nats, create_stream, store_with};
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

use collector::{Behaviour, Collector, attribute};

const ROUTES: &str = r#"
routes:
  - path: /orders/{customer}
    sources: [{ stream: ORDERS, subjects: ["orders.{customer}.>"] }]
    client: "{query.user}"
  - path: /news
    sources: [{ subjects: ["news.>"] }]
drain: { accept_for: 0s, spread: 0s, timeout: 5s }
"#;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// Configuration with a collector.
fn traced(nats: &Nats, collector: &str, sample: f64) -> String {
    let tracing = format!("tracing: {{ otlp: '{collector}', sample: {sample} }}\n");
    config(nats, &(ROUTES.to_owned() + &tracing))
}

/// Headers of a publisher with this context.
fn context(trace_id: &str, flags: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", format!("00-{trace_id}-{SPAN}-{flags}"));
    headers.insert("tracestate", "vendor=value");
    headers
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Duration of a span.
fn duration(span: &Span) -> Duration {
    Duration::from_nanos(span.end_time_unix_nano - span.start_time_unix_nano)
}

/// Everything in a span that is text.
fn texts(span: &Span) -> String {
    format!("{span:?}")
}

#[tokio::test]
async fn span_of_an_event_has_its_fan_out_and_links_the_span_of_its_publisher() {
    let (nats, collector) = (Nats::start().await, Collector::start().await);
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let sidestream = Sidestream::builder(traced(&nats, &collector.url(), 1.0))
        .env("POD_NAME", "shop-7")
        .env("POD_NAMESPACE", "retail")
        .env(
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test,service.name=no",
        )
        .env("OTEL_SERVICE_NAME", "shop-events")
        .env(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Bearer%20secret",
        )
        .start()
        .await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = SseClient::get(sidestream.url("/orders/alice?user=alice"))
            .connect()
            .await;
        client.positioned().await;
        clients.push(client);
    }
    let payload = "x".repeat(321);
    let headers = context(TRACE, "01");
    let sequence = store_with(&jetstream, "orders.alice.new", headers, payload).await;
    for client in &mut clients {
        client.next().await;
    }
    let span = collector.until("deliver", 1).await.remove(0);
    assert_eq!(span.kind(), SpanKind::Consumer);
    assert!(span.parent_span_id.is_empty());
    assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
    assert_ne!(hex(&span.trace_id), TRACE, "a trace of its own");
    let [link] = &span.links[..] else {
        panic!("{span:?}");
    };
    assert_eq!(
        (hex(&link.trace_id), hex(&link.span_id)),
        (TRACE.into(), SPAN.into())
    );
    assert_eq!(link.trace_state, "vendor=value");
    let attribute = |key| attribute(&span, key).unwrap_or_else(|| panic!("{key}: {span:?}"));
    assert_eq!(attribute("sidestream.fan_out"), "5");
    assert_eq!(attribute("sidestream.source"), "ORDERS");
    assert_eq!(attribute("sidestream.sequence"), sequence.to_string());
    assert_eq!(attribute("messaging.message.body.size"), "321");
    assert_eq!(attribute("messaging.system"), "nats");
    assert!(attribute("sidestream.lag").parse::<f64>().unwrap() < 10.0);
    assert!(
        (Duration::from_nanos(1)..DEADLINE).contains(&duration(&span)),
        "{span:?}"
    );
    assert!(!texts(&span).contains("alice"), "no subject: {span:?}");
    for (key, value) in [
        ("service.name", "shop-events"),
        ("service.instance.id", "shop-7"),
        ("k8s.pod.name", "shop-7"),
        ("k8s.namespace.name", "retail"),
        ("deployment.environment.name", "test"),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ] {
        assert_eq!(collector.resource(key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(
        collector.header("authorization").as_deref(),
        Some("Bearer secret")
    );
    sidestream
        .until_metric(
            "sidestream_trace_spans_total",
            &[("result", "exported")],
            |count| count >= 1.0,
        )
        .await;
}

#[tokio::test]
async fn core_event_without_a_context_has_a_span_without_link_and_each_event_of_a_write_is_counted()
{
    let (nats, collector) = (Nats::start().await, Collector::start().await);
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let sidestream = Sidestream::start(traced(&nats, &collector.url(), 1.0)).await;
    let mut clients = Vec::new();
    for framing in [
        "text/event-stream",
        "text/event-stream",
        "application/x-ndjson",
    ] {
        let client = SseClient::get(sidestream.url("/news")).header("accept", framing);
        clients.push(client.connect().await);
    }
    let open = [("route", "/news")];
    sidestream
        .until_metric("sidestream_streams", &open, |open| open >= 2.0)
        .await;
    clients[0].positioned().await;
    clients[1].positioned().await;
    let client = nats.client().await;
    for number in 0..40 {
        client
            .publish("news.a", number.to_string().into())
            .await
            .unwrap();
    }
    client.flush().await.unwrap();
    let spans = collector.until("deliver", 40).await;
    for span in &spans {
        assert!(span.links.is_empty());
        assert_eq!(
            attribute(span, "sidestream.fan_out").as_deref(),
            Some("3"),
            "{span:?}"
        );
        assert_eq!(
            attribute(span, "sidestream.source").as_deref(),
            Some("core")
        );
        assert_eq!(attribute(span, "sidestream.sequence"), None);
    }
    assert_eq!(spans.len(), 40);
}

#[tokio::test]
async fn span_of_an_event_stream_continues_the_trace_of_its_request_and_names_no_client() {
    let (nats, collector) = (Nats::start().await, Collector::start().await);
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let mut sidestream = Sidestream::start(traced(&nats, &collector.url(), 1.0)).await;
    let url = sidestream.url("/orders/alice?user=alice");
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let mut client = SseClient::get(&url)
        .header("traceparent", &parent)
        .connect()
        .await;
    client.positioned().await;
    store_with(&jetstream, "orders.alice.new", context(TRACE, "00"), "x").await;
    client.next().await;
    drop(client);
    let span = collector.until("event_stream", 1).await.remove(0);
    assert_eq!(span.kind(), SpanKind::Server);
    assert_eq!(
        (hex(&span.trace_id), hex(&span.parent_span_id)),
        (TRACE.into(), SPAN.into())
    );
    for (key, value) in [
        ("http.route", "/orders/{customer}"),
        ("network.protocol.version", "1.1"),
        ("url.scheme", "http"),
        ("sidestream.framing", "sse"),
        ("sidestream.resumed", "false"),
        ("sidestream.close_reason", "client"),
        ("sidestream.events", "1"),
        ("sidestream.gaps", "0"),
    ] {
        assert_eq!(
            attribute(&span, key).as_deref(),
            Some(value),
            "{key}: {span:?}"
        );
    }
    for personal in ["alice", "127.0.0.1"] {
        assert!(!texts(&span).contains(personal), "{personal}: {span:?}");
    }

    // Spans that end with the process are exported before it exits.
    let mut client = SseClient::get(&url).connect().await;
    client.positioned().await;
    sidestream.terminate();
    assert_eq!(sidestream.wait_exit(DEADLINE).await, 0);
    let spans = collector.named("event_stream");
    let [_, drained] = &spans[..] else {
        panic!("{spans:?}");
    };
    assert_eq!(
        attribute(drained, "sidestream.close_reason").as_deref(),
        Some("drain")
    );
    assert!(
        drained
            .status
            .as_ref()
            .is_none_or(|status| status.code() == StatusCode::Unset)
    );
}

#[tokio::test]
async fn ratio_decides_by_the_trace_id_and_the_flag_of_the_publisher() {
    let (nats, collector) = (Nats::start().await, Collector::start().await);
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let sidestream = Sidestream::start(traced(&nats, &collector.url(), 0.25)).await;
    let mut client = SseClient::get(sidestream.url("/orders/a?user=u"))
        .connect()
        .await;
    client.positioned().await;
    // A quarter of the low half of the trace ids.
    let trace = |first: char, number: usize| format!("{number:016x}{first}000000000000001");
    let cases = [
        ('0', "01", true),
        ('3', "01", true),
        ('4', "01", false),
        ('f', "01", false),
        ('0', "00", false),
    ];
    for (number, (first, flags, _)) in cases.iter().enumerate() {
        let headers = context(&trace(*first, number + 1), flags);
        store_with(&jetstream, "orders.a.b", headers, "x").await;
    }
    client.take(cases.len()).await;
    // The span of an event that is surely sampled, after all others.
    store_with(
        &jetstream,
        "orders.a.b",
        context(&trace('0', 99), "01"),
        "x",
    )
    .await;
    let spans = collector.until("deliver", 3).await;
    let mut found: Vec<_> = spans
        .iter()
        .map(|span| hex(&span.links[0].trace_id))
        .collect();
    found.sort();
    assert_eq!(found, [trace('0', 1), trace('3', 2), trace('0', 99)]);
}

#[tokio::test]
async fn nothing_is_exported_with_a_ratio_of_zero_and_a_reload_turns_traces_on_and_off() {
    let (nats, collector) = (Nats::start().await, Collector::start().await);
    let other = Collector::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let zero = traced(&nats, &collector.url(), 0.0);
    let sidestream = Sidestream::start(zero).await;
    let mut client = SseClient::get(sidestream.url("/orders/a?user=u"))
        .connect()
        .await;
    client.positioned().await;
    let publish = async || {
        store_with(&jetstream, "orders.a.b", context(TRACE, "01"), "x").await;
    };
    publish().await;
    client.next().await;
    let reload = async |text: &str| {
        let before = sidestream.log().len();
        sidestream.rewrite_config(text);
        eventually(DEADLINE, "the configuration is applied", || async {
            let applied = |line: &serde_json::Value| line["message"] == "configuration applied";
            sidestream.log().iter().skip(before).any(applied)
        })
        .await;
    };
    reload(&traced(&nats, &collector.url(), 1.0)).await;
    publish().await;
    client.next().await;
    assert_eq!(collector.until("deliver", 1).await.len(), 1);
    reload(&traced(&nats, &other.url(), 1.0)).await;
    publish().await;
    client.next().await;
    assert_eq!(other.until("deliver", 1).await.len(), 1);
    reload(&config(&nats, ROUTES)).await;
    publish().await;
    client.next().await;
    let exported = [("result", "exported")];
    assert_eq!(
        sidestream
            .metric("sidestream_trace_spans_total", &exported)
            .await,
        2.0
    );
    assert_eq!((collector.spans().len(), other.spans().len()), (1, 1));
    let (_, shown) = sidestream.admin("/config").await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["reload"]["needs_restart"], serde_json::json!([]));
}

#[tokio::test]
async fn exemplar_of_a_delivery_names_the_trace_of_its_event() {
    let (nats, collector) = (Nats::start().await, Collector::start().await);
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let sidestream = Sidestream::start(traced(&nats, &collector.url(), 1.0)).await;
    let mut client = SseClient::get(sidestream.url("/orders/a?user=u"))
        .connect()
        .await;
    client.positioned().await;
    store_with(&jetstream, "orders.a.b", HeaderMap::new(), "x").await;
    client.next().await;
    let span = collector.until("deliver", 1).await.remove(0);
    let accept = [(
        "accept",
        "application/openmetrics-text; version=1.0.0, text/plain;q=0.5",
    )];
    let url = sidestream.url_admin("/metrics");
    let answer = http1::request("GET", &url, &accept).await.unwrap();
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type").as_deref(), Some(content_type));
    let text = answer.body;
    assert!(text.ends_with("# EOF\n"));
    let ids = format!(
        "# {{trace_id=\"{}\",span_id=\"{}\"}} ",
        hex(&span.trace_id),
        hex(&span.span_id)
    );
    let line = text.lines().find(|line| line.contains(&ids));
    let line = line.unwrap_or_else(|| panic!("{ids}\n{text}"));
    assert!(line.starts_with("sidestream_delivery_seconds_bucket{route=\"/orders/{customer}\""));
    let (_, plain) = sidestream.admin("/metrics").await;
    assert!(!plain.contains("trace_id") && !plain.contains("# EOF"));
}

#[tokio::test]
async fn collector_with_tls_is_verified_by_the_authorities_of_the_system() {
    let (nats, authority) = (Nats::start().await, Authority::new());
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let identity = authority.server("collector");
    let collector = Collector::start_with(Some(&identity)).await;
    let url = collector.url();
    let trusting = Sidestream::builder(traced(&nats, &url, 1.0))
        .env("SSL_CERT_FILE", authority.file().to_str().unwrap())
        .start()
        .await;
    let client = SseClient::get(trusting.url("/news")).connect().await;
    drop(client);
    collector.until("event_stream", 1).await;
    let other = Authority::new();
    let wary = Sidestream::builder(traced(&nats, &url, 1.0))
        .env("SSL_CERT_FILE", other.file().to_str().unwrap())
        .start()
        .await;
    drop(SseClient::get(wary.url("/news")).connect().await);
    let failed = [("result", "failed")];
    wary.until_metric("sidestream_trace_spans_total", &failed, |count| {
        count >= 1.0
    })
    .await;
    assert_eq!(collector.named("event_stream").len(), 1);
}

#[tokio::test]
async fn application_receives_the_trace_context_of_a_passed_request() {
    let (nats, endpoint) = (
        Nats::start().await,
        Endpoint::start(|_| Reply::status(200)).await,
    );
    create_stream(&nats.jetstream().await, "ORDERS", &["orders.>"]).await;
    let application = format!(
        "application: {{ address: 'http://{}' }}\n",
        endpoint.address()
    );
    let text = config(&nats, &(ROUTES.to_owned() + &application));
    let sidestream = Sidestream::start(text).await;
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let context = [
        ("traceparent", parent.as_str()),
        ("tracestate", "vendor=value"),
    ];
    let url = sidestream.url("/page");
    let answer = http1::request("GET", &url, &context).await.unwrap();
    assert_eq!(answer.status, 200);
    let calls = endpoint.calls();
    let passed = calls.iter().find(|call| call.target == "/page").unwrap();
    for (name, value) in context {
        assert_eq!(passed.all(name), [value]);
    }
}
