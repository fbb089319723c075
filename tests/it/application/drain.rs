//! Requests in progress are completed during a drain.

use testkit::application::Application;
use testkit::h2::H2Client;
use testkit::http1::{End, Response, head};
use testkit::transport::Connector;
use testkit::wait::{DEADLINE, within};

use super::Fixture;

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
