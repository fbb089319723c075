//! Page of the demo: serves a few embedded files and the address of the sidecar.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{IntCounterVec, Opts};
use serde_json::json;
use tokio::net::TcpStream;

use super::scenario::EVENT_NAMES;
use crate::net::Listener;
use crate::net::slots::{self, Bounds, Slot, Slots};

/// Serves the page on `listener` until it is cancelled. `sidecar` is the sidecar's client port.
///
/// # Errors
/// If the runtime cannot register the listener.
pub(super) async fn serve(listener: std::net::TcpListener, sidecar: u16) -> io::Result<Infallible> {
    let listener = Listener::new(listener)?;
    // Required by `Slots`; the demo exports no metrics.
    let rejections = IntCounterVec::new(Opts::new("rejections", "of the demo"), &["port", "code"]);
    let slots = Slots::new("page", BOUNDS, &rejections.map_err(io::Error::other)?);
    Ok(slots::serve(listener, &slots, move |socket, slot| {
        converse(socket, slot, sidecar)
    })
    .await)
}

async fn converse(socket: TcpStream, slot: Slot, sidecar: u16) {
    let service =
        service_fn(|request| async move { Ok::<_, Infallible>(answer(&request, sidecar)) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        () = slot.evicted() => {}
        // A browser that goes away is no news.
        _ = connection => {}
    }
}

fn answer(request: &Request<Incoming>, sidecar: u16) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return respond(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain; charset=utf-8",
            "GET or HEAD\n",
        );
    }
    let path = request.uri().path();
    if path == "/config.json" {
        return respond(StatusCode::OK, "application/json", config(request, sidecar));
    }
    match FILES.iter().find(|(name, ..)| *name == path) {
        Some((_, media_type, text)) => respond(StatusCode::OK, media_type, *text),
        None => respond(
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "not found\n",
        ),
    }
}

/// URL of the sidecar for the browser: the host name of this page, which may be a remote one.
fn config(request: &Request<Incoming>, sidecar: u16) -> String {
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("127.0.0.1");
    let host = host.parse::<hyper::http::uri::Authority>();
    let host = host
        .as_ref()
        .map_or("127.0.0.1", |authority| authority.host());
    json!({
        "sidecar": format!("http://{host}:{sidecar}"),
        "route": "/events",
        "subject": "demo.>",
        "subjects": ["demo.>", "demo.orders.>", "demo.telemetry.>", "demo.alerts"],
        "events": EVENT_NAMES,
    })
    .to_string()
}

fn respond(
    status: StatusCode,
    media_type: &'static str,
    text: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-type", media_type),
        ("cache-control", "no-cache"),
        ("content-security-policy", CONTENT_SECURITY_POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Nothing from elsewhere but the events, whose origin depends on where the page was opened.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                                       connect-src 'self' http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// 64: a page for a person, not a service. An idle connection is closed for a newer one.
const BOUNDS: Bounds = Bounds {
    silent_max: 64,
    connected_max: 64,
    busy_max: 64,
    first_byte_max: Duration::from_secs(5),
};

/// Path, media type, text.
const FILES: [(&str, &str, &str); 3] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("../../../web/index.html"),
    ),
    (
        "/app.js",
        "text/javascript; charset=utf-8",
        include_str!("../../../web/app.js"),
    ),
    (
        "/style.css",
        "text/css; charset=utf-8",
        include_str!("../../../web/style.css"),
    ),
];

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http_body_util::{BodyExt, Empty};
    use hyper::client::conn::http1 as client;

    use super::*;
    use crate::net::listener::{self, Sharing};

    async fn get(address: SocketAddr, path: &str, host: &str) -> (StatusCode, String) {
        let socket = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = client::handshake(TokioIo::new(socket)).await.unwrap();
        let driver = tokio::spawn(connection);
        let request = Request::get(path)
            .header(HOST, host)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn served() -> (SocketAddr, tokio::task::JoinHandle<io::Result<Infallible>>) {
        let listener = listener::bind("127.0.0.1:0".parse().unwrap(), Sharing::Alone).unwrap();
        (
            listener.local_addr().unwrap(),
            tokio::spawn(serve(listener, 8080)),
        )
    }

    #[tokio::test]
    async fn the_page_and_all_it_names_are_served() {
        let (address, server) = served().await;
        let (status, html) = get(address, "/", "localhost:8081").await;
        assert_eq!(status, StatusCode::OK);
        for name in ["app.js", "style.css"] {
            assert!(html.contains(name), "the page names {name}");
            assert_eq!(
                get(address, &format!("/{name}"), "localhost").await.0,
                StatusCode::OK
            );
        }
        assert_eq!(
            get(address, "/elsewhere", "localhost").await.0,
            StatusCode::NOT_FOUND
        );
        server.abort();
    }

    #[tokio::test]
    async fn the_page_is_served_while_every_slot_is_held_by_idle_connections() {
        let (address, server) = served().await;
        let idle: Vec<_> = (0..200)
            .map(|_| std::net::TcpStream::connect(address).unwrap())
            .collect();
        let page = tokio::time::timeout(Duration::from_secs(10), get(address, "/", "localhost"));
        assert_eq!(page.await.expect("it is answered").0, StatusCode::OK);
        drop(idle);
        server.abort();
    }

    #[tokio::test]
    async fn the_page_uses_the_sidecar_under_the_host_name_of_its_own_url() {
        let (address, server) = served().await;
        for (host, sidecar) in [
            ("localhost:8081", "http://localhost:8080"),
            ("[::1]:8081", "http://[::1]:8080"),
            ("lab.example", "http://lab.example:8080"),
        ] {
            let (_, text) = get(address, "/config.json", host).await;
            let config: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(config["sidecar"], sidecar);
        }
        server.abort();
    }
}
