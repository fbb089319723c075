//! Requests in progress are completed during a drain.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Request;
use hyper::body::Frame;
use testkit::application::Application;
use testkit::h2::H2Client;
use testkit::http1::{End, Response, head};
use testkit::transport::Connector;
use testkit::wait::{DEADLINE, within};

use super::{Fixture, VERSIONS, Version, json};

/// A sidecar that ends its event streams at once, and waits for requests.
async fn fixture() -> Fixture {
    let rest = "drain: { accept_for: 0s, spread: 0s, timeout: 20s }";
    Fixture::with(Application::start().await, "", rest).await
}

/// Waits until the application has a request for `/later`, and asks the sidecar to end.
async fn drain_during_the_request(fixture: &mut Fixture) {
    fixture
        .application
        .until("the application has the request", |reports| {
            reports.iter().any(|report| report["url"] == "/later")
        })
        .await;
    fixture.sidestream.terminate();
}

#[tokio::test]
async fn request_over_http1_is_answered_and_its_connection_closes() {
    let mut fixture = fixture().await;
    let url: hyper::Uri = fixture.sidestream.url("/later").parse().unwrap();
    let request = head("GET", &url, 1, &[]);
    let transport = Connector::default().connect(&url).await.unwrap();
    let answered = tokio::spawn(async move {
        let mut answer = Response::exchange(transport, request.as_bytes(), false)
            .await
            .unwrap();
        let (body, end) = answer.body().await;
        (answer.header("connection"), body, end, answer.fin().await)
    });
    drain_during_the_request(&mut fixture).await;
    let (connection, body, end, has_ended) = within(DEADLINE, "the request is answered", answered)
        .await
        .unwrap();
    assert_eq!(body, b"late\n");
    assert_eq!(end, End::Terminated);
    assert_eq!(connection.as_deref(), Some("close"));
    assert!(has_ended);
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
}

#[tokio::test]
async fn request_over_http2_is_answered_after_the_goaway() {
    let mut fixture = fixture().await;
    let mut client = H2Client::connect(fixture.sidestream.url("/")).await;
    let answer = async {
        let mut answer = client.request("GET", "/later", &[]).await;
        answer.body().await
    };
    let (body, ()) = tokio::join!(answer, drain_during_the_request(&mut fixture));
    assert_eq!(body, "late\n");
    client.goaway().await;
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
}

#[tokio::test]
async fn upload_in_progress_is_completed_and_answered() {
    for version in VERSIONS {
        let mut fixture = fixture().await;
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
        let body = stream::unfold(receiver, async |mut receiver| {
            let piece = receiver.recv().await?;
            Some((
                Ok::<_, std::convert::Infallible>(Frame::data(piece)),
                receiver,
            ))
        });
        let request = Request::post(fixture.sidestream.url("/echo"))
            .body(StreamBody::new(Box::pin(body)).boxed())
            .unwrap();
        let piece = Bytes::from(vec![b'x'; 100_000]);
        sender.send(piece.clone()).await.unwrap();
        let send = fixture.send(version, request);
        let rest = async {
            fixture
                .application
                .until("the application has the request", |reports| {
                    reports.iter().any(|report| report["url"] == "/echo")
                })
                .await;
            let pid = fixture.sidestream.pid();
            let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                sender.send(piece.clone()).await.unwrap();
            }
            drop(sender);
        };
        let (answer, ()) = tokio::join!(send, rest);
        assert_eq!(answer.status(), 200, "{version:?}");
        assert_eq!(json(answer.body())["bytes"], 1_100_000, "{version:?}");
        if version == Version::Http1 {
            assert_eq!(answer.headers()["connection"], "close");
        }
        assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    }
}

#[tokio::test]
async fn kept_connections_serve_requests_until_the_sidecar_stops_accepting() {
    let rest = "drain: { accept_for: 1s, spread: 0s, timeout: 20s }";
    let mut fixture = Fixture::with(Application::start().await, "", rest).await;
    let url: hyper::Uri = fixture.sidestream.url("/page").parse().unwrap();
    let transport = Connector::default().connect(&url).await.unwrap();
    let request = head("GET", &url, 1, &[]);
    let mut answer = Response::exchange(transport, request.as_bytes(), false)
        .await
        .unwrap();
    assert_eq!(answer.body().await.0, b"/page\n");
    fixture.sidestream.terminate();
    fixture.sidestream.until_message("drain started").await;
    let mut served = 0;
    loop {
        let Ok(mut next) = answer.again(request.as_bytes()).await else {
            break;
        };
        assert_eq!(next.status, 200);
        assert_eq!(next.body().await.0, b"/page\n");
        served += 1;
        if next.header("connection").as_deref() == Some("close") {
            break;
        }
        answer = next;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(served > 0);
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
}
