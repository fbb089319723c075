//! How a route shows events: their names, their tiers, its window.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::sse::encode::Frame;
use crate::sse::{Event, EventName, Tier};
use crate::subject::template::SubjectTokens;
use crate::subject::{Filter, TextTemplate};

use super::Limits;
use super::encoded::EncodedEvent;

/// What of an event depends on the route that shows it. Feeds of one profile share their encoded events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FeedOptions {
    /// The name of an event that bears none itself.
    pub event: Option<TextTemplate>,
    /// Tiers of events that name none themselves; the first filter that fits decides.
    pub priority: Vec<(Filter, Tier)>,
    /// What of a feed is kept in memory.
    pub window: Limits,
}

/// One event on its way into a window.
#[derive(Debug)]
pub(super) struct Appended {
    pub(super) logged: Arc<EncodedEvent>,
    /// Its encoding under the name that the route gives it, if it gives it one.
    pub(super) named: Option<Arc<Frame>>,
    pub(super) tier: Tier,
}

/// Encodings of one batch under the names that routes give: once for each event and profile.
#[derive(Debug, Default)]
pub(super) struct Named(HashMap<(*const FeedOptions, usize), Arc<Frame>>);

impl Named {
    /// An event as a profile shows it; `place`: which one of the batch it is.
    pub(super) fn show(
        &mut self,
        logged: &Arc<EncodedEvent>,
        profile: &Arc<FeedOptions>,
        place: usize,
    ) -> Appended {
        let named = profile.renames(&logged.event).then(|| {
            let key = (Arc::as_ptr(profile), place);
            self.0
                .entry(key)
                .or_insert_with(|| Arc::new(profile.frame(logged)))
                .clone()
        });
        Appended {
            logged: logged.clone(),
            named,
            tier: profile.tier(&logged.event),
        }
    }
}

impl FeedOptions {
    /// The name under which the route shows an event: its own, else from the template.
    #[must_use]
    pub fn name<'e>(&self, event: &'e Event) -> Option<Cow<'e, EventName>> {
        if let Some(name) = &event.name {
            return Some(Cow::Borrowed(name));
        }
        let text = self.event.as_ref()?.fill(&SubjectTokens(&event.subject))?;
        EventName::parse(&text).map(Cow::Owned)
    }

    /// The event as the route shows it: encoded anew only if the route names it.
    pub(super) fn frame(&self, logged: &EncodedEvent) -> Frame {
        self.named(logged).unwrap_or_else(|| logged.frame.clone())
    }

    /// The event under the name that the route gives it, if it gives it one.
    pub(super) fn named(&self, logged: &EncodedEvent) -> Option<Frame> {
        let event = &logged.event;
        self.renames(event)
            .then(|| Frame::event(self.name(event).as_deref(), logged.data(), event.position))
    }

    /// Whether the route gives this event a name that it does not bear itself.
    pub(super) fn renames(&self, event: &Event) -> bool {
        self.event.is_some() && event.name.is_none()
    }

    /// An event as it is shown here.
    pub(super) fn show(&self, logged: Arc<EncodedEvent>) -> Appended {
        let (named, tier) = (self.named(&logged).map(Arc::new), self.tier(&logged.event));
        Appended {
            logged,
            named,
            tier,
        }
    }

    /// The tier of an event on this route: its own, else from the rules, else normal.
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
