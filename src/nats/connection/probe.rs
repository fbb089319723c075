//! Probe of the control connection: detects a connection that is up but does not answer requests.
//!
//! Every 10 s a request is sent to a subject without a subscriber; the server itself answers "no
//! responders". Two unanswered requests in a row set [`Unanswered`], and the supervisor fails the
//! health check `nats`. The library's own pings end a connection whose server is gone, within 30 s;
//! they do not detect unanswered requests on a connection that lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::Request;
use async_nats::client::RequestErrorKind;
use bytes::Bytes;

use super::nats_connection::NatsConnection;

/// 10 s between probes, the same as the library's ping interval.
const INTERVAL: Duration = Duration::from_secs(10);
/// 1 s before an unanswered probe is repeated.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// 5 s for each probe, the same as for a request to JetStream.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// 2 in a row: one may be lost with a reconnect, or in a pod that was paused for a while.
const UNANSWERED_MAX: u32 = 2;

/// Set while probes are unanswered although the connection is up. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Unanswered(Arc<AtomicBool>);

impl Unanswered {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Outcome of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Unanswered,
    /// The server denies the subject: no probe is possible, and each would be a line in the
    /// server's log.
    Denied,
}

/// Sends probes until one is denied.
pub(super) async fn run(mut connection: NatsConnection, unanswered: Unanswered) {
    let mut unanswered_in_a_row = 0;
    loop {
        tokio::time::sleep(if unanswered_in_a_row == 0 {
            INTERVAL
        } else {
            RETRY_AFTER
        })
        .await;
        let generation = connection.wait_up().await;
        let outcome = round_trip(&connection).await;
        // An outcome that spans a reconnect says nothing about either connection.
        let is_same_connection = connection.state().up && connection.generation() == generation;
        unanswered_in_a_row = if outcome == Outcome::Unanswered && is_same_connection {
            unanswered_in_a_row + 1
        } else {
            0
        };
        unanswered
            .0
            .store(unanswered_in_a_row >= UNANSWERED_MAX, Ordering::Relaxed);
        if outcome == Outcome::Denied {
            tracing::debug!(
                "control connection is not probed: publishing to our inbox is not permitted"
            );
            return;
        }
    }
}

/// Sends a request to an inbox without a subscription: the server answers that there are no
/// responders.
async fn round_trip(connection: &NatsConnection) -> Outcome {
    let client = connection.client();
    let subject = client.new_inbox();
    let request = Request::new().payload(Bytes::new()).timeout(Some(TIMEOUT));
    tokio::select! {
        answer = client.send_request(subject.clone(), request) => match answer.map_err(|error| error.kind()) {
            Ok(_) | Err(RequestErrorKind::NoResponders) => Outcome::Answered,
            Err(_) => Outcome::Unanswered,
        },
        () = connection.wait_denied(&subject, 0) => Outcome::Denied,
    }
}
