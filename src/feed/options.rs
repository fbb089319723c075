//! Options of a feed, set by its route: event names, tiers and the limits of the window.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::encoding::{Encoding, EventParts, Framing};
use crate::event::{Event, EventName, Tier};
use crate::subject::template::SubjectTokens;
use crate::subject::{Filter, TextTemplate};

use super::Limits;
use super::encoded::EncodedEvent;

/// Options of a feed. Feeds with equal options share the encodings under their event names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FeedOptions {
    /// Name of events that have none of their own.
    pub event: Option<TextTemplate>,
    /// Tiers of events without a tier of their own; the first matching filter applies.
    pub priority: Vec<(Filter, Tier)>,
    /// Limits of the window.
    pub window: Limits,
}

/// Event to be appended to a window.
#[derive(Debug)]
pub(super) struct Appended {
    pub(super) encoded: Arc<EncodedEvent>,
    /// Encoding under the name that the route gives the event, if it does.
    pub(super) named: Option<Arc<Encoding>>,
    pub(super) tier: Tier,
}

/// Encodings of one batch under the routes' event names: one per event and options.
#[derive(Debug, Default)]
pub(super) struct Named(HashMap<(*const FeedOptions, usize), Arc<Encoding>>);

impl Named {
    /// Returns an event as a route shows it. `nth` is its index in the batch.
    pub(super) fn show(
        &mut self,
        encoded: &Arc<EncodedEvent>,
        options: &Arc<FeedOptions>,
        nth: usize,
    ) -> Appended {
        let named = options.renames(&encoded.event).then(|| {
            let key = (Arc::as_ptr(options), nth);
            self.0
                .entry(key)
                .or_insert_with(|| Arc::new(options.frame(encoded)))
                .clone()
        });
        Appended {
            encoded: encoded.clone(),
            named,
            tier: options.tier(&encoded.event),
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
    pub(super) fn frame(&self, encoded: &EncodedEvent) -> Encoding {
        self.named(encoded).unwrap_or_else(|| encoded.frame.clone())
    }

    /// Encoding under the name that the route gives the event, if it does.
    pub(super) fn named(&self, encoded: &EncodedEvent) -> Option<Encoding> {
        let event = &encoded.event;
        if !self.renames(event) {
            return None;
        }
        let name = self.name(event);
        let parts = EventParts {
            name: name.as_deref(),
            data: encoded.data(),
            ..EventParts::of(event)
        };
        Some(Framing::STORED.encoder().event(parts, encoded.envelope()))
    }

    /// True if the route names this event.
    pub(super) fn renames(&self, event: &Event) -> bool {
        self.event.is_some() && event.name.is_none()
    }

    /// Returns the event as this route shows it.
    pub(super) fn show(&self, encoded: Arc<EncodedEvent>) -> Appended {
        let (named, tier) = (
            self.named(&encoded).map(Arc::new),
            self.tier(&encoded.event),
        );
        Appended {
            encoded,
            named,
            tier,
        }
    }

    /// Tier on this route: the event's own, or from the rules, or normal.
    #[must_use]
    pub fn tier(&self, event: &Event) -> Tier {
        let ruled = || {
            self.priority
                .iter()
                .find(|(filter, _)| filter.matches(&event.subject))
                .map(|(_, tier)| *tier)
        };
        event.tier.or_else(ruled).unwrap_or_default()
    }
}
