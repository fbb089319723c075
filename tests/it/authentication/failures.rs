//! The limit of failed authentications of one address.

use super::{Fixture, ROUTES, bearer, token};
use testkit::h2::H2Client;

#[tokio::test]
async fn address_with_too_many_failures_is_rejected_whatever_it_sends() {
    let routes = format!("trusted_proxies: [127.0.0.1]\n{ROUTES}");
    let fixture = Fixture::with(&routes, "").await;
    let mut client = H2Client::connect(fixture.sidestream.url("/")).await;
    // A temporary rejection closes a connection without an event stream.
    let _open = client.get("/open").await;
    let attempt = async |token: &str, address: &str| {
        let bearer = bearer(token);
        let headers = [
            ("authorization", bearer.as_str()),
            ("x-forwarded-for", address),
        ];
        let request = client.try_request("HEAD", "/status", &headers).await;
        request.unwrap().status()
    };
    let valid = token("alice");
    let mut attempts = 0;
    while attempt(&valid, "192.0.2.1").await == 200 {
        assert!(matches!(attempt("invalid", "192.0.2.1").await, 401 | 429));
        attempts += 1;
        assert!(attempts < 5000, "the limit is never reached");
    }
    assert!(attempts >= 500, "{attempts}");
    assert_eq!(attempt(&valid, "192.0.2.2").await, 200, "another address");
    let labels = [("code", "too_many_authentication_failures")];
    let count = fixture
        .sidestream
        .metric("sidestream_refusals_total", &labels);
    assert!(count.await >= 1.0);
    let message = "too many failed authentications; requests rejected";
    let line = fixture.sidestream.until_message(message).await;
    assert_eq!(line["client.addr"], "192.0.2.1");
}
