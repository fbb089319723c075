//! Interface of an encoder: everything that a client receives in one framing.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::time::Duration;

use bytes::BytesMut;

use super::envelope::{Encoding, Envelope};
use crate::event::{Event, EventName, Position};

/// Parts of an event that an encoder writes.
#[derive(Clone, Copy, Debug)]
pub struct EventParts<'e> {
    /// Name on the route: the publisher's, or the route's.
    pub name: Option<&'e EventName>,
    /// NATS subject.
    pub subject: &'e str,
    /// Payload as published.
    pub data: &'e [u8],
    /// Position in its source: the id for clients of a single source.
    pub position: Position,
}

/// Events that are missing, as a client is notified of them.
#[derive(Clone, Copy, Debug)]
pub struct GapNotice {
    /// Reason, from a closed list.
    pub reason: &'static str,
    /// Number of missing events, if it is known.
    pub missed: Option<u64>,
    /// Resume point after the gap, from a closed list.
    pub resume: &'static str,
}

/// Encoder of one framing.
///
/// An id is optional where a client must not resume from: only the last of several gaps has one.
pub trait Encoder: fmt::Debug + Sync {
    /// Encodes an event with the id of its source.
    fn event(&self, parts: EventParts<'_>, envelope: Envelope) -> Encoding;

    /// Returns the range of the payload in an encoding, if it is there in one piece and unchanged.
    fn payload_range(&self, encoding: &Encoding, data: &[u8]) -> Option<Range<usize>>;

    /// Returns true if the id of an event precedes the bytes that clients share.
    fn is_id_first(&self) -> bool;

    /// Appends the id of an event for a client of several sources. `shared`: length of the bytes
    /// that clients share.
    fn put_id(&self, out: &mut BytesMut, id: &dyn fmt::Display, shared: usize);

    /// Appends the first bytes of an event stream: the reconnection time.
    fn put_opening(&self, out: &mut BytesMut, retry: Duration);

    /// Appends the report of a gap.
    fn put_gap(&self, out: &mut BytesMut, gap: GapNotice, id: Option<&dyn fmt::Display>);

    /// Appends a position without an event: at the start of an event stream and at checkpoints.
    fn put_position(&self, out: &mut BytesMut, id: &dyn fmt::Display);

    /// Appends the request to renew the credentials, which expire at a time in seconds since 1970.
    fn put_renew(&self, out: &mut BytesMut, expires: u64);

    /// Appends the reason for the end of an event stream and the reconnection time.
    fn put_close(
        &self,
        out: &mut BytesMut,
        reason: &str,
        retry: Duration,
        id: Option<&dyn fmt::Display>,
    );

    /// Appends the beginning of the state: the client discards what it holds, and its position.
    fn put_snapshot(&self, out: &mut BytesMut);

    /// Appends an event of the state, without an id. `shared` is its encoding without one.
    fn put_state(&self, out: &mut BytesMut, shared: &[u8]);

    /// Appends the end of the state, and the position of the client.
    fn put_synced(&self, out: &mut BytesMut, id: &dyn fmt::Display);

    /// Appends the end of a finite event stream: the client has every event.
    fn put_end(&self, out: &mut BytesMut, id: &dyn fmt::Display);

    /// Returns the bytes that keep an idle connection alive.
    fn heartbeat(&self) -> &'static [u8];
}

impl<'e> EventParts<'e> {
    /// Parts of an event under its own name.
    #[must_use]
    pub fn of(event: &'e Event) -> Self {
        Self {
            name: event.name.as_ref(),
            subject: &event.subject,
            data: &event.data,
            position: event.position,
        }
    }
}

impl GapNotice {
    /// Fields of the JSON object that reports the gap, the same in every framing.
    pub(super) fn json(self) -> String {
        let missed = self
            .missed
            .map_or("null".to_owned(), |missed| missed.to_string());
        let (reason, resume) = (self.reason, self.resume);
        format!(r#""reason":"{reason}","missed":{missed},"resume":"{resume}""#)
    }
}

/// Fields of the JSON object that reports the end, the same in every framing.
pub(super) fn close_json(reason: &str, retry: Duration) -> String {
    format!(r#""reason":"{reason}","retry":{}"#, retry.as_millis())
}

/// Appends formatted text.
pub(super) fn put_formatted(out: &mut BytesMut, text: fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(
        written.is_ok(),
        "writing to a growable buffer does not fail"
    );
}
