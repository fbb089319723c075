//! Renewal and expiry of the credentials of one event stream.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::token::{Token, now};
use super::{Fixture, ROUTES, bearer, open_h2, token};
use testkit::h2::H2Client;
use testkit::ndjson;
use testkit::sse_parser::Event;
use testkit::wait::DEADLINE;
use tokio::sync::Notify;
use tokio::time::timeout;

fn data(event: &Event) -> Value {
    serde_json::from_str(&event.data).unwrap()
}

#[tokio::test]
async fn one_of_a_hundred_principals_of_a_connection_expires_and_the_others_miss_nothing() {
    let fixture = Fixture::with(ROUTES, "  renew_before: 2s\n").await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut others = Vec::new();
    for number in 0..99 {
        let token = token(&format!("user-{number}"));
        others.push(open_h2(&mut connection, "/status", &token).await);
    }
    let expires = now() + 6;
    let short = Token::of("bob").claim("exp", expires).signed();
    let mut expiring = open_h2(&mut connection, "/status", &short).await;
    let connections = fixture.sidestream.admin_json("/connections").await;
    let names = connections["connections"].as_array().unwrap().iter();
    let names: HashSet<_> = names.map(|one| one["client"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 100, "{names:?}");

    let others: Vec<_> = others
        .into_iter()
        .map(|mut other| {
            tokio::spawn(async move { other.until(|event| event.data == "end").await })
        })
        .collect();

    let expired = Notify::new();
    let publishing = async {
        for number in 0.. {
            fixture.publish("orders.1.paid", number.to_string()).await;
            let pause = Duration::from_millis(20);
            if timeout(pause, expired.notified()).await.is_ok() {
                return number + 1;
            }
        }
        unreachable!("the numbers do not end")
    };
    let expiring = async {
        let before = expiring
            .until(|event| event.name == "sidestream.renew")
            .await;
        let left = expires.saturating_sub(now());
        assert!((1..=3).contains(&left), "{left} s before the expiry");
        assert_eq!(data(before.last().unwrap())["expires"], expires);
        let events = expiring
            .until(|event| event.name == "sidestream.close")
            .await;
        assert!(now() >= expires, "not before the expiry");
        assert_eq!(data(events.last().unwrap())["reason"], "expired");
        expiring.closed().await;
        expired.notify_one();
        let received = before.len() + events.len() - 2;
        (expiring, received)
    };
    let (count, (expiring, received)) = tokio::join!(publishing, expiring);
    assert!(received > 100, "events until the expiry: {received}");
    assert!(!connection.going_away());

    // The rest is for a fresh token at the same position.
    fixture.publish("orders.1.paid", "end").await;
    let bearer = bearer(&token("bob"));
    let headers = [
        ("accept", "text/event-stream"),
        ("authorization", bearer.as_str()),
        ("last-event-id", expiring.last_event_id()),
    ];
    let mut again = connection.request("GET", "/status", &headers).await;
    let rest = again.until(|event| event.data == "end").await;
    let rest: Vec<_> = rest.into_iter().map(|event| event.data).collect();
    let all: Vec<_> = (0..count)
        .map(|number| number.to_string())
        .chain(["end".into()])
        .collect();
    assert_eq!(rest, all[received..]);
    for other in others {
        let events = other.await.unwrap();
        assert!(
            events.iter().map(|event| &event.data).eq(&all),
            "{events:?}"
        );
    }
    let labels = [("route", "/status"), ("reason", "expired")];
    let closed = fixture
        .sidestream
        .metric("sidestream_streams_closed_total", &labels);
    assert_eq!(closed.await, 1.0);
}

#[tokio::test]
async fn client_that_renews_misses_nothing_and_receives_nothing_twice() {
    let fixture = Fixture::with(ROUTES, "  renew_before: 1s\n").await;
    let publishing = async {
        for number in 0..300 {
            fixture.publish("orders.1.paid", number.to_string()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let first = fixture
        .open("/status", &Token::of("a").expires_in(3).signed())
        .await;
    let reading = async {
        let (mut client, mut received, mut connections) = (first, Vec::new(), 1);
        while received.len() < 300 {
            let event = client.next_within(DEADLINE).await.unwrap();
            match &*event.name {
                "sidestream.renew" | "sidestream.close" => {
                    let token = Token::of("a").expires_in(3).signed();
                    let request = fixture.get("/status").last_event_id(client.last_event_id());
                    let request = request.header("Authorization", &bearer(&token));
                    client = request.connect().await;
                    assert_eq!(client.status(), 200);
                    connections += 1;
                }
                _ => received.push(event.data.parse::<u32>().unwrap()),
            }
        }
        (received, connections)
    };
    let ((), (received, connections)) = tokio::join!(publishing, reading);
    assert_eq!(received, (0..300).collect::<Vec<_>>());
    assert!((3..=9).contains(&connections), "{connections}");
}

#[tokio::test]
async fn browser_with_an_expired_cookie_returns_no_faster_than_the_retry() {
    let fixture = Fixture::start().await;
    let cookie = format!("session={}", Token::of("alice").expires_in(2).signed());
    let begun = Instant::now();
    let request = || fixture.get("/orders").browser().header("Cookie", &cookie);
    let mut client = request().connect().await;
    let events = client.until(|event| event.name == "sidestream.close").await;
    let close = events.last().unwrap();
    assert_eq!(data(close)["reason"], "expired");
    assert!(client.retry().unwrap() >= 1500, "{:?}", client.retry());
    assert!(begun.elapsed() >= Duration::from_secs(1));
    client.closed().await;
    // Times of an event stream are rounded down to 10 ms.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut again = request().connect().await;
    let close = again.next().await;
    assert_eq!(data(&close)["reason"], "unauthenticated");
    assert!(again.retry().unwrap() >= 15_000);
}

#[tokio::test]
async fn json_lines_have_the_renewal_as_a_control_line() {
    let fixture = Fixture::start().await;
    let expires = now() + 3;
    let token = Token::of("alice").claim("exp", expires).signed();
    let url = fixture
        .sidestream
        .url(&format!("/orders?access_token={token}"));
    let mut lines = ndjson::Request::new(&url).send().await;
    let (_, renew) = lines.until_control("renew").await;
    assert_eq!(renew["expires"], expires);
    let (_, close) = lines.until_control("close").await;
    assert_eq!(close["reason"], "expired");
}
