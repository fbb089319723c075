//! The way a feed subscribes, so that nothing is missing after the position at which it begins.

use super::{Place, RepublishTailer};
use crate::nats::connection::ConnectionState;
use crate::nats::jetstream::api::JetStreamError;
use crate::nats::jetstream::consumer;
use crate::nats::republish::Republish;
use crate::nats::republish::distribution::Tap;
use crate::sse::SourceTag;
use crate::subject::FilterSet;

/// A subscription that stands, and the stream as it was then.
pub(super) struct Begun {
    pub(super) tap: Tap,
    pub(super) republish: Republish,
    pub(super) subjects: Vec<String>,
    pub(super) created: i128,
    pub(super) tag: SourceTag,
    /// Everything behind this number comes by the subscription.
    pub(super) head: u64,
    pub(super) seen: ConnectionState,
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
async fn attempt(place: &Place, filters: &FilterSet) -> Result<Option<Begun>, JetStreamError> {
    place.nats.0.links.core.clone().up().await;
    let before = place.state(0).await?;
    let subjects = place.subjects(&before, filters)?;
    let Some(tap) = place.distribution.subscribe(&subjects).await else {
        return Ok(None);
    };
    let seen = stand(place).await;
    // Newer than the subscription: what is stored behind it is sent to us.
    let state = place.state(u64::MAX).await?;
    let Some(republish) = state
        .republish
        .clone()
        .filter(|republish| Some(republish) == before.republish.as_ref())
    else {
        return Ok(None);
    };
    let tag = place.claim(&state)?;
    let (created, head) = (state.created, state.last_seq);
    Ok(Some(Begun {
        tap,
        republish,
        subjects,
        created,
        tag,
        head,
        seen,
    }))
}

/// Returns when the server knows what was subscribed to; with the connection on which it does.
pub(super) async fn stand(place: &Place) -> ConnectionState {
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

impl RepublishTailer {
    /// Subscribes to these subjects in place of those before. True if that was done.
    pub(super) async fn subscribe_to(
        &mut self,
        republish: Republish,
        subjects: Vec<String>,
    ) -> bool {
        self.tap = None;
        let Some(tap) = self.place.distribution.subscribe(&subjects).await else {
            return false;
        };
        (self.tap, self.republish, self.subjects) = (Some(tap), republish, subjects);
        true
    }
}
