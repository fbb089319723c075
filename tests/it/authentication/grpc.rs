//! Calls of gRPC and gRPC-Web without valid credentials, and with credentials that expire.

use super::token::Token;
use super::{Fixture, bearer};
use testkit::grpc::{Call, Form};

const ROUTES: &str = "routes:
  - path: /orders
    framings: [grpc_web]
    authenticate: [idp]
    unauthenticated: stream
    sources: [{ stream: ORDERS, subjects: [\"orders.{claim.sub}.>\"] }]
";

#[tokio::test]
async fn call_without_valid_credentials_is_unauthenticated() {
    let fixture = Fixture::with(ROUTES, "").await;
    let expired = bearer(&Token::of("alice").expires_in(-100).signed());
    for form in Form::ALL {
        for (headers, code) in [
            (vec![], "unauthenticated"),
            (vec![("authorization", &*expired)], "invalid_token"),
        ] {
            let call = Call {
                headers,
                ..Call::new(form, fixture.sidestream.url(""), "/orders", "")
            };
            let (messages, trailers) = call.send().await.read_to_end().await;
            assert!(messages.is_empty());
            assert_eq!(trailers["grpc-status"], "16");
            assert_eq!(trailers["sidestream-code"], code);
        }
    }
}

#[tokio::test]
async fn expired_credentials_end_the_call_with_the_position() {
    let fixture = Fixture::with(ROUTES, "  renew_before: 2s\n").await;
    for form in Form::ALL {
        let token = bearer(&Token::of("alice").expires_in(4).signed());
        let call = Call {
            headers: vec![("authorization", &token)],
            ..Call::new(form, fixture.sidestream.url(""), "/orders", "")
        };
        let mut response = call.send().await;
        response.until("position").await;
        fixture.publish("orders.alice.paid", "1").await;
        let event = response.events(1).await.remove(0);
        let renew = response.until("renew").await;
        assert!(renew.first().is_some());
        let (messages, trailers) = response.read_to_end().await;
        let close = messages.last().unwrap();
        assert_eq!((close.content, &*close.reason()), ("close", "expired"));
        assert_eq!(close.id, event.id);
        assert_eq!(trailers["grpc-status"], "16");
        assert_eq!(trailers["sidestream-code"], "expired");
    }
}
