//! Handshakes, origins and rejections.

use serde_json::Value;

use super::{Fixture, Via};
use testkit::http1;
use testkit::websocket::{Frame, Rejected};

fn code(rejected: &Rejected) -> String {
    let error: Value = serde_json::from_str(&rejected.body).unwrap();
    error["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn page_of_another_origin_is_rejected() {
    let fixture = Fixture::start().await;
    let host = fixture.sidestream.address();
    for (origin, is_allowed) in [
        (format!("http://{host}"), true),
        ("https://pages.example".to_owned(), true),
        ("https://other.example".to_owned(), false),
        ("https://pages.example.evil".to_owned(), false),
        (format!("http://{host}0"), false),
        ("null".to_owned(), false),
    ] {
        for via in [Via::Http11, Via::H2] {
            let mut request = fixture.request(via, "/orders");
            request.headers.push(("origin", &origin));
            match request.try_open().await {
                Ok(_) => assert!(is_allowed, "{origin}"),
                Err(rejected) => {
                    assert!(!is_allowed, "{origin}: {rejected:?}");
                    assert_eq!(rejected.status, 403);
                    assert_eq!(code(&rejected), "origin_not_allowed");
                }
            }
        }
    }
}

#[tokio::test]
async fn invalid_handshake_is_rejected_with_its_reason() {
    let fixture = Fixture::start().await;
    for (path, header, status, expected) in [
        (
            "/orders",
            ("Sec-WebSocket-Version", "8"),
            400,
            "bad_handshake",
        ),
        (
            "/orders",
            ("Sec-WebSocket-Key", "short"),
            400,
            "bad_handshake",
        ),
        (
            "/orders",
            ("Connection", "keep-alive"),
            400,
            "bad_handshake",
        ),
        (
            "/orders",
            ("Sec-WebSocket-Protocol", "other.v1"),
            400,
            "bad_handshake",
        ),
        ("/default", ("Accept", "*/*"), 406, "not_acceptable"),
        ("/nowhere", ("Accept", "*/*"), 404, "not_found"),
    ] {
        let mut request = fixture.request(Via::Http11, path);
        request.headers.push(header);
        let rejected = request.try_open().await.err().unwrap();
        assert_eq!(rejected.status, status, "{header:?}");
        assert_eq!(code(&rejected), expected, "{header:?}");
        let version = rejected
            .headers
            .iter()
            .find(|(name, _)| name == "sec-websocket-version");
        assert_eq!(version.is_some(), expected == "bad_handshake");
    }
    let mut request = fixture.request(Via::H2, "/orders");
    request.subprotocol = "other.v1";
    assert_eq!(request.try_open().await.err().unwrap().status, 400);
}

#[tokio::test]
async fn subprotocol_is_optional() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        let mut request = fixture.request(via, "/orders");
        request.subprotocol = "";
        let mut socket = request.open().await;
        assert_eq!(socket.header("sec-websocket-protocol"), None);
        assert_eq!(socket.object().await["control"], "open");
    }
}

#[tokio::test]
async fn route_with_websocket_only_asks_for_an_upgrade() {
    let fixture = Fixture::start().await;
    let answer = http1::get(&fixture.sidestream.url("/both")).await.unwrap();
    assert_eq!(answer.status, 426);
    assert_eq!(answer.header("upgrade").as_deref(), Some("websocket"));
    assert_eq!(answer.json()["error"]["code"], "upgrade_required");
}

#[tokio::test]
async fn temporary_rejection_of_a_page_is_a_close_with_the_reason_and_of_a_program_a_status() {
    let fixture = Fixture::start().await;
    let mut open = Vec::new();
    while open.len() < 40 {
        open.push(fixture.open(Via::Http11, "/orders").await);
    }
    for via in Via::ALL {
        let rejected = fixture.request(via, "/orders").try_open().await;
        let rejected = rejected.err().expect("the limit of the client is reached");
        assert_eq!(rejected.status, 503, "{via:?}");
        assert_eq!(code(&rejected), "too_many_connections_of_client");

        let mut request = fixture.request(via, "/orders");
        request.headers.push(("origin", "https://pages.example"));
        let mut socket = request.open().await;
        let close = socket.object().await;
        assert_eq!(close["control"], "close");
        assert_eq!(close["reason"], "overload");
        assert!(close["retry"].as_u64().unwrap() > 1000);
        assert_eq!(socket.next().await, Frame::Close(1013, "overload".into()));
        socket.send(0x88, &1013_u16.to_be_bytes()).await;
        assert_eq!(socket.next().await, Frame::End, "{via:?}");
    }
    let labels = [("code", "too_many_connections_of_client")];
    let count = fixture
        .sidestream
        .metric("sidestream_refusals_total", &labels)
        .await;
    assert_eq!(count, 8.0);
}
