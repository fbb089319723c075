//! The messages of many subscriptions in one stream, each with the key of its subscription.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_nats::{Client, Message, SubscribeError, Subscriber};
use futures_util::stream::SelectAll;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::sync::oneshot;

use crate::feed::SubscriptionKey;
use crate::subject::Filter;

/// A subscription that was made. Dropping it ends it.
pub(super) struct Made(Subscriber);

/// Subscriptions and what they bring.
#[derive(Default)]
pub(super) struct Inlet {
    all: SelectAll<Keyed>,
    /// Dropping one ends its subscription.
    holds: HashMap<SubscriptionKey, oneshot::Sender<()>>,
}

/// One subscription; its last item is none.
struct Keyed {
    key: SubscriptionKey,
    subscriber: Option<Subscriber>,
    hold: oneshot::Receiver<()>,
}

impl Inlet {
    /// Subscribes to a filter.
    pub(super) async fn subscribe(client: &Client, filter: &Filter) -> Result<Made, SubscribeError> {
        client.subscribe(filter.to_string()).await.map(Made)
    }

    pub(super) fn add(&mut self, key: SubscriptionKey, made: Made) {
        let (sender, hold) = oneshot::channel();
        self.all.push(Keyed { key, subscriber: Some(made.0), hold });
        self.holds.insert(key, sender);
    }

    /// Ends a subscription.
    pub(super) fn remove(&mut self, key: SubscriptionKey) {
        self.holds.remove(&key);
    }

    /// The next message; none when the client has ended. Cancellation safe.
    pub(super) async fn next(&mut self) -> Option<(SubscriptionKey, Message)> {
        loop {
            match self.all.next().await {
                Some((key, Some(message))) => return Some((key, message)),
                Some((_, None)) => return None,
                // Without a subscription.
                None => std::future::pending().await,
            }
        }
    }

    /// The next message if it is there already.
    pub(super) fn ready(&mut self) -> Option<(SubscriptionKey, Message)> {
        let (key, message) = self.all.next().now_or_never()??;
        // The end of the client shows again at the next call of `next`: all its subscriptions end.
        Some((key, message?))
    }

    /// Ends every subscription.
    pub(super) async fn end(mut self) {
        for keyed in self.all.iter_mut() {
            let Some(subscriber) = &mut keyed.subscriber else { continue };
            if subscriber.unsubscribe().await.is_err() {
                break; // The connection is closed, and every subscription with it.
            }
        }
    }
}

impl Stream for Keyed {
    type Item = (SubscriptionKey, Option<Message>);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let key = self.key;
        if self.hold.poll_unpin(context).is_ready() {
            return Poll::Ready(None);
        }
        let Some(subscriber) = &mut self.subscriber else { return Poll::Ready(None) };
        let message = std::task::ready!(subscriber.poll_next_unpin(context));
        if message.is_none() {
            self.subscriber = None;
        }
        Poll::Ready(Some((key, message)))
    }
}
