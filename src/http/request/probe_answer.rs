//! Answers to probes of `sidestream doctor`, by which it finds faults of the proxies in front.
//!
//! Only a route with `doctor: true` answers them, to clients that it authenticates, with its CORS
//! headers. The report has no value of a credential, a cookie or an address: it has what the pod
//! sees of the connection, and of the request header fields those that [`SHOWN`] and [`NAMED`] list.
//! Number, time and bytes of probes are bounded; a drain ends them.

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::answer::{Answer, event_stream_head, json};
use super::cors;
use super::probe::{PROBE, Plan, Probe};
use super::rejection_code::RejectionCode;
use super::request::Caller;
use crate::encoding::Framing;
use crate::http::context::Context;
use crate::http::route::Route;
use crate::presence::Protocol;

/// Position that the doctor sends, so that the report can say whether it arrives.
const POSITION: &[u8] = b"sidestream-doctor";

/// Fields of the request whose values the report has: they name proxies and their timeouts.
const SHOWN: [&str; 3] = ["via", "cdn-loop", "x-envoy-expected-rq-timeout-ms"];

/// Fields of the request that the report names. Their values can be addresses.
const NAMED: [&str; 16] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
    "x-request-id",
    "x-envoy-external-address",
    "x-envoy-internal",
    "x-amzn-trace-id",
    "x-amz-cf-id",
    "x-cloud-trace-context",
    "x-azure-ref",
    "cf-ray",
    "cf-connecting-ip",
    "fly-client-ip",
];

/// 256 bytes of a value: a `Via` of several proxies.
const VALUE_MAX: usize = 256;

/// Returns whether the request is a probe and the route answers it.
pub(super) fn is_probe(route: &Route, headers: &HeaderMap) -> bool {
    route.config.doctor && headers.contains_key(PROBE)
}

/// Answers a probe.
///
/// # Errors
/// The pod answers too many others.
pub(super) fn answer_probe(
    context: &Arc<Context>,
    route: &Route,
    caller: &Caller,
    headers: &HeaderMap,
) -> Result<Answer, RejectionCode> {
    let Ok(permit) = context.probes.clone().try_acquire_owned() else {
        return Err(RejectionCode::TooManyProbes);
    };
    let plan = Plan::parse(headers.get(PROBE).map_or(b"", HeaderValue::as_bytes));
    let protocol = caller.peer.protocol;
    let mut head = match plan {
        Plan::Report { .. } => json(StatusCode::OK, Bytes::new()).map(drop),
        Plan::Lines(_) => {
            let mut head = Response::new(());
            let close = route.config.close;
            event_stream_head(head.headers_mut(), Framing::Sse, protocol, close);
            head
        }
    };
    let is_last = matches!(
        plan,
        Plan::Report {
            ends_connection: true
        }
    );
    if is_last && protocol != Protocol::H2 {
        let close = HeaderValue::from_static("close");
        head.headers_mut().insert(CONNECTION, close);
    }
    head.headers_mut()
        .insert(PROBE, HeaderValue::from_static("1"));
    let probe = Probe {
        plan,
        report: report(route, caller, headers),
        draining: context.drain_flag(),
        permit,
    };
    Ok(Answer::Probe(head, Box::new(probe)))
}

/// Returns the report about a request, without its HTTP/2 window.
fn report(route: &Route, caller: &Caller, headers: &HeaderMap) -> Map<String, Value> {
    let protocol = match caller.peer.protocol {
        Protocol::Http10 => "HTTP/1.0",
        Protocol::Http11 => "HTTP/1.1",
        Protocol::H2 => "HTTP/2",
    };
    let position = headers.get("last-event-id").map(HeaderValue::as_bytes);
    let mut report = Map::new();
    for (name, value) in [
        ("protocol", json!(protocol)),
        (
            "heartbeat_ms",
            json!(route.config.heartbeat.as_millis() as u64),
        ),
        ("last_event_id", json!(position == Some(POSITION))),
        ("origin", json!(headers.contains_key(ORIGIN))),
        ("head", stream_head(route, caller.peer.protocol, headers)),
        ("request", request_fields(headers)),
    ] {
        report.insert(name.into(), value);
    }
    report
}

/// Returns the header fields that the pod sends with an event stream on this route.
fn stream_head(route: &Route, protocol: Protocol, request: &HeaderMap) -> Value {
    let mut head = HeaderMap::new();
    event_stream_head(&mut head, Framing::Sse, protocol, route.config.close);
    head.remove(CONNECTION);
    route.add_vary(&mut head);
    cors::answer(&route.config.cors, request, &mut head);
    fields(head.iter())
}

fn request_fields(headers: &HeaderMap) -> Value {
    let shown = |name: &HeaderName| SHOWN.contains(&name.as_str());
    let named = NAMED.into_iter().filter(|name| headers.contains_key(*name));
    json!({
        "fields": fields(headers.iter().filter(|(name, _)| shown(name))),
        "names": named.collect::<Vec<_>>(),
    })
}

/// Returns header fields as pairs of name and value.
fn fields<'h>(fields: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>) -> Value {
    fields
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            let end = value.floor_char_boundary(VALUE_MAX);
            json!([name.as_str(), value[..end]])
        })
        .collect()
}
