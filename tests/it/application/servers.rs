//! The same requests with every HTTP server: Node, uvicorn with both of its parsers, Go.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::{HeaderMap, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use sha2::{Digest as _, Sha256};
use testkit::application::{Application, Server};
use testkit::h2::H2Client;
use testkit::http1::{Response, head};
use testkit::transport::Connector;
use testkit::wait::{DEADLINE, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::bodies::pieces;
use super::{Body, Fixture, VERSIONS, Version, json};

#[tokio::test]
async fn requests_pass_to_the_server_of_node() {
    conforms(Application::of(Server::Node)).await;
}

#[tokio::test]
async fn requests_pass_to_uvicorn_with_h11() {
    conforms(Application::of(Server::UvicornH11)).await;
}

#[tokio::test]
async fn requests_pass_to_uvicorn_with_httptools() {
    conforms(Application::of(Server::UvicornHttptools)).await;
}

#[tokio::test]
async fn requests_pass_to_the_server_of_go() {
    conforms(Application::of(Server::Go)).await;
}

#[tokio::test]
async fn requests_pass_to_the_server_of_go_over_http2() {
    conforms(Application::of(Server::Go).http2()).await;
}

async fn conforms(mut application: Application) {
    application.run().await;
    let server = application.server();
    let fixture = Fixture::with(application, "", "").await;
    for version in VERSIONS {
        uploads_arrive_whole(&fixture, version).await;
        downloads_arrive_whole(&fixture, version).await;
        early_responses_arrive(&fixture, version).await;
        if server == Server::Go || server == Server::Node {
            trailers_pass(&fixture, version).await;
        }
        if server == Server::Go {
            ranges_pass(&fixture, version).await;
        }
    }
    responses_without_content_keep_the_connection(&fixture).await;
    expectations_are_answered(&fixture).await;
    clients_of_http10_receive_the_end_of_the_connection(&fixture).await;
    application_sees_that_clients_leave(&fixture).await;
    assert_eq!(fixture.count("application_invalid").await, 0.0);
}

async fn uploads_arrive_whole(fixture: &Fixture, version: Version) {
    const PIECES: usize = 64;
    let piece = Bytes::from(vec![b'\n'; 16 * 1024]);
    let whole = piece.repeat(PIECES);
    let hash = format!("{:x}", Sha256::digest(&whole));
    for body in [
        pieces(&piece, PIECES),
        Full::from(whole.clone()).boxed(),
        Empty::new().boxed(),
    ] {
        let expected = hyper::body::Body::size_hint(&body).exact();
        let request = Request::put(fixture.sidestream.url("/echo?a=%20"))
            .body(body)
            .unwrap();
        let answer = fixture.send(version, request).await;
        assert_eq!(answer.status(), 200, "{version:?}");
        let seen = json(answer.body());
        assert_eq!(seen["method"], "PUT", "{version:?}");
        assert_eq!(seen["url"], "/echo?a=%20", "{version:?}");
        let bytes = expected.unwrap_or(whole.len().try_into().unwrap());
        assert_eq!(seen["bytes"], bytes, "{version:?}");
        if bytes > 0 {
            assert_eq!(seen["hash"], hash, "{version:?}");
        }
    }
}

async fn downloads_arrive_whole(fixture: &Fixture, version: Version) {
    for (method, path, bytes) in [
        ("GET", "/large/1000000", 1_000_000),
        ("GET", "/page", 6),
        ("HEAD", "/page", 0),
        ("OPTIONS", "/page", 6),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(fixture.sidestream.url(path))
            .body(Empty::new().boxed())
            .unwrap();
        let answer = fixture.send(version, request).await;
        assert_eq!(answer.status(), 200, "{version:?} {method} {path}");
        assert_eq!(answer.body().len(), bytes, "{version:?} {method} {path}");
        if method == "HEAD" && fixture.application.server() == Server::UvicornH11 {
            assert_eq!(answer.headers()["content-length"], "6", "{version:?}");
        }
    }
}

/// Sends bodies that the server does not read: it may answer, close its connection, or both.
async fn early_responses_arrive(fixture: &Fixture, version: Version) {
    for status in [401, 413, 417] {
        let path = format!("/early/{status}");
        for count in [1, 256] {
            let answer = match version {
                Version::Http1 => early_over_http1(fixture, &path, count).await,
                Version::Http2 => {
                    let body = pieces(&Bytes::from(vec![0; 16 * 1024]), count);
                    let request = Request::post(fixture.sidestream.url(&path));
                    let answer = fixture.send(version, request.body(body).unwrap()).await;
                    let body = String::from_utf8_lossy(answer.body());
                    format!("HTTP/1.1 {} {body}", answer.status().as_u16())
                }
            };
            let expected = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&expected), "{count}: {answer}");
            assert!(answer.contains("too large"), "{count}: {answer}");
        }
    }
}

