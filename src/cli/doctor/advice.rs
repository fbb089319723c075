//! Lines of configuration to change, by fault and product.

use std::time::Duration;

use super::fault::Fault;
use super::product::Product;

/// Change of a proxy's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) line: &'static str,
    pub(super) docs: &'static str,
}

const SETTINGS: &str = "docs/proxies.md#settings";
const VERSIONS: &str = "docs/proxies.md#http2-and-http10";
const COMPRESSION: &str = "docs/proxies.md#compression";
const WHEN_NO_POD: &str = "docs/proxies.md#when-no-pod-answers";
const CLOUD: &str = "docs/kubernetes.md#load-balancers-and-ingress-controllers";

/// Returns the line of a product's configuration that causes a fault.
pub(super) fn advice(fault: Fault, product: Product) -> Option<Advice> {
    use Product as P;
    let at = |line, docs| Some(Advice { line, docs });
    match (fault, product) {
        (Fault::Buffering | Fault::BodyHeldBack, P::Nginx) => at(
            "`proxy_buffering off;`, or remove `proxy_ignore_headers X-Accel-Buffering;`",
            SETTINGS,
        ),
        (Fault::Buffering | Fault::BodyHeldBack, P::Haproxy) => at(
            "`option http-no-delay`, and no filter or Lua that waits for the body",
            SETTINGS,
        ),
        (Fault::Buffering | Fault::BodyHeldBack, P::Envoy) => at(
            "remove `envoy.filters.http.buffer` and filters that read the whole response",
            SETTINGS,
        ),
        (Fault::Buffering | Fault::BodyHeldBack, P::Caddy) => at(
            "`reverse_proxy`: remove `response_buffers`, and `flush_interval -1`",
            SETTINGS,
        ),
        (Fault::Buffering | Fault::BodyHeldBack, P::Traefik) => at(
            "remove the `buffering` middleware of the router",
            "docs/proxies.md#traefik",
        ),
        (Fault::Buffering | Fault::BodyHeldBack, P::Apache) => {
            at("`ProxyPass ... flushpackets=on`", SETTINGS)
        }
        (Fault::Compression, P::Nginx) => {
            at("remove `text/event-stream` from `gzip_types`", COMPRESSION)
        }
        (Fault::Compression, P::Haproxy) => at(
            "remove `text/event-stream` from `compression type`",
            COMPRESSION,
        ),
        (Fault::Compression, P::Caddy) => {
            at("exclude the event streams from `encode`", COMPRESSION)
        }
        (Fault::Compression, P::Traefik) => at(
            "`compress`: `excludedContentTypes: [text/event-stream]`",
            COMPRESSION,
        ),
        (Fault::Compression, P::Envoy) => at(
            "`envoy.filters.http.compressor`: no `text/event-stream` in `content_type`",
            COMPRESSION,
        ),
        (Fault::AgeLimit, P::Envoy) => at("`timeout: 0s` on the route (default: 15 s)", SETTINGS),
        (Fault::AgeLimit, P::Caddy) => at(
            "no `write` in `servers { timeouts }`, no `stream_timeout`",
            SETTINGS,
        ),
        (Fault::AgeLimit | Fault::IdleTimeout, P::Nginx) => at(
            "`proxy_read_timeout 60s;` and `send_timeout 60s;`: above the heartbeat",
            SETTINGS,
        ),
        (Fault::AgeLimit | Fault::IdleTimeout, P::Haproxy) => at(
            "`timeout server 60s` and `timeout client 60s`: above the heartbeat",
            SETTINGS,
        ),
        (Fault::AgeLimit | Fault::IdleTimeout, P::Traefik) => at(
            "`respondingTimeouts: { writeTimeout: 0s }` of the entry point",
            "docs/proxies.md#traefik",
        ),
        (Fault::AgeLimit | Fault::IdleTimeout, P::GoogleCloud) => {
            at("`timeoutSec` of the backend service: hours", CLOUD)
        }
        (Fault::IdleTimeout, P::Envoy) => at(
            "`stream_idle_timeout` and `idle_timeout` of the route: above the heartbeat",
            SETTINGS,
        ),
        (Fault::IdleTimeout, P::AwsLoadBalancer) => {
            at("`idle_timeout.timeout_seconds`: above the heartbeat", CLOUD)
        }
        (Fault::Http10, P::Nginx) => at("`proxy_http_version 1.1;`", VERSIONS),
        (Fault::LastEventId, P::Nginx) => at(
            "remove `proxy_set_header Last-Event-ID`, `proxy_pass_request_headers off;`",
            SETTINGS,
        ),
        (Fault::LastEventId, P::Haproxy) => {
            at("remove `http-request del-header Last-Event-ID`", SETTINGS)
        }
        (Fault::LastEventId, P::Envoy) => at(
            "remove `last-event-id` from `request_headers_to_remove`",
            SETTINGS,
        ),
        (Fault::LastEventId, P::Caddy) => at("remove `header_up -Last-Event-ID`", SETTINGS),
        (Fault::LastEventId, P::CloudFront) => at(
            "an origin request policy with the header `Last-Event-ID`",
            SETTINGS,
        ),
        (Fault::Goaway, P::Nginx) => at(
            "remove `keepalive` from the `upstream`: event streams gain nothing from it",
            VERSIONS,
        ),
        (Fault::Goaway, P::Haproxy) => at(
            "`retry-on conn-failure empty-response 503`; HTTP/1.1 to the pods (no `proto h2`)",
            "docs/proxies.md#retries",
        ),
        (Fault::Goaway, P::Traefik) => at("`http://` in place of `h2c://` to the pods", VERSIONS),
        (Fault::HeaderChanged, P::Nginx) => at(
            "remove `proxy_hide_header`, `add_header` and `expires` for the event streams",
            SETTINGS,
        ),
        (Fault::HeaderChanged, P::Haproxy) => at(
            "remove `http-response set-header` and `del-header` for the event streams",
            SETTINGS,
        ),
        (Fault::HeaderChanged, P::Envoy) => at(
            "remove `response_headers_to_add` and `response_headers_to_remove` of the route",
            SETTINGS,
        ),
        (Fault::HeaderChanged, P::Caddy) => at(
            "remove `header` and `header_down` for the event streams",
            SETTINGS,
        ),
        (Fault::ConnectionReuse, P::Nginx) => at("`keepalive_timeout 75s;` (not 0)", SETTINGS),
        (Fault::ConnectionReuse, P::Haproxy) => at(
            "`option http-keep-alive` in place of `option httpclose`",
            SETTINGS,
        ),
        (Fault::ConnectionReuse, P::Envoy) => {
            at("remove `max_requests_per_connection: 1`", SETTINGS)
        }
        (Fault::ConnectionReuse, P::Caddy) => at("`keepalive_interval` and `idle` not 0", SETTINGS),
        (Fault::Cors, P::Nginx) => at(
            "remove `add_header Access-Control-...`: the pod sends these fields",
            SETTINGS,
        ),
        (Fault::Cors, P::Haproxy) => at(
            "remove `http-response set-header Access-Control-...`",
            SETTINGS,
        ),
        (Fault::Cors, P::Envoy) => at("remove `envoy.filters.http.cors`", SETTINGS),
        (Fault::Cors, P::Caddy) => at("remove `header Access-Control-...`", SETTINGS),
        (Fault::Cors, P::Traefik) => at(
            "remove `accessControl...` from the `headers` middleware",
            "docs/proxies.md#traefik",
        ),
        (Fault::Window, P::Envoy) => at(
            "`http2_protocol_options: { initial_stream_window_size: 65535 }` of the cluster, or more",
            VERSIONS,
        ),
        (Fault::Window, P::Haproxy) => {
            at("`tune.h2.be.initial-window-size 65535`, or more", VERSIONS)
        }
        (Fault::StatusPage, P::Nginx) => at("`error_page 502 504 =200 ...`", WHEN_NO_POD),
        (Fault::StatusPage, P::Haproxy) => at("`errorfile 503 ...`", WHEN_NO_POD),
        (Fault::StatusPage, P::Envoy) => at("`local_reply_config`", WHEN_NO_POD),
        (Fault::StatusPage, P::Caddy) => at("`handle_errors 502 503 504`", WHEN_NO_POD),
        _ => None,
    }
}

