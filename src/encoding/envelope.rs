//! Encoded bytes, and the envelope of a transport around them.
//!
//! A transport that has to write something before and after each piece of content would need three
//! slices per write. Instead, encoded bytes have room on both sides, and the transport fills it once
//! for all clients, as soon as the length of the content is known:
//!
//! ```text
//! | room, unused | head | content                         | tail |
//!                |      | shared              | id        |      |    the id is last (SSE)
//!                |      | id | shared                     |      |    the id is first (NDJSON)
//!                +------- one write, the same bytes for every client of one source
//! ```
//!
//! [`Envelope`] is opaque: sizes, and a function that fills the room. The composition root chooses it
//! (`http::h1` defines the chunk of HTTP/1.1); a transport without one writes the content alone.
//! [`Encoding`] is one event. [`RunBuilder`] copies small encodings into one piece, [`Enveloped`].

use std::ops::Range;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Room around encoded bytes, and the function that fills it.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    head_max: u8,
    tail_len: u8,
    seal: Seal,
}

/// Fills the room around content of this length. The head ends where its room ends; the function
/// returns the length of the head.
type Seal = fn(content: usize, head: &mut [u8], tail: &mut [u8]) -> usize;

/// Encoded events with the envelope around them, contiguous in memory.
#[derive(Clone, Debug, Default)]
pub struct Enveloped {
    bytes: Bytes,
    head_len: u8,
    tail_len: u8,
}

/// Encoding of one event in one framing. Clients of one source share all of it; clients of several
/// sources share everything but the id.
#[derive(Clone, Debug)]
pub struct Encoding {
    /// Layout as in [`Enveloped`].
    bytes: Bytes,
    head_len: u8,
    tail_len: u8,
    is_id_first: bool,
    id_len: u16,
}

/// Builds the encoding of one event.
#[derive(Debug)]
pub struct EncodingBuilder {
    /// The room for the head, then the content that is written.
    out: BytesMut,
    envelope: Envelope,
    is_id_first: bool,
    id_len: usize,
}

/// Copies small encodings into one piece. Its memory is reused once the previous pieces are dropped.
#[derive(Debug, Default)]
pub struct RunBuilder {
    out: BytesMut,
    envelope: Envelope,
}

impl Envelope {
    /// No envelope: the content alone.
    pub const NONE: Self = Self::new(0, 0, |_, _, _| 0);

    /// Creates an envelope with room for a head of at most `head_max` bytes and a tail of exactly
    /// `tail_len` bytes.
    #[must_use]
    pub const fn new(head_max: u8, tail_len: u8, seal: Seal) -> Self {
        Self {
            head_max,
            tail_len,
            seal,
        }
    }

    fn head_room(self) -> usize {
        usize::from(self.head_max)
    }

    fn tail_room(self) -> usize {
        usize::from(self.tail_len)
    }

    /// Completes bytes that begin and end with the room for the envelope.
    fn seal(self, mut out: BytesMut) -> Enveloped {
        let end = out.len() - self.tail_room();
        let (rest, tail) = out.split_at_mut(end);
        let (head, content) = rest.split_at_mut(self.head_room());
        let head_len = (self.seal)(content.len(), head, tail);
        // The head ends directly before the content; unused room before it is dropped.
        out.advance(self.head_room() - head_len);
        Enveloped {
            bytes: out.freeze(),
            head_len: head_len as u8,
            tail_len: self.tail_len,
        }
    }
}

impl Default for Envelope {
    fn default() -> Self {
        Self::NONE
    }
}

impl Enveloped {
    /// Head, events and tail.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The events.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        &self.bytes[self.content_range()]
    }

    /// The events, as a shared slice.
    #[must_use]
    pub fn to_content(&self) -> Bytes {
        self.bytes.slice(self.content_range())
    }

    /// All bytes, and the range of the events in them.
    #[must_use]
    pub fn into_parts(self) -> (Bytes, Range<usize>) {
        let range = self.content_range();
        (self.bytes, range)
    }

    fn content_range(&self) -> Range<usize> {
        usize::from(self.head_len)..self.bytes.len() - usize::from(self.tail_len)
    }
}

impl Encoding {
    /// The event with the id of a single source.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.content_range()]
    }

    /// The event with the envelope around it.
    #[must_use]
    pub fn into_enveloped(self) -> Enveloped {
        Enveloped {
            bytes: self.bytes,
            head_len: self.head_len,
            tail_len: self.tail_len,
        }
    }

    /// The event without its id, for a client that adds its own.
    #[must_use]
    pub fn shared(&self) -> Bytes {
        self.bytes.slice(self.shared_range())
    }

    /// Bytes of the event for a client of a single source.
    #[must_use]
    pub fn len(&self) -> usize {
        self.content_range().len()
    }

    /// Always false: an event has at least its id.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a range that [`Encoder::payload_range`](super::Encoder::payload_range) has found.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Range of the event without its id, for [`Self::slice`].
    pub(super) fn shared_range(&self) -> Range<usize> {
        let Range { start, end } = self.content_range();
        let id_len = usize::from(self.id_len);
        if self.is_id_first {
            start + id_len..end
        } else {
            start..end - id_len
        }
    }

    fn content_range(&self) -> Range<usize> {
        usize::from(self.head_len)..self.bytes.len() - usize::from(self.tail_len)
    }
}