/// Writes a chunked body until it is complete or the connection is closed, and returns all that is
/// answered.
async fn early_over_http1(fixture: &Fixture, path: &str, count: usize) -> String {
    let socket = TcpStream::connect(fixture.sidestream.address()).await;
    let (mut reader, mut writer) = socket.unwrap().into_split();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let sending = async {
        writer.write_all(head.as_bytes()).await?;
        let chunk = [b"4000\r\n", &[b'x'; 16 * 1024][..], b"\r\n"].concat();
        for _ in 0..count {
            writer.write_all(&chunk).await?;
        }
        writer.write_all(b"0\r\n\r\n").await
    };
    let mut answer = Vec::new();
    let receiving = reader.read_to_end(&mut answer);
    let both = async { tokio::join!(sending, receiving) };
    // A server that does not read the body closes the connection.
    let (_, _) = within(DEADLINE, "the request is answered", both).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn trailers_pass(fixture: &Fixture, version: Version) {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-end", "1".parse().unwrap());
    let frames = [Frame::data(Bytes::from("a")), Frame::trailers(trailers)];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok)));
    let request = Request::post(fixture.sidestream.url("/echo"))
        .header("trailer", "x-end")
        .body(body.boxed())
        .unwrap();
    let seen = json(fixture.send(version, request).await.body());
    assert_eq!(seen["trailers"]["x-end"], "1", "{version:?}");
    let client = Client::builder(TokioExecutor::new())
        .http2_only(version == Version::Http2)
        .build_http::<Body>();
    let request = Request::get(fixture.sidestream.url("/trailers"))
        .header("te", "trailers")
        .body(Empty::new().boxed())
        .unwrap();
    let answer = client.request(request).await.unwrap();
    assert_eq!(answer.headers()["trailer"], "X-Sum", "{version:?}");
    let body = answer.into_body().collect().await.unwrap();
    let sum = body.trailers().and_then(|trailers| trailers.get("x-sum"));
    assert_eq!(sum.unwrap(), "1", "{version:?}");
    assert_eq!(body.to_bytes(), "part", "{version:?}");
}

async fn ranges_pass(fixture: &Fixture, version: Version) {
    for (range, status, body, content_range) in [
        ("bytes=2-4", 206, "234", "bytes 2-4/10"),
        ("bytes=-1", 206, "9", "bytes 9-9/10"),
        ("bytes=20-", 416, "", "bytes */10"),
    ] {
        let request = Request::get(fixture.sidestream.url("/range"))
            .header("range", range)
            .body(Empty::new().boxed())
            .unwrap();
        let answer = fixture.send(version, request).await;
        assert_eq!(answer.status(), status, "{version:?} {range}");
        assert_eq!(answer.headers()["content-range"], content_range);
        if status == 206 {
            assert_eq!(answer.body(), body, "{version:?} {range}");
        }
    }
    let request = Request::get(fixture.sidestream.url("/range"))
        .header("if-modified-since", "Mon, 01 Jan 2024 00:00:00 GMT")
        .body(Empty::new().boxed())
        .unwrap();
    assert_eq!(fixture.send(version, request).await.status(), 304);
}

async fn responses_without_content_keep_the_connection(fixture: &Fixture) {
    let url: hyper::Uri = fixture.sidestream.url("/status/204").parse().unwrap();
    let transport = Connector::default().connect(&url).await.unwrap();
    let first = head("GET", &url, 1, &[]);
    let mut answer = Response::exchange(transport, first.as_bytes(), false)
        .await
        .unwrap();
    for (status, path) in [(204, "/status/304"), (304, "/status/200"), (200, "/x")] {
        assert_eq!(answer.status, status);
        let (body, _) = answer.body().await;
        assert!(body.is_empty(), "{status}");
        let next = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        answer = answer.again(next.as_bytes()).await.unwrap();
    }
    assert_eq!(answer.body().await.0, b"/x\n");
}

