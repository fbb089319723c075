//! Bodies of requests and responses, in both directions and protocols.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::{HeaderMap, Request};
use sha2::{Digest as _, Sha256};
use testkit::application::Application;
use testkit::http1::End;
use testkit::http1::{Response, head};
use testkit::transport::Connector;

use super::{Body, Fixture, VERSIONS, Version, json};

/// Body of many pieces without a known length.
pub(super) fn pieces(piece: &Bytes, count: usize) -> Body {
    let piece = piece.clone();
    let frames = (0..count).map(move |_| Ok::<_, Infallible>(Frame::data(piece.clone())));
    StreamBody::new(stream::iter(frames)).boxed()
}

#[tokio::test]
async fn methods_paths_and_bodies_reach_the_application_as_they_were_sent() {
    let fixture = Fixture::start().await;
    for version in VERSIONS {
        for (method, body) in [
            ("GET", ""),
            ("POST", "a\nb\n"),
            ("PUT", "x"),
            ("DELETE", ""),
        ] {
            let request = Request::builder()
                .method(method)
                .uri(fixture.sidestream.url("/echo/%2e?a=b&a=%20"))
                .body(Full::from(body).boxed())
                .unwrap();
            let answer = fixture.send(version, request).await;
            assert_eq!(answer.status(), 200, "{version:?} {method}");
            let seen = json(answer.body());
            assert_eq!(seen["method"], method, "{version:?}");
            assert_eq!(seen["url"], "/echo/%2e?a=b&a=%20", "{version:?}");
            assert_eq!(seen["bytes"], body.len(), "{version:?}");
        }
    }
}

#[tokio::test]
async fn large_bodies_pass_in_constant_memory() {
    const PIECES: usize = 1024;
    let fixture = Fixture::start().await;
    let piece = Bytes::from(vec![b'\n'; 64 * 1024]);
    let hash = (0..PIECES).fold(Sha256::new(), |hash, _| hash.chain_update(&piece));
    let hash = format!("{:x}", hash.finalize());
    let before = fixture.sidestream.resident_bytes_peak();
    for version in VERSIONS {
        let request = Request::post(fixture.sidestream.url("/echo"))
            .body(pieces(&piece, PIECES))
            .unwrap();
        let seen = json(fixture.send(version, request).await.body());
        assert_eq!(seen["bytes"], PIECES * piece.len(), "{version:?}");
        assert_eq!(seen["hash"], hash, "{version:?}");
        let request = Request::get(fixture.sidestream.url("/large/67108864"))
            .body(Empty::new().boxed())
            .unwrap();
        let answer = fixture.send(version, request).await;
        assert_eq!(answer.body().len(), 67_108_864, "{version:?}");
    }
    let grown = fixture.sidestream.resident_bytes_peak() - before;
    assert!(grown < 16 << 20, "{grown} bytes for bodies of 64 MiB");
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let fixture = Fixture::start().await;
    for version in VERSIONS {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", "1".parse().unwrap());
        let frames = [Frame::data(Bytes::from("a")), Frame::trailers(trailers)];
        let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
        let request = Request::post(fixture.sidestream.url("/echo"))
            .header("trailer", "x-end")
            .body(body.boxed())
            .unwrap();
        let seen = json(fixture.send(version, request).await.body());
        assert_eq!(seen["trailers"]["x-end"], "1", "{version:?}");
    }
    let mut client = testkit::h2::H2Client::connect(fixture.sidestream.url("/")).await;
    let mut answer = client
        .request("GET", "/trailers", &[("te", "trailers")])
        .await;
    assert_eq!(answer.body().await, "part");
}

#[tokio::test]
async fn responses_without_content_end_and_keep_the_connection() {
    let fixture = Fixture::start().await;
    let url = fixture.sidestream.url("/status/204");
    let url: hyper::Uri = url.parse().unwrap();
    let transport = Connector::default().connect(&url).await.unwrap();
    let first = head("GET", &url, 1, &[]);
    let mut answer = Response::exchange(transport, first.as_bytes(), false)
        .await
        .unwrap();
    for (status, path) in [(204, "/status/304"), (304, "/status/200"), (200, "/x")] {
        assert_eq!(answer.status, status);
        let (body, end) = answer.body().await;
        assert!(body.is_empty(), "{status}");
        assert_eq!(end, End::Terminated, "{status}");
        let next = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        answer = answer.again(next.as_bytes()).await.unwrap();
    }
    assert_eq!(answer.status, 200);
    let (body, _) = answer.body().await;
    assert_eq!(body, b"/x\n");
}

#[tokio::test]
async fn head_has_the_fields_of_the_response_and_no_content() {
    let fixture = Fixture::start().await;
    let url = fixture.sidestream.url("/page");
    let answer = testkit::http1::request("HEAD", &url, &[]).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, "");
    let mut client = testkit::h2::H2Client::connect(fixture.sidestream.url("/")).await;
    let mut answer = client.request("HEAD", "/page", &[]).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.body().await, "");
}

#[tokio::test]
async fn early_response_reaches_a_client_that_is_still_sending() {
    let fixture = Fixture::start().await;
    let request = Request::post(fixture.sidestream.url("/early"))
        .body(pieces(&Bytes::from(vec![0; 16 * 1024]), 64))
        .unwrap();
    let answer = fixture.send(Version::Http2, request).await;
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.body(), "too large");
    let head = "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
    let answer = fixture.raw(head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn application_over_http2_receives_requests_of_both_protocols() {
    let mut application = Application::down().http2();
    application.run().await;
    let fixture = Fixture::with(application, "", "").await;
    for version in VERSIONS {
        let request = Request::post(fixture.sidestream.url("/echo"))
            .body(pieces(&Bytes::from(vec![b'x'; 16 * 1024]), 64))
            .unwrap();
        let answer = fixture.send(version, request).await;
        assert_eq!(answer.status(), 200, "{version:?}");
        assert_eq!(json(answer.body())["bytes"], 1 << 20, "{version:?}");
        let request = Request::get(fixture.sidestream.url("/large/1048576"))
            .body(Empty::new().boxed())
            .unwrap();
        let answer = fixture.send(version, request).await;
        assert_eq!(answer.body().len(), 1 << 20, "{version:?}");
    }
    let answer = fixture.get("/status/404", &[]).await;
    assert_eq!(answer.status, 404);
}
