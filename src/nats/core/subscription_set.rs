//! Subscriptions of one task, with one queue for the messages of all of them.
//!
//! Each subscription has a key, and each message has the key of its subscription. One queue keeps
//! the order in which the server sent the messages, and costs the same for one subject as for
//! thousands.

use std::collections::HashMap;
use std::hash::Hash;
use std::marker::PhantomData;

use async_nats::{
    Client, GroupSender, GroupSubscription, Message, SubscribeError, SubscriberGroup,
};

use crate::feed::SubscriptionKey;

/// Key of a subscription, as the library carries it.
pub(crate) trait Key: Copy + Eq + Hash {
    /// The same key as a number.
    fn tag(self) -> u128;

    /// Key of this number.
    fn of_tag(tag: u128) -> Self;
}

/// A set of subscriptions and their messages.
pub(crate) struct SubscriptionSet<K> {
    group: SubscriberGroup,
    /// Dropping a subscription unsubscribes.
    subscriptions: HashMap<K, GroupSubscription>,
}

/// Subscribes for a set. Cheap to clone.
pub(crate) struct SetSubscriber<K> {
    sender: GroupSender,
    key: PhantomData<K>,
}

impl<K: Key> SubscriptionSet<K> {
    /// Creates an empty set of this client.
    pub(crate) fn new(client: &Client) -> Self {
        Self {
            group: client.subscriber_group(),
            subscriptions: HashMap::new(),
        }
    }

    /// Returns a handle that subscribes for this set.
    pub(crate) fn subscriber(&self) -> SetSubscriber<K> {
        SetSubscriber {
            sender: self.group.sender().clone(),
            key: PhantomData,
        }
    }

    /// Returns true if the client has ended, and with it every subscription.
    pub(crate) fn has_ended(&self) -> bool {
        self.group.sender().has_ended()
    }

    pub(crate) fn add(&mut self, key: K, subscription: GroupSubscription) {
        self.subscriptions.insert(key, subscription);
    }

    /// Ends a subscription. Messages that have arrived may still follow.
    pub(crate) fn remove(&mut self, key: K) {
        self.subscriptions.remove(&key);
    }

    /// Returns the next message. Cancel safe.
    pub(crate) async fn next(&mut self) -> (K, Message) {
        let (tag, message) = self.group.next().await;
        (K::of_tag(tag), message)
    }

    /// Returns the next message if it has arrived already.
    pub(crate) fn ready(&mut self) -> Option<(K, Message)> {
        let (tag, message) = self.group.try_next()?;
        Some((K::of_tag(tag), message))
    }

    /// Ends every subscription.
    pub(crate) async fn end(self) {
        for subscription in self.subscriptions.into_values() {
            if subscription.unsubscribe().await.is_err() {
                break; // The client has ended, and every subscription with it.
            }
        }
    }
}

impl<K: Key> SetSubscriber<K> {
    /// Subscribes to a subject.
    ///
    /// # Errors
    /// [`SubscribeError`] if the client has ended.
    pub(crate) async fn subscribe(
        &self,
        key: K,
        subject: &str,
    ) -> Result<GroupSubscription, SubscribeError> {
        self.sender.subscribe(subject.to_owned(), key.tag()).await
    }
}

impl Key for SubscriptionKey {
    fn tag(self) -> u128 {
        self.into()
    }

    fn of_tag(tag: u128) -> Self {
        tag.into()
    }
}
