//! The application is slow, away, or cuts its responses.

use std::time::Duration;

use testkit::application::Application;
use testkit::http1::End;
use testkit::sse::SseClient;

use super::Fixture;

const EVENT_SOURCE: [(&str, &str); 2] = [
    ("Accept", "text/event-stream"),
    ("User-Agent", "Mozilla/5.0"),
];

#[tokio::test]
async fn failures_have_a_status_and_a_code_and_an_event_source_returns() {
    let settings = "response_timeout: 300ms,";
    let fixture = Fixture::with(Application::start().await, settings, "").await;
    for (path, status, code) in [
        ("/silent", 504, "application_timeout"),
        ("/closed", 502, "application_invalid"),
    ] {
        let answer = fixture.get(path, &[]).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.json()["error"]["code"], code, "{path}");
        let answer = fixture.get(path, &EVENT_SOURCE).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.body.contains("event: sidestream.close\n"), "{path}");
        assert!(answer.body.contains("retry: "), "{path}");
        assert_eq!(fixture.count(code).await, 2.0, "{path}");
    }
    for status in ["429", "500", "503"] {
        let path = format!("/status/{status}");
        assert_eq!(fixture.get(&path, &[]).await.status.to_string(), status);
        let answer = fixture.get(&path, &EVENT_SOURCE).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.body.contains("event: sidestream.close\n"), "{path}");
    }
    assert_eq!(fixture.get("/status/404", &EVENT_SOURCE).await.status, 404);
}

#[tokio::test]
async fn application_that_is_away_rejects_its_requests_alone() {
    let mut fixture = Fixture::with(Application::down(), "", "").await;
    let answer = fixture.get("/page", &[]).await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["error"]["code"], "application_unreachable");
    let client = SseClient::get(fixture.sidestream.url("/events"))
        .connect()
        .await;
    assert_eq!(client.status(), 200);
    assert_eq!(fixture.sidestream.admin("/health/ready").await.0, 200);
    fixture.application.run().await;
    assert_eq!(fixture.get("/page", &[]).await.body, "/page\n");
}

#[tokio::test]
async fn response_that_is_cut_is_incomplete_for_the_client() {
    let fixture = Fixture::start().await;
    let answer = fixture.get("/cut", &[]).await;
    assert_eq!(answer.status, 200);
    assert!(
        matches!(answer.end, End::Truncated | End::Reset),
        "{answer:?}"
    );
    let mut client = testkit::h2::H2Client::connect(fixture.sidestream.url("/")).await;
    let mut answer = client.request("GET", "/cut", &[]).await;
    assert!(matches!(answer.closed().await, End::StreamReset(_)));
}

#[tokio::test]
async fn requests_above_the_maximum_are_rejected_and_event_streams_go_on() {
    let settings = "connections: 2, response_timeout: 30s,";
    let fixture = Fixture::with(Application::start().await, settings, "").await;
    let silent = || fixture.get("/silent", &[]);
    let rejected = async {
        fixture
            .application
            .until("two requests wait", |reports| {
                let waiting = |report: &&serde_json::Value| report["kind"] == "request";
                reports.iter().filter(waiting).count() == 2
            })
            .await;
        let answer = fixture.get("/page", &[]).await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json()["error"]["code"], "application_busy");
        assert!(answer.header("retry-after").is_some());
        let client = SseClient::get(fixture.sidestream.url("/events"))
            .connect()
            .await;
        assert_eq!(client.status(), 200);
    };
    tokio::select! {
        () = rejected => {}
        (one, other) = async { tokio::join!(silent(), silent()) } => {
            panic!("{one:?} {other:?}")
        }
    }
    // Both clients are gone: their requests are cancelled, and there is room again.
    let answer = fixture.get("/page", &[]).await;
    assert_eq!(answer.body, "/page\n");
    fixture
        .application
        .until(
            "the requests of clients that left are cancelled",
            |reports| {
                let cut = |report: &&serde_json::Value| {
                    report["kind"] == "end" && report["complete"] == false
                };
                reports.iter().filter(cut).count() == 2
            },
        )
        .await;
}

#[tokio::test]
async fn idle_connections_that_the_application_closes_cost_no_request() {
    let application = Application::down().keep_alive(Duration::from_millis(1));
    let mut fixture = Fixture::with(application, "", "").await;
    fixture.application.run().await;
    for number in 0..200 {
        let path = format!("/page/{number}");
        let answer = fixture.get(&path, &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        if number % 10 == 0 {
            // About the time after which the application closes the connection.
            tokio::time::sleep(Duration::from_millis(number % 5)).await;
        }
    }
}

#[tokio::test]
async fn statuses_of_the_parser_pass_if_the_application_has_sent_them() {
    let fixture = Fixture::start().await;
    for status in [400, 414, 431] {
        let answer = fixture.get(&format!("/empty/{status}"), &[]).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("content-length").unwrap(), "0", "{status}");
        assert!(answer.header("via").is_some(), "{answer:?}");
    }
    assert_eq!(fixture.count("malformed").await, 0.0);
    // The pieces of this body look like the head of a response.
    let answer = fixture.get("/lookalike", &[]).await;
    assert_eq!(answer.body, "HTTP/1.1 431 a\n".repeat(10));
    // A head that is malformed after a passed response is still rejected with a code.
    let answer = fixture
        .raw(b"GET /empty/400 HTTP/1.1\r\nHost: a\r\n\r\nGET  /x HTTP/1.1\r\n\r\n")
        .await;
    assert!(answer.contains("\"code\":\"malformed\""), "{answer}");
}
