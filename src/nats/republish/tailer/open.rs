//! Subscribes a feed so that no message is missing after its start position.
//!
//! Order: subscribe, flush (the server has processed the subscription), then read the stream's
//! state. Every message stored after that state is delivered by the subscription.

use crate::event::Position;
use crate::nats::connection::ConnectionState;
use crate::nats::jetstream::api::JetStreamError;
use crate::nats::jetstream::consumer;
use crate::nats::republish::context::StreamContext;
use crate::nats::republish::distribution::FeedReceiver;
use crate::nats::republish::mapping::Republish;
use crate::subject::FilterSet;

/// An active subscription, and the stream's state at that time.
pub(super) struct Subscribed {
    pub(super) receiver: FeedReceiver,
    pub(super) republish: Republish,
    pub(super) subjects: Vec<String>,
    pub(super) created: i128,
    /// Every message after this position is delivered by the subscription.
    pub(super) head: Position,
    pub(super) seen: ConnectionState,
}

/// Subscribes and retries until it succeeds.
pub(super) async fn subscribe(context: &StreamContext, filters: &FilterSet) -> Subscribed {
    let mut attempts = 0;
    loop {
        match attempt(context, filters).await {
            Ok(Some(subscribed)) => return subscribed,
            Ok(None) => {}
            Err(error) => {
                let why = error.explain(&context.config.name);
                tracing::warn!(stream = context.config.name, %filters, error = why, "subscribing to republished stream failed; retrying");
            }
        }
        tokio::time::sleep(consumer::retry_delay(attempts)).await;
        attempts += 1;
    }
}

/// Returns `None` if the stream or the connection changed meanwhile.
async fn attempt(
    context: &StreamContext,
    filters: &FilterSet,
) -> Result<Option<Subscribed>, JetStreamError> {
    context.nats.0.connections.core.clone().wait_up().await;
    let before = context.state(0).await?;
    let subjects = context.subjects(&before, filters)?;
    let Some(receiver) = context.distribution.subscribe(&subjects).await else {
        return Ok(None);
    };
    let seen = wait_subscribed(context).await;
    // Read after the subscription: every message stored later is delivered to it.
    let state = context.state(u64::MAX).await?;
    let Some(republish) = state
        .republish
        .clone()
        .filter(|republish| Some(republish) == before.republish.as_ref())
    else {
        return Ok(None);
    };
    let tag = context.claim(&state)?;
    Ok(Some(Subscribed {
        receiver,
        republish,
        subjects,
        created: state.created,
        head: state.position_after(state.last_seq, tag),
        seen,
    }))
}

/// Returns when the server has processed the subscriptions, with the state of the connection that
/// confirmed them.
pub(super) async fn wait_subscribed(context: &StreamContext) -> ConnectionState {
    let mut connection = context.nats.0.connections.core.clone();
    loop {
        connection.wait_up().await;
        let before = connection.state();
        context.nats.0.server_flush.flush().await;
        // After a reconnect the client subscribes again by itself, but the flush used the old
        // connection.
        if connection.generation() == before.generation {
            return before;
        }
    }
}
