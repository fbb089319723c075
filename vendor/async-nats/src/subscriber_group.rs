//! Subscriptions with one queue: for a client of thousands of subjects, one queue is read faster
//! than thousands, and messages keep the order of the connection.

use std::sync::Arc;
use std::task::{Context, Poll};

use portable_atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

use crate::client::{Client, Statistics, SubscribeError, SubscribeErrorKind};
use crate::subject::ToSubject;
use crate::{drop_command, drop_unsubscribe_command, Command, Message, UnsubscribeError};

/// Queue of the messages of all subscriptions of a group.
#[derive(Debug)]
pub struct SubscriberGroup {
    sender: GroupSender,
    receiver: mpsc::Receiver<(u128, Message)>,
    statistics: Arc<Statistics>,
}

/// Subscribes for a group. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GroupSender {
    client: Client,
    commands: mpsc::Sender<Command>,
    next_subscription_id: Arc<AtomicU64>,
    messages: mpsc::Sender<(u128, Message)>,
}

/// One subscription of a group. Dropping it unsubscribes.
#[derive(Debug)]
pub struct GroupSubscription {
    sid: u64,
    commands: mpsc::Sender<Command>,
}

impl SubscriberGroup {
    pub(crate) fn new(
        client: Client,
        commands: mpsc::Sender<Command>,
        next_subscription_id: Arc<AtomicU64>,
        capacity: usize,
        statistics: Arc<Statistics>,
    ) -> Self {
        let (messages, receiver) = mpsc::channel(capacity);
        Self {
            sender: GroupSender {
                client,
                commands,
                next_subscription_id,
                messages,
            },
            receiver,
            statistics,
        }
    }

    /// Returns a handle that subscribes for this group.
    pub fn sender(&self) -> &GroupSender {
        &self.sender
    }

    /// Returns the next message and the tag of its subscription. Messages of ended subscriptions
    /// may follow their end.
    pub async fn next(&mut self) -> (u128, Message) {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Polls for the next message.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<(u128, Message)> {
        match self.receiver.poll_recv(context) {
            Poll::Ready(Some(received)) => Poll::Ready(self.taken(received)),
            // `None` does not occur: this group has a sender of its own.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Returns the next message if it has arrived already.
    pub fn try_next(&mut self) -> Option<(u128, Message)> {
        let received = self.receiver.try_recv().ok()?;
        Some(self.taken(received))
    }

    fn taken(&self, received: (u128, Message)) -> (u128, Message) {
        let bytes = received.1.pending_bytes();
        self.statistics.pending_bytes.sub(bytes, Ordering::Relaxed);
        received
    }
}

impl Drop for SubscriberGroup {
    fn drop(&mut self) {
        self.receiver.close();
        while self.try_next().is_some() {}
    }
}

impl GroupSender {
    /// Subscribes to a subject. Messages carry the tag.
    pub async fn subscribe<S: ToSubject>(
        &self,
        subject: S,
        tag: u128,
    ) -> Result<GroupSubscription, SubscribeError> {
        let subject = self
            .client
            .validate_subscribe_subject(subject)
            .map_err(|error| {
                SubscribeError::with_source(SubscribeErrorKind::InvalidSubject, error)
            })?;
        let sid = self.next_subscription_id.fetch_add(1, Ordering::Relaxed);
        let command = Command::Subscribe {
            sid,
            subject,
            queue_group: None,
            sender: SubscriptionSender::Group(tag, self.messages.clone()),
        };
        self.commands.send(command).await?;
        Ok(GroupSubscription {
            sid,
            commands: self.commands.clone(),
        })
    }

    /// Returns true if the client has ended, and with it every subscription of the group.
    pub fn has_ended(&self) -> bool {
        self.commands.is_closed()
    }
}

impl GroupSubscription {
    /// Unsubscribes: returns when the command is accepted. Dropping is best-effort.
    pub async fn unsubscribe(self) -> Result<(), UnsubscribeError> {
        let command = drop_unsubscribe_command(self.sid);
        Ok(self.commands.send(command).await?)
    }
}

impl Drop for GroupSubscription {
    fn drop(&mut self) {
        drop_command(&self.commands, drop_unsubscribe_command(self.sid));
    }
}

/// Sending half of a subscription's queue.
#[derive(Debug)]
pub(crate) enum SubscriptionSender {
    One(mpsc::Sender<Message>),
    Group(u128, mpsc::Sender<(u128, Message)>),
}

/// Failure of [`SubscriptionSender::try_send`].
#[derive(Debug)]
pub(crate) enum NotSent {
    Full,
    Closed,
}

impl SubscriptionSender {
    pub(crate) fn try_send(&self, message: Message) -> Result<(), NotSent> {
        match self {
            Self::One(sender) => sender.try_send(message).map_err(NotSent::from),
            Self::Group(tag, sender) => sender.try_send((*tag, message)).map_err(NotSent::from),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Group(_, sender) => sender.is_closed(),
        }
    }
}

impl<T> From<mpsc::error::TrySendError<T>> for NotSent {
    fn from(error: mpsc::error::TrySendError<T>) -> Self {
        match error {
            mpsc::error::TrySendError::Full(_) => Self::Full,
            mpsc::error::TrySendError::Closed(_) => Self::Closed,
        }
    }
}
