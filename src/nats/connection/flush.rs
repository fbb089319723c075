//! Flush: waits until the server has processed everything that was sent before on one connection.
//!
//! One task per connection subscribes to an inbox and publishes a number to it. NATS processes the
//! commands of a connection in order, so when the number comes back, every earlier SUB, UNSUB and
//! PUB has been processed. All callers that wait at the same time share one round trip. After
//! [`FLUSH_TIMEOUT`] the callers continue without it.

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot};

use crate::nats::connection::NatsConnection;

/// 2 s: maximum time of a round trip; callers then continue without it.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Handle to the flush task of one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ServerFlush(mpsc::Sender<oneshot::Sender<()>>);

impl ServerFlush {
    /// Starts the flush task of this connection.
    pub(crate) fn new(connection: NatsConnection) -> Self {
        // 1024 callers wait at a time; further callers wait in `send`.
        let (requests, waiting) = mpsc::channel(1024);
        tokio::spawn(serve(connection, waiting));
        Self(requests)
    }

    /// Returns when the server has processed everything sent before the call, or after 2 s.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            // An error means that the flush task has ended with the process.
            flushed.await.ok();
        }
    }
}

async fn serve(connection: NatsConnection, mut waiting: mpsc::Receiver<oneshot::Sender<()>>) {
    let inbox = connection.client().new_inbox();
    let mut answers = None;
    let mut number: u64 = 0;
    while let Some(first) = waiting.recv().await {
        let mut waiting_now = vec![first];
        while let Ok(next) = waiting.try_recv() {
            waiting_now.push(next);
        }
        number += 1;
        if tokio::time::timeout(
            FLUSH_TIMEOUT,
            round_trip(&connection, &inbox, &mut answers, number),
        )
        .await
        .is_err()
        {
            tracing::debug!("NATS flush timed out");
        }
        for done in waiting_now {
            // The caller may have stopped waiting.
            done.send(()).ok();
        }
    }
}

/// Publishes a message to our inbox and waits for it. If publishing is not permitted, the
/// permission violation has the same position in the order of commands and is as good.
async fn round_trip(
    connection: &NatsConnection,
    inbox: &str,
    subscribed: &mut Option<Subscriber>,
    number: u64,
) {
    let text = number.to_string();
    let known = connection.state().denials(inbox);
    if subscribed.is_none() {
        *subscribed = connection.client().subscribe(inbox.to_owned()).await.ok();
    }
    // Without a subscription the client has ended; the next client repeats what waits for the
    // flush.
    let Some(answers) = subscribed else { return };
    if connection
        .client()
        .publish(inbox.to_owned(), text.clone().into())
        .await
        .is_err()
    {
        return;
    }
    let answered = async {
        while let Some(answer) = answers.next().await {
            if answer.payload == text {
                return true;
            }
        }
        false
    };
    let alive = tokio::select! {
        alive = answered => alive,
        () = connection.wait_denied(inbox, known) => true,
    };
    if !alive {
        *subscribed = None;
    }
}
