//! A round trip on one connection: when it is over, the server has done everything that was sent before.

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot};

use crate::nats::connection::NatsConnection;

/// How long a round trip may take before those who wait go on without it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes round trips; everyone who waits at a time shares one.
#[derive(Clone, Debug)]
pub(crate) struct ServerFlush(mpsc::Sender<oneshot::Sender<()>>);

impl ServerFlush {
    /// Round trips on this connection.
    pub(crate) fn new(link: NatsConnection) -> Self {
        // 1024: who does not fit waits to wait.
        let (pass, waiting) = mpsc::channel(1024);
        tokio::spawn(serve(link, waiting));
        Self(pass)
    }

    /// Returns when the server has done what was sent before the call, or after 2 s.
    pub(crate) async fn pass(&self) {
        let (done, passed) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            // An error means that nobody makes round trips any more: the process ends.
            passed.await.ok();
        }
    }
}

async fn serve(link: NatsConnection, mut waiting: mpsc::Receiver<oneshot::Sender<()>>) {
    let inbox = link.client().new_inbox();
    let mut answers = None;
    let mut number: u64 = 0;
    while let Some(first) = waiting.recv().await {
        let mut passing = vec![first];
        while let Ok(next) = waiting.try_recv() {
            passing.push(next);
        }
        number += 1;
        if tokio::time::timeout(PATIENCE, round_trip(&link, &inbox, &mut answers, number))
            .await
            .is_err()
        {
            tracing::debug!("round trip to nats not over in time");
        }
        for done in passing {
            // Who has gone away is not told.
            done.send(()).ok();
        }
    }
}

/// Sends a message to ourselves. Where that is not permitted, the refusal is as good an answer.
async fn round_trip(
    link: &NatsConnection,
    inbox: &str,
    subscribed: &mut Option<Subscriber>,
    number: u64,
) {
    let text = number.to_string();
    let known = link.now().denials(inbox);
    if subscribed.is_none() {
        *subscribed = link.client().subscribe(inbox.to_owned()).await.ok();
    }
    // Without: the client is over, and everything that waits for it will be asked of the next one.
    let Some(answers) = subscribed else { return };
    if link
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
        () = link.denied(inbox, known) => true,
    };
    if !alive {
        *subscribed = None;
    }
}