impl EncodingBuilder {
    /// Starts an encoding of about `capacity` bytes.
    pub(super) fn new(envelope: Envelope, capacity: usize) -> Self {
        let room = envelope.head_room() + envelope.tail_room();
        let mut out = BytesMut::with_capacity(room + capacity);
        out.put_bytes(b' ', envelope.head_room());
        Self {
            out,
            envelope,
            is_id_first: false,
            id_len: 0,
        }
    }

    /// Returns the buffer, to append content.
    pub(super) fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Appends the id, the first or the last part of the content.
    pub(super) fn put_id(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.out.len();
        write(&mut self.out);
        self.is_id_first = before == self.envelope.head_room();
        self.id_len = self.out.len() - before;
    }

    /// Completes the encoding.
    pub(super) fn finish(mut self) -> Encoding {
        debug_assert!(
            u16::try_from(self.id_len).is_ok_and(|length| length > 0),
            "an event has an id of its source, which is short"
        );
        self.out.put_bytes(b' ', self.envelope.tail_room());
        let Enveloped {
            bytes,
            head_len,
            tail_len,
        } = self.envelope.seal(self.out);
        Encoding {
            bytes,
            head_len,
            tail_len,
            is_id_first: self.is_id_first,
            id_len: self.id_len as u16,
        }
    }
}

impl RunBuilder {
    /// Starts a run of at most `most` bytes.
    pub fn begin(&mut self, envelope: Envelope, most: usize) {
        debug_assert!(self.out.is_empty(), "the previous run is complete");
        self.envelope = envelope;
        let room = envelope.head_room() + envelope.tail_room();
        self.out.reserve(room + most);
        self.out.put_bytes(b' ', envelope.head_room());
    }

    /// Copies an event into the current run.
    pub fn push(&mut self, encoding: &Encoding) {
        self.out.put_slice(encoding.bytes());
    }

    /// Copies the bytes of events into the current run.
    pub fn put(&mut self, events: &[u8]) {
        self.out.put_slice(events);
    }

    /// Bytes of the events in the current run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.out.len().saturating_sub(self.envelope.head_room())
    }

    /// True if the current run has no event.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Completes the current run.
    #[must_use]
    pub fn finish(&mut self) -> Enveloped {
        // Before the split: what is split off has no capacity left.
        self.out.put_bytes(b' ', self.envelope.tail_room());
        self.envelope.seal(self.out.split())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Envelope that shows the length of the content on both sides.
    const SHOWN: Envelope = Envelope::new(4, 1, |content, head, tail| {
        let text = format!("{content}<");
        let start = head.len() - text.len();
        head[start..].copy_from_slice(text.as_bytes());
        tail.copy_from_slice(b">");
        text.len()
    });

    fn encoding(envelope: Envelope, is_id_first: bool, text: &str) -> Encoding {
        let mut builder = EncodingBuilder::new(envelope, 8);
        if is_id_first {
            builder.put_id(|out| out.put_slice(b"id:7 "));
        }
        builder.out().put_slice(text.as_bytes());
        if !is_id_first {
            builder.put_id(|out| out.put_slice(b" id:7"));
        }
        builder.finish()
    }

    #[test]
    fn an_encoding_has_the_size_that_the_field_order_of_events_assumes() {
        assert_eq!(size_of::<Encoding>(), 40);
        assert_eq!(size_of::<Envelope>(), 16);
    }

    #[test]
    fn the_envelope_is_around_the_content_and_the_id_is_not_shared() {
        for (envelope, enveloped) in [(SHOWN, "6<abc…>"), (Envelope::NONE, "abc…")] {
            let enveloped = |content: &str| {
                enveloped
                    .replace("abc…", content)
                    .replace("6<", &format!("{}<", content.len()))
            };
            let last = encoding(envelope, false, "a long text");
            assert_eq!(last.bytes(), b"a long text id:7");
            assert_eq!(last.shared(), "a long text");
            assert_eq!(
                last.clone().into_enveloped().bytes(),
                &enveloped("a long text id:7")
            );
            let first = encoding(envelope, true, "x");
            assert_eq!((first.bytes(), first.len()), (&b"id:7 x"[..], 6));
            assert_eq!(first.shared(), "x");
            let (bytes, content) = first.into_enveloped().into_parts();
            assert_eq!(bytes, enveloped("id:7 x"));
            assert_eq!(bytes[content], *b"id:7 x");
        }
    }

    #[test]
    fn copied_events_are_one_piece_and_its_memory_is_reused() {
        for envelope in [SHOWN, Envelope::NONE] {
            let encodings =
                [1, 20, 300].map(|length| encoding(envelope, false, &"x".repeat(length)));
            let mut run = RunBuilder::default();
            let mut memory = None;
            for count in [1, 2, 3, 2] {
                run.begin(envelope, 1000);
                assert!(run.is_empty());
                encodings[..count].iter().for_each(|one| run.push(one));
                let content: Vec<u8> = encodings[..count]
                    .iter()
                    .flat_map(|one| one.bytes().to_vec())
                    .collect();
                assert_eq!(run.len(), content.len());
                let finished = run.finish();
                assert_eq!(finished.content(), content);
                assert_eq!(finished.to_content(), content);
                let begins = finished.content().as_ptr() as usize;
                assert_eq!(*memory.get_or_insert(begins), begins);
            }
        }
    }
}
