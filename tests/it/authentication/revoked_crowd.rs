//! A thousand tokens that are revoked one by one, over two pods and a restart of NATS.

use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::h2::{H2Client, H2Stream};
use testkit::http1;
use testkit::sidestream::Sidestream;
use testkit::sse_parser::Event;
use testkit::wait::{DEADLINE, RECOVERY, eventually, within};
use tokio::task::JoinSet;

use super::revocation::{CORE, REVOCATIONS, WITHIN, bucket, pod, reason, token, write};
use super::token::Token;
use super::{Fixture, bearer, open_h2};

/// Numbered event streams of `/core` on a pod, each with a token of its own, and some others.
struct Crowd {
    /// Ends with the time of the end.
    revoked: JoinSet<(usize, Instant, Value)>,
    others: Vec<H2Stream>,
    _connections: Vec<H2Client>,
}

impl Crowd {
    async fn open(sidestream: &Sidestream, numbers: impl Iterator<Item = usize>) -> Self {
        let mut crowd = Self {
            revoked: JoinSet::new(),
            others: Vec::new(),
            _connections: Vec::new(),
        };
        let mut connection = H2Client::connect(sidestream.url("/")).await;
        for (index, number) in numbers.enumerate() {
            if index % 100 == 99 {
                let next = H2Client::connect(sidestream.url("/")).await;
                crowd
                    ._connections
                    .push(std::mem::replace(&mut connection, next));
            }
            let mut stream = open_h2(&mut connection, "/core", &numbered(number)).await;
            crowd.revoked.spawn(async move {
                // Without a deadline: it is silent until its turn.
                let close = loop {
                    let event = stream.advance().await.unwrap();
                    if event.name == "sidestream.close" {
                        break event;
                    }
                };
                let ended = Instant::now();
                stream.closed().await;
                (number, ended, reason(&close))
            });
            if index % 10 == 0 {
                let other = token(&format!("other {number}")).signed();
                crowd
                    .others
                    .push(open_h2(&mut connection, "/core", &other).await);
            }
        }
        crowd._connections.push(connection);
        crowd
    }
}

fn numbered(number: usize) -> String {
    Token::of("crowd")
        .claim("jti", format!("token {number}"))
        .signed()
}

/// Number of revoked event streams.
const COUNT: usize = 1000;

#[tokio::test]
async fn a_thousand_tokens_end_within_a_second_over_two_pods_and_a_restart_of_nats() {
    let mut fixture = Fixture::with(CORE, REVOCATIONS).await;
    let second = pod(&fixture.nats, CORE).await;
    let mut crowds = [
        Crowd::open(&fixture.sidestream, (0..COUNT).step_by(2)).await,
        Crowd::open(&second, (1..COUNT).step_by(2)).await,
    ];
    let mut written = Vec::with_capacity(COUNT);
    let store = bucket(&fixture).await;
    for number in 0..COUNT / 2 {
        write(&store, "jti", &format!("token {number}")).await;
        written.push(Instant::now());
    }
    tokio::time::sleep(WITHIN).await;
    fixture.nats.restart().await;
    fixture.jetstream = fixture.nats.jetstream().await;
    for sidestream in [&fixture.sidestream, &second] {
        eventually(RECOVERY, "the pod follows the bucket again", async || {
            let health = sidestream.admin_json("/health").await;
            health["checks"]["revocations"]["status"] == "ok"
        })
        .await;
    }
    let store = bucket(&fixture).await;
    for number in COUNT / 2..COUNT {
        write(&store, "jti", &format!("token {number}")).await;
        written.push(Instant::now());
    }
    let mut slowest = Duration::ZERO;
    for crowd in &mut crowds {
        while let Some(ended) = within(DEADLINE, "all end", crowd.revoked.join_next()).await {
            let (number, ended, reason) = ended.unwrap();
            assert_eq!(reason, "revoked");
            slowest = slowest.max(ended.saturating_duration_since(written[number]));
        }
    }
    println!("{COUNT} event streams ended within {slowest:?}");
    assert!(slowest <= WITHIN, "{slowest:?}");
    let none_returns = async |sidestream: &Sidestream| {
        for number in 0..COUNT {
            // Failures of one address are limited.
            let address = format!("10.1.{}.{}", number / 250, number % 250);
            let bearer = bearer(&numbered(number));
            let headers = [
                ("Authorization", bearer.as_str()),
                ("X-Forwarded-For", &address),
            ];
            let url = sidestream.url("/core");
            let rejected = http1::request("GET", &url, &headers).await.unwrap();
            let code = rejected.json()["error"]["code"].clone();
            assert_eq!((rejected.status, code), (401, "revoked".into()), "{number}");
        }
    };
    none_returns(&fixture.sidestream).await;
    none_returns(&second).await;
    let client = fixture.nats.client().await;
    client.publish("news.1", "on".into()).await.unwrap();
    client.flush().await.unwrap();
    for crowd in &mut crowds {
        for other in &mut crowd.others {
            let is_own = |event: &Event| !event.name.starts_with("sidestream.");
            let events = other.until(is_own).await;
            assert_eq!(events.last().unwrap().data, "on");
        }
    }
    drop((crowds, second));
    fixture.sidestream.terminate();
    for _ in 0..2 {
        let restarted = pod(&fixture.nats, CORE).await;
        none_returns(&restarted).await;
    }
}
