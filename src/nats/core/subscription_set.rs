//! Merges the messages of many subscriptions into one stream, each with its subscription's key.
//!
//! Built on `SelectAll`. Removing a key drops a oneshot sender, which ends that subscription's
//! stream at its next poll and unsubscribes.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_nats::{Client, Message, SubscribeError, Subscriber};
use futures_util::stream::SelectAll;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::sync::oneshot;

/// A subscription of our own. Dropping it unsubscribes.
pub(crate) struct OwnedSubscription(Subscriber);

/// A set of subscriptions and their messages.
pub(crate) struct SubscriptionSet<K> {
    all: SelectAll<KeyedSubscription<K>>,
    /// Dropping a sender ends its subscription.
    cancels: HashMap<K, oneshot::Sender<()>>,
}

/// One subscription. Its last item is `None`.
struct KeyedSubscription<K> {
    key: K,
    subscriber: Option<Subscriber>,
    cancel: oneshot::Receiver<()>,
}

/// Subscribes to a subject.
pub(crate) async fn subscribe(
    client: &Client,
    subject: &str,
) -> Result<OwnedSubscription, SubscribeError> {
    client
        .subscribe(subject.to_owned())
        .await
        .map(OwnedSubscription)
}

impl<K: Copy + Unpin> Default for SubscriptionSet<K> {
    fn default() -> Self {
        Self {
            all: SelectAll::new(),
            cancels: HashMap::new(),
        }
    }
}

impl<K: Copy + Eq + Hash + Unpin> SubscriptionSet<K> {
    pub(crate) fn add(&mut self, key: K, subscribed: OwnedSubscription) {
        let (sender, cancel) = oneshot::channel();
        self.all.push(KeyedSubscription {
            key,
            subscriber: Some(subscribed.0),
            cancel,
        });
        self.cancels.insert(key, sender);
    }

    /// Ends a subscription.
    pub(crate) fn remove(&mut self, key: K) {
        self.cancels.remove(&key);
    }

    /// Returns the next message, or `None` if the client has ended. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<(K, Message)> {
        loop {
            match self.all.next().await {
                Some((key, Some(message))) => return Some((key, message)),
                Some((_, None)) => return None,
                // The set is empty.
                None => std::future::pending().await,
            }
        }
    }

    /// Returns the next message if it has arrived already.
    pub(crate) fn ready(&mut self) -> Option<(K, Message)> {
        // Not limited by the runtime's budget: all that the connection has read forms one batch.
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

impl<K: Copy + Unpin> Stream for KeyedSubscription<K> {
    type Item = (K, Option<Message>);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let key = self.key;
        if self.cancel.poll_unpin(context).is_ready() {
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
