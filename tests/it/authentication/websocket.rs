//! WebSockets of clients without valid credentials, and of those whose credentials expire.

use super::token::Token;
use super::{Fixture, bearer};
use testkit::websocket::{Frame, Request};

const ROUTES: &str = "routes:
  - path: /orders
    framings: [websocket]
    authenticate: [idp]
    cors: { origins: [\"https://pages.example\"] }
    sources: [{ stream: ORDERS, subjects: [\"orders.{claim.sub}.>\"] }]
";

#[tokio::test]
async fn page_without_credentials_receives_a_close_and_a_program_a_status() {
    let fixture = Fixture::with(ROUTES, "").await;
    let url = fixture.sidestream.url("/orders");
    for is_h2 in [false, true] {
        let request = Request {
            is_h2,
            ..Request::new(&*url)
        };
        let rejected = request.clone().try_open().await.err().unwrap();
        assert_eq!(rejected.status, 401);

        let request = Request {
            headers: vec![("origin", "https://pages.example")],
            ..request
        };
        let mut socket = request.open().await;
        let close = socket.object().await;
        assert_eq!(close["reason"], "unauthenticated");
        assert!(close["retry"].as_u64().unwrap() >= 15_000);
        let frame = Frame::Close(1008, "unauthenticated".into());
        assert_eq!(socket.next().await, frame);
    }
}

#[tokio::test]
async fn expired_credentials_close_the_websocket_with_the_position() {
    let fixture = Fixture::with(ROUTES, "  renew_before: 2s\n").await;
    let url = fixture.sidestream.url("/orders");
    for is_h2 in [false, true] {
        let token = bearer(&Token::of("alice").expires_in(4).signed());
        let request = Request {
            is_h2,
            headers: vec![("authorization", &token)],
            ..Request::new(&*url)
        };
        let mut socket = request.open().await;
        fixture.publish("orders.alice.paid", "1").await;
        assert_eq!(socket.events(1).await[0]["data"], 1);
        let (_, renew) = socket.until_control("renew").await;
        assert!(renew["expires"].is_u64());
        let (_, close) = socket.until_control("close").await;
        assert_eq!(close["reason"], "expired");
        assert_eq!(close["id"], socket.last_event_id());
        assert_eq!(socket.next().await, Frame::Close(1008, "expired".into()));
    }
}
