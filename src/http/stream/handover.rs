//! Handover of a position to a client that reconnects without one after a drain.
//!
//! A drain records the last position of each client in the presence store. A client that reconnects
//! to any pod without an id claims it ([`claim`]); if the event stream then cannot be opened, the
//! claim is released ([`release`]). A client that resumes from an id of its own makes the record
//! obsolete ([`discard`]), but only with an id that the sources have confirmed: an invented id must
//! not delete the position of another client ([`Confirmed`]).

use std::sync::Arc;

use crate::event::{EventId, Position};
use crate::feed::{Outcome, Source, Start};
use crate::http::context::Context;
use crate::presence::{Claim, ClaimRequest, Handover};

/// Claims the position that is recorded for a client without an id.
pub(in crate::http) async fn claim(context: &Context, request: Option<&ClaimRequest>) -> Claim {
    match (context.streams.presence(), request) {
        (Some(presence), Some(request)) => presence.claim_position(request.clone()).await,
        _ => Claim::Nothing,
    }
}

/// Deletes the record of a client that has resumed from its own id, so that no other connection
/// resumes there.
pub(in crate::http) fn discard(context: &Context, request: ClaimRequest, id: EventId) {
    let Some(presence) = context.streams.presence().map(Arc::clone) else {
        return;
    };
    // The store limits the number and duration of these tasks.
    tokio::spawn(async move { presence.discard_position(request, id).await });
}

/// Releases a claim for the client's next attempt: the event stream was not opened.
pub(in crate::http) async fn release(context: &Context, handover: Handover) {
    if let Some(presence) = context.streams.presence() {
        presence.release_position(handover).await;
    }
}

/// Positions of a client's id that the sources have confirmed.
///
/// Only sources whose positions other pods know are included. The id is confirmed if each of these
/// positions belongs to its stream and no event after it is missing.
#[derive(Default)]
pub(in crate::http) struct Confirmed {
    positions: Vec<Position>,
    is_refuted: bool,
}

impl Confirmed {
    /// Records the outcome of the position in one source.
    pub(in crate::http) fn note(&mut self, source: &dyn Source, start: Start, outcome: Outcome) {
        if !source.are_positions_shared() {
            return;
        }
        match (start, outcome) {
            (Start::After(position), Outcome::Window | Outcome::Archive) => {
                self.positions.push(position)
            }
            _ => self.is_refuted = true,
        }
    }

    /// Returns the confirmed id, if there is one.
    pub(in crate::http) fn id(self) -> Option<EventId> {
        (!self.is_refuted && !self.positions.is_empty()).then(|| EventId::new(self.positions))
    }
}
