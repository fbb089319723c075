//! A thousand event streams that begin in the middle, with heartbeats, gaps, resumes and a drain:
//! every one of them is decoded to its end, and no event is lost or repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use testkit::wait::{DEADLINE, eventually};

use super::{Fixture, Received, decode, open, payload, read_to_end};

const CLIENTS: usize = 125;
const SESSIONS: usize = 1000;

/// An event stream ends after half a second and the client resumes at its id.
const ROUTES: &str = r#"
routes:
  - path: /orders
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    compression: { algorithms: [zstd, gzip] }
    heartbeat: 100ms
    max_age: 500ms
    expired: gap
drain: { accept_for: 100ms, spread: 300ms, timeout: 10s }
"#;

/// Client that resumes until the sidecar drains.
struct Client {
    url: String,
    coding: &'static str,
    accept: &'static str,
    last_event_id: String,
    last: Option<u64>,
    gaps: usize,
    heartbeats: usize,
}

impl Client {
    fn new(number: usize, url: String) -> Self {
        Self {
            url,
            coding: ["gzip", "zstd"][number % 2],
            accept: ["text/event-stream", "application/x-ndjson"][number / 2 % 2],
            // Some begin with an id that no stream has.
            last_event_id: if number % 10 == 9 {
                "000000-1".to_owned()
            } else {
                String::new()
            },
            last: None,
            gaps: 0,
            heartbeats: 0,
        }
    }

    /// Reads one event stream. Returns the reason of its end; `None` if it was not opened.
    async fn session(&mut self) -> Option<String> {
        let mut headers = vec![("Accept", self.accept), ("Accept-Encoding", self.coding)];
        if !self.last_event_id.is_empty() {
            headers.push(("Last-Event-ID", &self.last_event_id));
        }
        let response = open(&self.url, &headers).await.ok();
        let response = response.filter(|response| response.status == 200)?;
        assert_eq!(
            response.header("content-encoding").as_deref(),
            Some(self.coding)
        );
        let body = read_to_end(response).await;
        let received = Received::of(&decode(self.coding, &body), &self.last_event_id);
        for number in received.numbers {
            assert!(
                self.last.is_none_or(|last| last + 1 == number),
                "{number} after {:?}",
                self.last
            );
            self.last = Some(number);
        }
        self.last_event_id = received.id;
        self.gaps += received.gaps.len();
        self.heartbeats += received.heartbeats;
        Some(received.close.expect("a close event"))
    }
}

#[tokio::test]
async fn no_client_of_a_thousand_joins_receives_broken_bytes() {
    let mut fixture = Fixture::start(ROUTES).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let is_draining = Arc::new(AtomicBool::new(false));
    let sessions = Arc::new(AtomicUsize::new(0));
    let jetstream = fixture.nats.jetstream().await;
    let publisher = tokio::spawn({
        let is_over = is_over.clone();
        async move {
            let mut number = 0;
            while !is_over.load(Ordering::Relaxed) {
                // Single events, and bursts that are appended together.
                for _ in 0..[1, 1, 3, 20][fastrand::usize(..4)] {
                    number += 1;
                    let stored = jetstream.publish("orders.1", payload(number).into());
                    stored.await.unwrap();
                }
                let pause = [1, 5, 20, 150][fastrand::usize(..4)];
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
    });
    let url = fixture.sidestream.url("/orders");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (url, sessions) = (url.clone(), sessions.clone());
            let is_draining = is_draining.clone();
            tokio::spawn(async move {
                let mut client = Client::new(number, url);
                tokio::time::sleep(Duration::from_millis(fastrand::u64(..300))).await;
                loop {
                    match client.session().await.as_deref() {
                        Some("age") => drop(sessions.fetch_add(1, Ordering::Relaxed)),
                        Some("drain") => return client,
                        // It returns to a sidecar that drains.
                        other => {
                            assert!(other.is_none() && is_draining.load(Ordering::Relaxed));
                            return client;
                        }
                    }
                }
            })
        })
        .collect();
    let deadline = 3 * DEADLINE;
    eventually(deadline, "a thousand event streams are read", || async {
        sessions.load(Ordering::Relaxed) >= SESSIONS
            || clients.iter().any(|client| client.is_finished())
    })
    .await;
    is_draining.store(true, Ordering::Relaxed);
    fixture.sidestream.terminate();
    let (mut gaps, mut heartbeats) = (0, 0);
    for client in clients {
        let client = client.await.unwrap();
        assert!(
            client.last.is_some_and(|last| last > 100),
            "{:?}",
            client.last
        );
        gaps += client.gaps;
        heartbeats += client.heartbeats;
    }
    assert!(gaps >= CLIENTS / 10, "{gaps} gaps");
    assert!(heartbeats > 0, "there were pauses");
    is_over.store(true, Ordering::Relaxed);
    publisher.await.unwrap();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
}
