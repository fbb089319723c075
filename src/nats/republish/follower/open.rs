//! How a feed's subscription is made, so that nothing is missing behind where the feed begins.

use async_nats::{SubscribeError, Subscriber};

use super::{Follower, Place};
use crate::nats::api::Trouble;
use crate::nats::client::LinkState;
use crate::nats::consumer;
use crate::nats::republish::Republish;
use crate::sse::Tag;
use crate::subject::FilterSet;

/// A subscription that stands, and the stream as it was then.
pub(super) struct Begun {
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) republish: Republish,
    pub(super) subjects: Vec<String>,
    pub(super) created: i128,
    pub(super) tag: Tag,
    /// Everything behind this number comes by the subscription.
    pub(super) head: u64,
    pub(super) seen: LinkState,
}

/// Subscribes, as often as it takes.
pub(super) async fn begin(place: &Place, filters: &FilterSet) -> Begun {
    let mut attempts = 0;
    loop {
        match attempt(place, filters).await {
            Ok(Some(begun)) => return begun,
            Ok(None) => {}
            Err(trouble) => {
                let why = trouble.explain(&place.config.name);
                tracing::warn!(stream = place.config.name, %filters, why, "feed of a republished stream not begun yet");
            }
        }
        tokio::time::sleep(consumer::pause(attempts)).await;
        attempts += 1;
    }
}

/// Nothing when the stream or the connection became another one meanwhile.
async fn attempt(place: &Place, filters: &FilterSet) -> Result<Option<Begun>, Trouble> {
    place.nats.0.links.core.clone().up().await;
    let before = place.state(0).await?;
    let subjects = place.subjects(&before, filters)?;
    let Ok(subscribers) = subscribe(place, &subjects).await else { return Ok(None) };
    let seen = stand(place).await;
    // Newer than the subscription: what is stored behind it is sent to us.
    let state = place.state(u64::MAX).await?;
    let Some(republish) = state.republish.clone().filter(|republish| Some(republish) == before.republish.as_ref())
    else {
        return Ok(None);
    };
    let tag = place.claim(&state)?;
    let (created, head) = (state.created, state.last_seq);
    Ok(Some(Begun { subscribers, republish, subjects, created, tag, head, seen }))
}

async fn subscribe(place: &Place, subjects: &[String]) -> Result<Vec<Subscriber>, SubscribeError> {
    let client = place.nats.0.links.core.client();
    let mut subscribers = Vec::with_capacity(subjects.len());
    for subject in subjects {
        subscribers.push(client.subscribe(subject.clone()).await?);
    }
    Ok(subscribers)
}

/// Returns when the server knows what was subscribed to; with the connection on which it does.
pub(super) async fn stand(place: &Place) -> LinkState {
    let mut link = place.nats.0.links.core.clone();
    loop {
        link.up().await;
        let before = link.now();
        place.nats.0.barrier.pass().await;
        // With another connection the client subscribes again by itself, but the round trip was of the old one.
        if link.generation() == before.generation {
            return before;
        }
    }
}

impl Follower {
    /// Subscribes anew, to these subjects. True if that was done.
    pub(super) async fn subscribe_to(&mut self, republish: Republish, subjects: Vec<String>) -> bool {
        self.unsubscribe().await;
        let Ok(subscribers) = subscribe(&self.place, &subjects).await else { return false };
        (self.subscribers, self.republish, self.subjects) = (subscribers, republish, subjects);
        true
    }

    pub(super) async fn unsubscribe(&mut self) {
        for mut subscriber in self.subscribers.drain(..) {
            if subscriber.unsubscribe().await.is_err() {
                break; // The connection is closed, and every subscription with it.
            }
        }
    }
}
