//! The messages of many subscriptions in one stream, each with the key of its subscription.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_nats::{Client, Message, SubscribeError, Subscriber};
use futures_util::stream::SelectAll;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::sync::oneshot;

/// A subscription that was made. Dropping it ends it.
pub(crate) struct Made(Subscriber);

/// Subscriptions and what they bring.
pub(crate) struct Inlet<K> {
    all: SelectAll<Keyed<K>>,
    /// Dropping one ends its subscription.
    holds: HashMap<K, oneshot::Sender<()>>,
}

/// One subscription; its last item is none.
struct Keyed<K> {
    key: K,
    subscriber: Option<Subscriber>,
    hold: oneshot::Receiver<()>,
}

/// Subscribes to a subject.
pub(crate) async fn subscribe(client: &Client, subject: &str) -> Result<Made, SubscribeError> {
    client.subscribe(subject.to_owned()).await.map(Made)
}

impl<K: Copy + Unpin> Default for Inlet<K> {
    fn default() -> Self {
        Self {
            all: SelectAll::new(),
            holds: HashMap::new(),
        }
    }
}

impl<K: Copy + Eq + Hash + Unpin> Inlet<K> {
    pub(crate) fn add(&mut self, key: K, made: Made) {
        let (sender, hold) = oneshot::channel();
        self.all.push(Keyed {
            key,
            subscriber: Some(made.0),
            hold,
        });
        self.holds.insert(key, sender);
    }

    /// Ends a subscription.
    pub(crate) fn remove(&mut self, key: K) {
        self.holds.remove(&key);
    }

    /// The next message; none when the client has ended. Cancellation safe.
    pub(crate) async fn next(&mut self) -> Option<(K, Message)> {
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
    pub(crate) fn ready(&mut self) -> Option<(K, Message)> {
        // Not as far as the runtime's budget only: all that the connection has handed over is taken together.
        let (key, message) = tokio::task::unconstrained(self.all.next()).now_or_never()??;
        // The end of the client shows again at the next call of `next`: all its subscriptions end.
        Some((key, message?))
    }

    /// Ends every subscription.
    pub(crate) async fn end(mut self) {
        for keyed in self.all.iter_mut() {
            let Some(subscriber) = &mut keyed.subscriber else {
                continue;
            };
            if subscriber.unsubscribe().await.is_err() {
                break; // The connection is closed, and every subscription with it.
            }
        }
    }
}

impl<K: Copy + Unpin> Stream for Keyed<K> {
    type Item = (K, Option<Message>);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let key = self.key;
        if self.hold.poll_unpin(context).is_ready() {
            return Poll::Ready(None);
        }
        let Some(subscriber) = &mut self.subscriber else {
            return Poll::Ready(None);
        };
        let message = std::task::ready!(subscriber.poll_next_unpin(context));
        if message.is_none() {
            self.subscriber = None;
        }
        Poll::Ready(Some((key, message)))
    }
}