/// Returns the change if no product is known, or none of the known ones has a line.
pub(super) fn general(fault: Fault) -> Advice {
    let (line, docs) = match fault {
        Fault::Buffering | Fault::BodyHeldBack => (
            "switch off response buffering for the event streams",
            SETTINGS,
        ),
        Fault::Compression => ("do not compress `text/event-stream`", COMPRESSION),
        Fault::AgeLimit => ("no timeout for the whole response, or hours", SETTINGS),
        Fault::IdleTimeout => (
            "an idle timeout above the heartbeat, or a shorter `heartbeat` on the route",
            SETTINGS,
        ),
        Fault::SilentDrop => (
            "a `heartbeat` on the route below the idle timeout of the NAT or firewall",
            "docs/configuration.md#routes",
        ),
        Fault::Http10 => ("HTTP/1.1 or HTTP/2 to the pods", VERSIONS),
        Fault::LastEventId => ("pass the request header `Last-Event-ID`", SETTINGS),
        Fault::Goaway => (
            "a new connection to the pod after GOAWAY or `Connection: close`",
            VERSIONS,
        ),
        Fault::HeaderChanged => (
            "pass the response headers of event streams unchanged",
            SETTINGS,
        ),
        Fault::ConnectionReuse => (
            "keep connections of clients open between requests",
            SETTINGS,
        ),
        Fault::Cors => (
            "one place for CORS: `cors` of the route, and no header of the proxy",
            "docs/configuration.md#routes",
        ),
        Fault::Window => (
            "an HTTP/2 window of 64 KiB or more towards the pods",
            VERSIONS,
        ),
        Fault::StatusPage => ("a response that keeps an EventSource alive", WHEN_NO_POD),
    };
    Advice { line, docs }
}

/// Returns the usual cause of a cut at this age.
pub(super) fn usual_cause(age: Duration) -> Option<&'static str> {
    crate::net::proxy_timeout::usual_cause(age)
}
