//! Header fields that are removed, kept and added.

use testkit::application::Application;
use testkit::wait::{DEADLINE, eventually};

use super::Fixture;

/// Returns the fields of a request as the application received them.
async fn received(fixture: &Fixture, headers: &[(&str, &str)]) -> Vec<(String, String)> {
    let answer = fixture.get("/echo", headers).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let raw = answer.json()["rawHeaders"].clone();
    let raw: Vec<String> = serde_json::from_value(raw).unwrap();
    let pairs = raw.chunks_exact(2);
    pairs
        .map(|pair| (pair[0].to_lowercase(), pair[1].clone()))
        .collect()
}

fn value<'f>(fields: &'f [(String, String)], name: &str) -> Option<&'f str> {
    let mut found = fields.iter().filter(|(known, _)| known == name);
    let value = found.next().map(|(_, value)| value.as_str());
    assert!(found.next().is_none(), "{name} is repeated");
    value
}

#[tokio::test]
async fn application_learns_the_client_and_not_what_the_client_claims() {
    let fixture = Fixture::start().await;
    let fields = received(
        &fixture,
        &[
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-Host", "evil.example"),
            ("X-Forwarded-Proto", "https"),
            ("X-Real-IP", "192.0.2.1"),
            ("Forwarded", "for=192.0.2.1"),
            ("Sidestream-Subscribe", "orders.>"),
            ("sidestream-anything", "1"),
            ("Cookie", "session=1"),
        ],
    )
    .await;
    let address = fixture.sidestream.address().to_string();
    assert_eq!(value(&fields, "host"), Some(&*address));
    assert_eq!(value(&fields, "cookie"), Some("session=1"));
    assert_eq!(value(&fields, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(value(&fields, "x-forwarded-host"), Some(&*address));
    assert_eq!(value(&fields, "x-forwarded-proto"), Some("http"));
    assert_eq!(value(&fields, "via"), Some("1.1 sidestream"));
    assert_eq!(value(&fields, "x-request-id").map(str::len), Some(32));
    for absent in [
        "x-real-ip",
        "forwarded",
        "sidestream-subscribe",
        "sidestream-anything",
        "connection-close",
    ] {
        assert_eq!(value(&fields, absent), None, "{absent}");
    }
}

#[tokio::test]
async fn fields_of_a_trusted_proxy_are_kept() {
    let rest = "trusted_proxies: [127.0.0.1]";
    let application = Application::start().await;
    let fixture = Fixture::with(application, "", rest).await;
    let fields = received(
        &fixture,
        &[
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-Host", "shop.example"),
            ("X-Forwarded-Proto", "https"),
            ("X-Real-IP", "192.0.2.1"),
            ("X-Request-Id", "abc"),
        ],
    )
    .await;
    for (name, expected) in [
        ("x-forwarded-for", "192.0.2.1, 127.0.0.1"),
        ("x-forwarded-host", "shop.example"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "192.0.2.1"),
        ("x-request-id", "abc"),
    ] {
        assert_eq!(value(&fields, name), Some(expected), "{name}");
    }
}

#[tokio::test]
async fn response_has_the_fields_of_the_application_without_those_for_the_sidecar() {
    let fixture = Fixture::start().await;
    let answer = fixture.get("/echo", &[]).await;
    assert_eq!(answer.header("set-cookie").unwrap(), "a=1, b=2");
    assert_eq!(answer.header("via").unwrap(), "1.1 sidestream");
    assert_eq!(answer.header("sidestream-client"), None);
}

#[tokio::test]
async fn log_has_the_request_id_that_the_application_received() {
    let application = Application::start().await;
    let fixture = Fixture::with(application, "", "log: { filter: debug }").await;
    let fields = received(&fixture, &[]).await;
    let id = value(&fields, "x-request-id").unwrap();
    fixture.get("/status/404", &[]).await;
    fixture.get("/page?token=hidden", &[]).await;
    let logged = async |path: &str| {
        eventually(DEADLINE, "the request is logged", async || {
            let lines = fixture.sidestream.log();
            lines.into_iter().find(|line| {
                line["message"] == "request passed to the application" && line["path"] == path
            })
        })
        .await
    };
    let line = logged("/echo").await;
    assert_eq!(line["request_id"], id);
    assert_eq!(line["method"], "GET");
    assert_eq!(line["status"], 200);
    assert_eq!(line["client.addr"], "127.0.0.1");
    assert!(line["seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(logged("/status/404").await["status"], 404);
    assert_eq!(logged("/page").await["status"], 200);
    assert!(!fixture.sidestream.output().concat().contains("hidden"));
}
