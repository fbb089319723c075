//! A client that comes back without its position after a drain: where it resumes, and what is recorded of it.

use std::sync::Arc;

use super::event_stream::Opening;
use crate::feed::{Outcome, Source, Start};
use crate::http::context::Context;
use crate::presence::{Claim, ClaimRequest, Handover};
use crate::sse::EventId;
use crate::subject::FilterSet;

/// The position that is recorded for a client without one.
pub(in crate::http) async fn find(context: &Context, wanted: Option<&ClaimRequest>) -> Claim {
    match (context.streams.presence(), wanted) {
        (Some(presence), Some(wanted)) => presence.claim_position(wanted.clone()).await,
        _ => Claim::Nothing,
    }
}

/// Removes what is recorded for a client that has resumed from a position of its own: no other connection is to resume there.
pub(in crate::http) fn remove(context: &Context, wanted: ClaimRequest, has: EventId) {
    let Some(presence) = context.streams.presence().map(Arc::clone) else {
        return;
    };
    // The registry bounds how many of these look at a time, and how long.
    tokio::spawn(async move { presence.discard_position(wanted, has).await });
}

/// Leaves it to the next try: nothing was opened.
pub(in crate::http) async fn give_back(context: &Context, handover: Handover) {
    if let Some(presence) = context.streams.presence() {
        presence.release_position(handover).await;
    }
}

/// The position to look for. None if the client cannot come back: there is no registry, the client has no name by the route's
/// `client`, or no source of the route has positions that another pod knows.
pub(in crate::http) fn wanted(context: &Context, asked: &Opening) -> Option<ClaimRequest> {
    context.streams.presence()?;
    let can_come_back = asked.is_named && asked.route.is_resumable_elsewhere();
    can_come_back.then(|| {
        let subjects = asked
            .filters
            .iter()
            .flat_map(FilterSet::filters)
            .map(ToString::to_string)
            .collect();
        ClaimRequest::new(
            asked.client.to_string(),
            asked.route.label.to_string(),
            subjects,
        )
    })
}

/// Part of a client's id that was confirmed: its positions in the sources that other pods know as well, if all of them are
/// positions of those streams and nothing after them is missing. An invented id has none.
#[derive(Default)]
pub(in crate::http) struct Confirmed {
    components: Vec<crate::sse::Position>,
    is_refuted: bool,
}

impl Confirmed {
    /// Notes what became of the position in one source.
    pub(in crate::http) fn note(&mut self, source: &Source, start: Start, outcome: Outcome) {
        match (source, start, outcome) {
            (Source::Core(_), ..) => {}
            (_, Start::After(at), Outcome::Window | Outcome::Archive) => self.components.push(at),
            _ => self.is_refuted = true,
        }
    }

    pub(in crate::http) fn id(self) -> Option<EventId> {
        (!self.is_refuted && !self.components.is_empty()).then(|| EventId::new(self.components))
    }
}