/// Sends bodies with curl, which waits a minute for a 100.
async fn expectations_are_answered(fixture: &Fixture) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, vec![0; 4 << 20]).unwrap();
    for (path, status) in [
        ("/echo", 200),
        ("/early/401", 401),
        ("/early/413", 413),
        ("/early/417", 417),
    ] {
        let mut command = tokio::process::Command::new("curl");
        command
            .args(["--silent", "--show-error", "--expect100-timeout", "60"])
            .args(["--write-out", "\n%{http_code}", "--upload-file"])
            .arg(&file)
            .arg(fixture.sidestream.url(path));
        let output = within(DEADLINE, "curl is answered", command.output()).await;
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let (body, code) = text.rsplit_once('\n').unwrap();
        assert_eq!(code, status.to_string(), "{path}: {output:?}");
        let expected = if status == 200 {
            "\"PUT\""
        } else {
            "too large"
        };
        assert!(body.contains(expected), "{path}: {output:?}");
    }
}

async fn clients_of_http10_receive_the_end_of_the_connection(fixture: &Fixture) {
    let answer = fixture
        .raw(b"GET /large/100000 HTTP/1.0\r\nHost: a\r\n\r\n")
        .await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert_eq!(body.len(), 100_000);
}

async fn application_sees_that_clients_leave(fixture: &Fixture) {
    let send = async |request: &str, answered: bool| {
        let mut socket = TcpStream::connect(fixture.sidestream.address())
            .await
            .unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut seen = [0; 16];
        if answered {
            socket.read_exact(&mut seen).await.unwrap();
        }
        socket
    };
    let endless = send("GET /endless/1 HTTP/1.1\r\nHost: a\r\n\r\n", true).await;
    let silent = send("GET /silent/1 HTTP/1.1\r\nHost: a\r\n\r\n", false).await;
    let upload = "POST /echo/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc";
    let upload = send(upload, false).await;
    let chunked = "POST /echo/2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc";
    let chunked = send(chunked, false).await;
    let mut client = H2Client::connect(fixture.sidestream.url("/")).await;
    let other = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut stream = client.request("GET", "/endless/2", &[]).await;
    stream.piece().await.unwrap();
    let unanswered = async { drop(other.try_request("GET", "/silent/2", &[]).await) };
    let arrived = async {
        for path in [
            "/endless/1",
            "/silent/1",
            "/echo/1",
            "/echo/2",
            "/endless/2",
            "/silent/2",
        ] {
            let fact = format!("the application has the request for {path}");
            let application = &fixture.application;
            application
                .until(&fact, |reports| {
                    let is_it = |report: &serde_json::Value| report["url"] == path;
                    reports.iter().any(is_it)
                })
                .await;
        }
    };
    tokio::select! {
        () = unanswered => panic!("/silent is answered"),
        () = arrived => {}
    }
    drop((endless, silent, upload, chunked, stream, other));
    for path in [
        "/endless/1",
        "/silent/1",
        "/echo/1",
        "/echo/2",
        "/endless/2",
        "/silent/2",
    ] {
        let fact = format!("the application sees that the client of {path} left");
        fixture
            .application
            .until(&fact, |reports| {
                let is_it = |report: &serde_json::Value| {
                    report["url"] == path && report["kind"] == "end" && report["complete"] == false
                };
                reports.iter().any(is_it)
            })
            .await;
    }
    // The connection with the stream that was reset goes on.
    let mut answer = client.request("GET", "/page", &[]).await;
    assert_eq!(answer.body().await, "/page\n");
}

#[tokio::test]
async fn requests_with_a_body_survive_the_idle_timeout_of_the_application() {
    for server in [Server::UvicornHttptools, Server::Go] {
        // The sidecar closes its unused connections first.
        let mut application = Application::of(server).keep_alive(Duration::from_millis(100));
        application.run().await;
        let fixture = Fixture::with(application, "idle_timeout: 50ms,", "").await;
        for number in 0..60 {
            let request = Request::post(fixture.sidestream.url("/echo"))
                .body(Full::from("a").boxed())
                .unwrap();
            let answer = fixture.send(Version::Http1, request).await;
            assert_eq!(answer.status(), 200, "{server:?} {number}");
            tokio::time::sleep(Duration::from_millis(number + 15)).await;
        }
    }
}

#[tokio::test]
async fn idle_connections_that_the_application_closes_cost_no_request_without_a_body() {
    for server in [Server::UvicornH11, Server::UvicornHttptools, Server::Go] {
        let mut application = Application::of(server).keep_alive(Duration::from_millis(2));
        application.run().await;
        let fixture = Fixture::with(application, "", "").await;
        for number in 0..100 {
            let answer = fixture.get("/page", &[]).await;
            assert_eq!(answer.status, 200, "{server:?} {number}: {}", answer.body);
            // About the time after which the application closes the connection.
            tokio::time::sleep(Duration::from_millis(number % 5)).await;
        }
    }
}
