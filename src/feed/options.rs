//! Options of a feed, set by its route: framing, event names, tiers and the limits of the window.

use std::borrow::Cow;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::encoding::{Encoding, Framing};
use crate::event::{Event, EventName, Position, Tier};
use crate::payload::Converter;
use crate::subject::template::SubjectTokens;
use crate::subject::{Filter, TextTemplate};

use super::compression::Compression;
use super::encoded::EncodedEvent;
use super::{GapReason, Limits};

/// Options of a feed. Feeds with equal options share the encodings under their event names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FeedOptions {
    /// Framing of all event streams that read the feed, one that encodes events
    /// ([`Framing::of_events`]).
    pub framing: Framing,
    /// Compression, in a framing that is sent as a response body. `None`: as encoded.
    pub compression: Option<Compression>,
    /// Name of events that have none of their own.
    pub event: Option<TextTemplate>,
    /// Version and format of the payloads. `None`: as published.
    pub converter: Option<Arc<Converter>>,
    /// Tiers of events without a tier of their own; the first matching filter applies.
    pub priority: Vec<(Filter, Tier)>,
    /// Limits of the window.
    pub window: Limits,
    /// Readers stop at an event that ends them.
    pub is_finite: bool,
    /// Minimum idle period after which a feed that exists for its readers is removed. For readers
    /// that leave with each answer and return.
    pub linger_min: Duration,
}

/// A position of the source, as the feeds of a route show it.
#[derive(Clone, Debug)]
pub(super) enum Shown {
    /// The event.
    Event(FeedEvent),
    /// A gap: the payload of the event has no valid form in the version of the feeds.
    Gap {
        encoded: Arc<EncodedEvent>,
        reason: GapReason,
    },
}

/// Event as the feeds of a route show it.
#[derive(Clone, Debug)]
pub(super) struct FeedEvent {
    pub(super) encoded: Arc<EncodedEvent>,
    /// Encoding under the name that the route gives the event, if it does.
    pub(super) named: Option<Arc<Encoding>>,
    pub(super) tier: Tier,
}

impl FeedEvent {
    /// Encoding on this route, in the framing of its feed. It may be made now.
    pub(super) fn encoding(&self, framing: Framing) -> &Encoding {
        self.named
            .as_deref()
            .unwrap_or_else(|| self.encoded.encoding(framing))
    }

    /// Encoding on this route, if it was made.
    pub(super) fn known_encoding(&self, framing: Framing) -> Option<&Encoding> {
        self.named
            .as_deref()
            .or_else(|| self.encoded.known_encoding(framing))
    }

    /// Bytes of the event that count in limits and lag: those of the stored encoding, because
    /// another one may not be made yet.
    pub(super) fn counted_bytes(&self) -> u64 {
        self.encoded.stored().len() as u64
    }

    pub(super) fn position(&self) -> Position {
        self.encoded.event.position
    }

    /// Time of receipt from NATS.
    pub(super) fn received(&self) -> Instant {
        self.encoded.event.received
    }

    /// Number of its sample, if traces record it.
    pub(super) fn sample(&self) -> Option<NonZeroU32> {
        self.encoded.event.sample
    }
}

/// Encodings of one batch that feeds need beside the stored ones.
#[derive(Debug, Default)]
pub(super) struct BatchEncodings {
    /// Under the routes' event names: one per event and options.
    named: HashMap<(*const FeedOptions, usize), Arc<Encoding>>,
    /// Events, by index in the batch, that feeds of another framing have received.
    further: Vec<(usize, Framing)>,
    /// Events with a converted payload that feeds of another framing have received.
    converted: Vec<(Arc<EncodedEvent>, Framing)>,
}

impl BatchEncodings {
    /// Returns an event as a route shows it. `nth` is its index in the batch.
    pub(super) fn show(
        &mut self,
        encoded: &Arc<EncodedEvent>,
        options: &Arc<FeedOptions>,
        nth: usize,
    ) -> Shown {
        let event = match options.in_version(encoded.clone()) {
            Ok(event) => event,
            Err(reason) => {
                let encoded = encoded.clone();
                return Shown::Gap { encoded, reason };
            }
        };
        let named = options.renames(&event.event).then(|| {
            let key = (Arc::as_ptr(options), nth);
            self.named
                .entry(key)
                .or_insert_with(|| Arc::new(options.encode_named(&event)))
                .clone()
        });
        if let Some(framing) = options.further_framing(&event.event) {
            if Arc::ptr_eq(&event, encoded) {
                self.further.push((nth, framing));
            } else {
                self.converted.push((event.clone(), framing));
            }
        }
        Shown::Event(FeedEvent {
            named,
            tier: options.tier(&event.event),
            encoded: event,
        })
    }

