//! Subjects from clients: none reads a forbidden subject.

use std::time::Duration;

use super::fixture::Fixture;
use testkit::http1;
use testkit::sse::SseClient;

#[tokio::test]
async fn a_variable_is_always_exactly_one_token() {
    let fixture = Fixture::start("").await;
    for segment in [
        "*",
        "%2A",
        ">",
        "%3E",
        "a.b",
        "a%2Eb",
        "%2e",
        ".",
        "..",
        "%00",
        "a%00",
        "%0a",
        "a%0Ab",
        "%0d",
        "%20",
        "a%20b",
        "%09",
        "%7f",
        "%c2%85",
        "%c2%a0",
        "%e2%80%a8",
        "%ff",
        "",
    ] {
        let answer = fixture.raw(&request(&format!("/orders/{segment}"))).await;
        let status = answer.get(9..12).unwrap_or_default();
        // A path that ends in a slash does not match this route. Characters that no URI may contain
        // are rejected before routing.
        assert!(["400", "404"].contains(&status), "{segment:?}: {answer}");
    }
    for header in ["*", ">", "a.b", "a b", "", "\t", "a\u{b}", "é"] {
        let text = format!(
            "GET /tenant HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Tenant: {header}\r\n\r\n"
        );
        let answer = fixture.raw(text.as_bytes()).await;
        assert_eq!(answer.get(9..12), Some("400"), "{header:?}: {answer}");
    }
    fixture.finish().await;
}

fn request(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn a_filter_must_be_valid_allowed_and_not_a_server_subject() {
    let fixture = Fixture::start("").await;
    for (subject, status) in [
        ("", 400),
        (".", 400),
        ("orders.", 400),
        (".orders", 400),
        ("orders..1", 400),
        ("orders.%3E.x", 400),
        ("orders.a%3E", 400),
        ("orders.%20", 400),
        ("orders.a%0Ab", 400),
        ("orders.a%0D%0AUNSUB%201", 400),
        ("orders.%00", 400),
        ("orders.%C2%A0x", 400),
        ("%3E", 403),
        ("*", 403),
        ("*.x", 403),
        ("orders", 403),
        ("ORDERS.x", 403),
        ("news.a.b", 403),
        ("news.%3E", 403),
        ("$SYS.%3E", 400),
        ("_INBOX.%3E", 400),
        ("%24SYS.ACCOUNT", 400),
    ] {
        let answer = http1::get(
            &fixture
                .sidestream
                .url(&format!("/events?subject={subject}")),
        )
        .await
        .unwrap();
        assert_eq!(answer.status, status, "{subject}: {}", answer.body);
    }
    for subject in [
        "$SYS.>",
        "$JS.API.>",
        "$KV.x",
        "_INBOX.>",
        "_INBOX.a",
        "_INBOX",
    ] {
        let target = format!(
            "/any?subject={}",
            subject.replace('>', "%3E").replace('$', "%24")
        );
        let answer = http1::get(&fixture.sidestream.url(&target)).await.unwrap();
        assert_eq!(answer.status, 400, "{subject}: {}", answer.body);
    }
    fixture.finish().await;
}

#[tokio::test]
async fn a_route_that_allows_everything_serves_no_inbox_and_no_server_subject() {
    let fixture = Fixture::start("").await;
    let publisher = fixture.nats.client().await;
    for wildcard in ["%3E", "*.x", "*.%3E"] {
        let target = fixture.sidestream.url(&format!("/any?subject={wildcard}"));
        let mut client = SseClient::get(target).connect().await;
        assert_eq!(client.status(), 200, "{wildcard}");
        for subject in ["_INBOX.x", "$SIDE.x", "plain.x"] {
            publisher.publish(subject, subject.into()).await.unwrap();
        }
        let mut data: Vec<String> = Vec::new();
        while !data.iter().any(|data| data == "plain.x") {
            data.push(client.next().await.data);
        }
        assert!(
            !data.iter().any(|data| data.starts_with(['_', '$'])),
            "{wildcard}: {data:?}"
        );
    }
    fixture.finish().await;
}

#[tokio::test]
async fn duplicate_filters_are_read_once_and_a_raw_wildcard_is_malformed() {
    let fixture = Fixture::start("").await;
    let target =
        "/events?subject=orders.1.%3E&subject=orders.1.*&subject=orders.1.a&subject=news.%2A";
    let mut client = SseClient::get(fixture.sidestream.url(target))
        .connect()
        .await;
    assert_eq!(client.status(), 200);
    let publisher = fixture.nats.client().await;
    publisher
        .publish("orders.1.a", "once".into())
        .await
        .unwrap();
    assert_eq!(client.next().await.data, "once");
    assert_eq!(client.next_within(Duration::from_millis(200)).await, None);
    drop(client);

    // RFC 3986 does not allow a raw `>` in a query: hyper rejects it before the route can explain
    // it.
    let before = fixture.refused("malformed").await;
    let answer = fixture.raw(&request("/events?subject=orders.>")).await;
    assert_eq!(answer.get(9..12), Some("400"), "{answer}");
    fixture.until_refused("malformed", before).await;
    fixture.finish().await;
}
