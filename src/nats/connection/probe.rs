//! Periodic round trips of requests: a connection that is up and does not answer is noticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::Request;
use async_nats::client::RequestErrorKind;
use bytes::Bytes;

use super::nats_connection::NatsConnection;

/// 10 s between round trips, as often as the library sends a ping.
const EVERY: Duration = Duration::from_secs(10);
/// 1 s before a round trip without an answer is repeated.
const REPEATED: Duration = Duration::from_secs(1);
/// 5 s for each, as long as a request to JetStream waits.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// 2: one may be lost with a connection that is made again, or in a pod that was stopped for a while.
const UNANSWERED_MAX: u32 = 2;

/// Whether round trips are without answers while the connection is up. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Unanswered(Arc<AtomicBool>);

impl Unanswered {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Outcome of one round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Unanswered,
    /// The server rejects the subject: no round trip is possible, and each would be a line in the server's log.
    Denied,
}

/// Makes round trips until one is denied.
///
/// The library's own pings end a connection whose server has gone, after 30 s. They notice nothing of requests that get no
/// answers on a connection that lives.
pub(super) async fn run(mut link: NatsConnection, unanswered: Unanswered) {
    let mut missing = 0;
    loop {
        tokio::time::sleep(if missing == 0 { EVERY } else { REPEATED }).await;
        let generation = link.up().await;
        let outcome = make(&link).await;
        // An outcome of two connections says nothing of either.
        let is_one = link.now().up && link.generation() == generation;
        missing = if outcome == Outcome::Unanswered && is_one {
            missing + 1
        } else {
            0
        };
        unanswered
            .0
            .store(missing >= UNANSWERED_MAX, Ordering::Relaxed);
        if outcome == Outcome::Denied {
            tracing::debug!(
                "requests on the control connection are not checked: publishing to our inbox is not permitted"
            );
            return;
        }
    }
}

/// A request to an inbox without a subscription: the server itself answers that there are no responders.
async fn make(link: &NatsConnection) -> Outcome {
    let client = link.client();
    let subject = client.new_inbox();
    let request = Request::new().payload(Bytes::new()).timeout(Some(DEADLINE));
    tokio::select! {
        answer = client.send_request(subject.clone(), request) => match answer.map_err(|error| error.kind()) {
            Ok(_) | Err(RequestErrorKind::NoResponders) => Outcome::Answered,
            Err(_) => Outcome::Unanswered,
        },
        () = link.denied(&subject, 0) => Outcome::Denied,
    }
}