    /// Encodes events in the other framings, before their readers are woken: with no lock held, so
    /// that no reader encodes under the lock of its feed. `nth` returns an event of the batch.
    pub(super) fn encode_further<'e>(self, nth: impl Fn(usize) -> Option<&'e Arc<EncodedEvent>>) {
        for (index, framing) in self.further {
            if let Some(encoded) = nth(index) {
                encoded.encode_ahead(framing);
            }
        }
        for (encoded, framing) in self.converted {
            encoded.encode_ahead(framing);
        }
    }
}

impl FeedOptions {
    /// Event name on this route: the event's own, or filled from the template.
    #[must_use]
    pub fn name<'e>(&self, event: &'e Event) -> Option<Cow<'e, EventName>> {
        if let Some(name) = &event.name {
            return Some(Cow::Borrowed(name));
        }
        let text = self.event.as_ref()?.fill(&SubjectTokens(&event.subject))?;
        EventName::parse(&text).map(Cow::Owned)
    }

    /// Encoding on this route; encoded again only if the route names the event.
    pub(super) fn encoding(&self, encoded: &EncodedEvent) -> Encoding {
        if self.renames(&encoded.event) {
            self.encode_named(encoded)
        } else {
            encoded.encoding(self.framing).clone()
        }
    }

    /// Framing in which the event has to be encoded for readers of the feed, unless the stored
    /// encoding or one of the route's own serves them.
    pub(super) fn further_framing(&self, event: &Event) -> Option<Framing> {
        let is_further = self.framing != Framing::STORED && !self.renames(event);
        is_further.then_some(self.framing)
    }

    /// Encodes an event under the name that the route gives it.
    fn encode_named(&self, encoded: &EncodedEvent) -> Encoding {
        encoded.encode_as(self.name(&encoded.event).as_deref(), self.framing)
    }

    /// True if the route names this event.
    pub(super) fn renames(&self, event: &Event) -> bool {
        self.event.is_some() && event.name.is_none()
    }

    /// Returns the event with its payload in the version of this route, or the reason for a gap in its
    /// place.
    pub(super) fn in_version(
        &self,
        encoded: Arc<EncodedEvent>,
    ) -> Result<Arc<EncodedEvent>, GapReason> {
        match &self.converter {
            None => Ok(encoded),
            Some(converter) => self.converted(converter, &encoded),
        }
    }

    /// Converts an event with the converter of this route. The event that ends an event stream is
    /// left as published if it has no valid form, because a gap would not end it.
    pub(super) fn converted(
        &self,
        converter: &Arc<Converter>,
        encoded: &Arc<EncodedEvent>,
    ) -> Result<Arc<EncodedEvent>, GapReason> {
        match encoded.convert(converter) {
            Err(_) if self.ends(&encoded.event) => Ok(encoded.clone()),
            converted => converted,
        }
    }

    /// True if [`Self::prepare`] has something to do.
    pub(super) fn is_prepared(&self, event: &Event) -> bool {
        self.converter.is_some() || self.further_framing(event).is_some()
    }

    /// Converts an event and encodes it now, with no lock held, so that no reader does it under
    /// one.
    pub(super) fn prepare(&self, encoded: &Arc<EncodedEvent>) {
        if self.is_prepared(&encoded.event)
            && let Ok(event) = self.in_version(encoded.clone())
            && let Some(framing) = self.further_framing(&event.event)
        {
            event.encode_ahead(framing);
        }
    }

    /// Returns the event as this route shows it.
    pub(super) fn show(&self, encoded: Arc<EncodedEvent>) -> Shown {
        let encoded = match &self.converter {
            None => encoded,
            Some(converter) => match self.converted(converter, &encoded) {
                Ok(event) => event,
                Err(reason) => return Shown::Gap { encoded, reason },
            },
        };
        let named = self
            .renames(&encoded.event)
            .then(|| Arc::new(self.encode_named(&encoded)));
        let tier = self.tier(&encoded.event);
        Shown::Event(FeedEvent {
            encoded,
            named,
            tier,
        })
    }

    /// True if the event ends the readers of this feed.
    pub(super) fn ends(&self, event: &Event) -> bool {
        self.is_finite && event.is_end
    }

    /// Tier on this route: the event's own, or from the rules, or normal.
    #[must_use]
    pub fn tier(&self, event: &Event) -> Tier {
        if self.ends(event) {
            // It is never skipped.
            return Tier::Critical;
        }
        let ruled = || {
            self.priority
                .iter()
                .find(|(filter, _)| filter.matches(&event.subject))
                .map(|(_, tier)| *tier)
        };
        event.tier.or_else(ruled).unwrap_or_default()
    }
}
