//! Event in its encoded form, shared by all feeds.
//!
//! Each event is encoded once per framing, for all routes that do not rename it: in
//! [`Framing::STORED`] when it is buffered, in another framing when the first feed of that framing
//! receives it, or at the first read. The field order of [`EncodedEvent`] is for the
//! prefetches of `feed/prefetch.rs`.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use once_cell::race::OnceBox;

use crate::encoding::coding::Block;
use crate::encoding::{Coding, Encoding, EventParts, Framing};
use crate::event::{Event, EventName, PAYLOAD_BYTES_MAX, Version};
use crate::payload::schema::RouteSchemas;
use crate::payload::{self, Converter};

use super::GapReason;
use super::budget::{Budget, Reservation};
use super::compression::CodedBlock;

/// Encoded event: the payload, and its encodings without a route's event name.
///
/// The field order is deliberate: the fields that a reader uses are next to the reference counts,
/// and so are the first fields of [`Event`], its position and time of receipt.
#[derive(Debug)]
#[repr(C)]
pub struct EncodedEvent {
    /// Encoding in [`Framing::STORED`], under the event's own name.
    stored: Encoding,
    /// The event without its payload, see [`EncodedEvent::data`].
    pub event: Event,
    /// Place of the payload in the stored encoding; otherwise `event` has the payload.
    payload: Option<PayloadPlace>,
    /// Memory budget of this event, released with the last reference.
    reservation: Reservation,
    /// Encodings in the other framings. Threads that need one at the same time may each make it; all
    /// then use the same one. One word each, half of a `OnceLock`.
    further: [OnceBox<Further>; Framing::FURTHER],
    /// Forms that few events have, in one word.
    rare: OnceBox<Rare>,
}

/// Forms of an event that few have.
#[derive(Debug, Default)]
struct Rare {
    /// Encoding in [`Framing::GrpcWeb`].
    grpc: OnceBox<Further>,
    /// The event with its payload in other versions and formats.
    converted: OnceList<Converted>,
    /// Results of the JSON Schema, one in nearly all events: messages without a version have the one
    /// of the route.
    validated: OnceList<Validated>,
    /// The event compressed alone.
    coded: OnceList<CodedForm>,
}

/// Place of the payload in an encoding, in eight bytes. No encoding begins with its payload.
#[derive(Clone, Copy, Debug)]
struct PayloadPlace {
    start: NonZeroU32,
    len: u32,
}

/// List of results that are made once each: a thread waits for one that another thread makes. Few
/// are expected.
#[derive(Debug)]
struct OnceList<T>(OnceLock<Box<OnceLink<T>>>);

#[derive(Debug)]
struct OnceLink<T> {
    value: T,
    next: OnceList<T>,
}

/// Event with its payload in another version or format.
#[derive(Debug)]
struct Converted {
    converter: Arc<Converter>,
    form: ConvertedForm,
}

/// Result of a validation.
#[derive(Debug)]
struct Validated {
    /// Number of the schemas, which a reload replaces.
    schemas: u64,
    /// Version as which the payload was validated.
    version: Option<Version>,
    is_rejected: bool,
}

/// Encoding of an event, compressed.
#[derive(Debug)]
struct CodedForm {
    framing: Framing,
    coding: Coding,
    block: CodedBlock,
}

/// Form of an event in another version or format.
#[derive(Debug)]
enum ConvertedForm {
    /// The event itself, which must not own a reference to itself.
    Unchanged,
    Event(Arc<EncodedEvent>),
    /// It cannot be converted.
    Failed,
}

/// Encoding in a framing that is not stored.
#[derive(Debug)]
struct Further {
    encoding: Encoding,
    /// Memory budget of the encoding.
    _reservation: Reservation,
}

impl<T> Default for OnceList<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T> OnceList<T> {
    /// Returns the element that is wanted, which is made if the list does not have it.
    fn find_or_add(&self, is_wanted: impl Fn(&T) -> bool, make: impl Fn() -> T) -> &T {
        let mut list = self;
        loop {
            let link = list.0.get_or_init(|| {
                Box::new(OnceLink {
                    value: make(),
                    next: Self::default(),
                })
            });
            if is_wanted(&link.value) {
                return &link.value;
            }
            list = &link.next;
        }
    }
}

impl PayloadPlace {
    /// `None` if it does not fit: the event then keeps its payload.
    fn new(range: Range<usize>) -> Option<Self> {
        Some(Self {
            start: NonZeroU32::new(range.start.try_into().ok()?)?,
            len: range.len().try_into().ok()?,
        })
    }

    fn range(self) -> Range<usize> {
        let start = self.start.get() as usize;
        start..start + self.len as usize
    }
}

impl EncodedEvent {
    /// Encodes an event, with the envelope of the budget. The payload is then kept only inside the
    /// encoding, if it is in one piece there.
    #[must_use]
    pub(super) fn new(mut event: Event, budget: &Arc<Budget>) -> Arc<Self> {
        let encoder = Framing::STORED.encoder();
        let stored = encoder.event(EventParts::of(&event), budget.envelope());
        let payload = encoder
            .payload_range(&stored, &event.data)
            .and_then(PayloadPlace::new);
        if payload.is_some() {
            event.data = Bytes::new();
        }
        let texts = event.data.len() + event.subject.len() + event.headers.bytes();
        let bytes = stored.len() + texts + size_of::<Self>();
        Arc::new(Self {
            stored,
            event,
            payload,
            reservation: budget.reserve(bytes),
            further: Default::default(),
            rare: OnceBox::new(),
        })
    }

    /// Payload as published.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        match &self.payload {
            Some(place) => self.stored.slice(place.range()),
            None => &self.event.data,
        }
    }

    /// Encoding that every event has; its length counts in windows and lag.
    pub(super) fn stored(&self) -> &Encoding {
        &self.stored
    }

    /// Encoding under the event's own name. The first call for a framing that is not stored encodes
    /// the event, and charges the budget.
    #[must_use]
    pub fn encoding(&self, framing: Framing) -> &Encoding {
        let Some(index) = further_index(framing) else {
            return &self.stored;
        };
        let place = self.further.get(index);
        let place = place.unwrap_or_else(|| &self.rare.get_or_init(Box::default).grpc);
        &place.get_or_init(|| self.encode_further(framing)).encoding
    }

    /// Returns the event with its payload in the version and format of a feed, or the reason for a gap
    /// in its place. The first call validates and converts the payload, and charges the budget.
    pub(super) fn convert(
        self: &Arc<Self>,
        converter: &Arc<Converter>,
    ) -> Result<Arc<Self>, GapReason> {
        let is_kept = converter.keeps(self.event.version);
        // Sidestream itself makes the payload of a removal.
        let is_made_here = |name: &EventName| name.is_reserved();
        if (is_kept && converter.schemas().is_none())
            || self.event.name.as_ref().is_some_and(is_made_here)
        {
            return Ok(self.clone());
        }
        if let Some(schemas) = converter.schemas()
            && self.is_rejected(schemas)
        {
            return Err(GapReason::Schema);
        }
        if is_kept {
            return Ok(self.clone());
        }
        let list = &self.rare.get_or_init(Box::default).converted;
        let known = list.find_or_add(
            |known| known.converter == *converter,
            || Converted {
                converter: converter.clone(),
                form: self.convert_now(converter),
            },
        );
        match &known.form {
            ConvertedForm::Unchanged => Ok(self.clone()),
            ConvertedForm::Event(event) => Ok(event.clone()),
            ConvertedForm::Failed => Err(GapReason::Conversion),
        }
    }

    /// Returns whether the schema of the payload rejects it. Each payload is validated once.
    fn is_rejected(&self, schemas: &RouteSchemas) -> bool {
        let (number, version) = (schemas.number(), schemas.version(&self.event));
        let list = &self.rare.get_or_init(Box::default).validated;
        let known = list.find_or_add(
            |known| (known.schemas, known.version) == (number, version),
            || Validated {
                schemas: number,
                version,
                is_rejected: schemas.rejects(&self.event, self.data()),
            },
        );
        known.is_rejected
    }

    #[cold]
    #[inline(never)]
    fn convert_now(&self, converter: &Converter) -> ConvertedForm {
        let payload = match converter.convert(&self.event, self.data(), PAYLOAD_BYTES_MAX) {
            payload::Converted::Unchanged => return ConvertedForm::Unchanged,
            payload::Converted::Payload(payload) => payload,
            payload::Converted::Failed => {
                tracing::debug!(
                    subject = &*self.event.subject,
                    sequence = self.event.position.seq,
                    version = converter.target().map(tracing::field::display),
                    "payload not converted; reported as a gap"
                );
                return ConvertedForm::Failed;
            }
        };
        let event = Event {
            version: converter.target().or(self.event.version),
            data: payload.into(),
            headers: self.event.headers.clone().without_cloud_event(),
            ..self.event.clone()
        };
        ConvertedForm::Event(Self::new(event, self.reservation.budget()))
    }

    /// Encoding under the event's own name, compressed alone. The first call makes it, and charges the
    /// budget.
    #[must_use]
    pub fn coded(&self, framing: Framing, coding: Coding) -> &Block {
        let list = &self.rare.get_or_init(Box::default).coded;
        let known = list.find_or_add(
            |known| (known.framing, known.coding) == (framing, coding),
            || {
                let envelope = framing.envelope(self.reservation.envelope());
                let plain = self.encoding(framing).bytes();
                let block = coding.block(plain, true, envelope);
                CodedForm {
                    framing,
                    coding,
                    block: CodedBlock::new(block, &self.reservation),
                }
            },
        );
        known.block.block()
    }

    /// Makes the encoding in a framing now, with no lock held, so that no reader does it under one.
    pub(super) fn encode_ahead(&self, framing: Framing) {
        let _made = self.encoding(framing);
    }

    /// Encoding under the event's own name, if it was made.
    pub(super) fn known_encoding(&self, framing: Framing) -> Option<&Encoding> {
        let Some(index) = further_index(framing) else {
            return Some(&self.stored);
        };
        let place = self.further.get(index);
        let place = place.or_else(|| Some(&self.rare.get()?.grpc));
        Some(&place?.get()?.encoding)
    }

    /// True if the event was converted, or could not be.
    #[cfg(test)]
    pub(super) fn has_conversions(&self) -> bool {
        let rare = self.rare.get();
        rare.is_some_and(|rare| rare.converted.0.get().is_some())
    }

    /// Encodes the event under another name. The result is not kept.
    pub(super) fn encode_as(&self, name: Option<&EventName>, framing: Framing) -> Encoding {
        let parts = EventParts {
            name,
            data: self.data(),
            ..EventParts::of(&self.event)
        };
        framing.encoder().event(parts, self.reservation.envelope())
    }

    /// Not inlined: readers of the stored framing never get here.
    #[cold]
    #[inline(never)]
    fn encode_further(&self, framing: Framing) -> Box<Further> {
        let encoding = self.encode_as(self.event.name.as_ref(), framing);
        let bytes = encoding.len() + size_of::<Further>();
        Box::new(Further {
            encoding,
            _reservation: self.reservation.add(bytes),
        })
    }
}

/// Index of a framing among those after the stored one; `None` if it is that. Events have no place of
/// their own for the last one, which is in [`Rare`].
fn further_index(framing: Framing) -> Option<usize> {
    debug_assert!(
        framing == framing.of_events(),
        "feeds have a framing that encodes events"
    );
    (framing as usize).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use futures_util::FutureExt as _;

    use super::*;
    use crate::event::Position;
    use crate::feed::tests::{event, filters};
    use crate::feed::{
        Batch, Cursor, FeedOptions, Item, Limits, ReadPolicy, Source as _, Start, buffer,
    };
    use crate::subject::TextTemplate;

    #[test]
    fn an_event_fits_the_size_class_of_the_allocator_that_it_had_with_one_framing() {
        let bytes = 2 * size_of::<usize>() + size_of::<EncodedEvent>();
        assert!(bytes <= 224, "{bytes}: the next size is 256");
    }

    #[test]
    fn an_encoding_of_another_framing_is_made_once_and_charged_to_the_budget() {
        let budget = Budget::new(1 << 20, 10);
        let encoded = EncodedEvent::new(event(7, "a.b"), &budget);
        let before = budget.used();
        assert!(encoded.known_encoding(Framing::Ndjson).is_none());
        let line = encoded.encoding(Framing::Ndjson);
        let id = event(7, "a.b").position;
        assert_eq!(
            std::str::from_utf8(line.bytes()),
            Ok(&*format!(
                "{{\"id\":\"{id}\",\"subject\":\"a.b\",\"data\":7}}\n"
            ))
        );
        assert!(budget.used() >= before + line.len());
        assert!(std::ptr::eq(line, encoded.encoding(Framing::Ndjson)));
        assert!(std::ptr::eq(
            encoded.stored(),
            encoded.encoding(Framing::Sse)
        ));
        for framing in [Framing::WebSocket, Framing::GrpcWeb] {
            assert!(encoded.known_encoding(framing).is_none());
            let used = budget.used();
            let made = encoded.encoding(framing);
            assert!(std::ptr::eq(made, encoded.encoding(framing)));
            let known = encoded.known_encoding(framing);
            assert!(known.is_some_and(|known| std::ptr::eq(made, known)));
            assert!(budget.used() >= used + made.len());
        }
        drop(encoded);
        assert_eq!(budget.used(), 0);
    }

    /// Returns the text that a reader receives.
    fn read(cursor: &mut Cursor, batch: &mut Batch) -> String {
        let read = cursor.poll_read(
            &mut Context::from_waker(Waker::noop()),
            batch,
            &mut ReadPolicy::all(10_000),
        );
        assert!(read.is_ready());
        let texts = batch.items.iter().map(|item| match item {
            Item::Event { encoding, .. } => encoding.bytes().to_vec(),
            Item::Copied { run, .. } => run.content().to_vec(),
            Item::Coded { .. } => panic!("the feed does not compress"),
            Item::Gap { .. } => panic!("no event is missing"),
        });
        String::from_utf8(texts.collect::<Vec<_>>().concat()).unwrap()
    }

    #[test]
    fn feeds_of_a_buffer_show_the_same_events_in_their_framings() {
        let budget = Budget::new(1 << 20, 10);
        let (mut writer, buffer) = buffer::writer::channel("S", Limits::default(), &budget, None);
        writer.begin(event(1, "a").position.tag, 0);
        let open = |options: FeedOptions, start| {
            let options = Arc::new(options);
            let opened = buffer.open(filters(&["a"]), &options, start);
            opened.now_or_never().unwrap().unwrap().cursor
        };
        let ndjson = FeedOptions {
            framing: Framing::Ndjson,
            ..FeedOptions::default()
        };
        let named = FeedOptions {
            event: TextTemplate::parse("it's {subject.1}").ok(),
            ..ndjson.clone()
        };
        let mut cursors = [FeedOptions::default(), ndjson.clone(), named]
            .map(|options| open(options, Start::Live));
        writer.append(vec![event(1, "a"), event(2, "a")]);
        let used = budget.used();
        let id = |seq| event(seq, "a").position;
        let line = |seq: u64, name: &str| {
            format!(
                "{{\"id\":\"{}\",{name}\"subject\":\"a\",\"data\":{seq}}}\n",
                id(seq)
            )
        };
        let expected = [
            format!("data: 1\nid: {}\n\ndata: 2\nid: {}\n\n", id(1), id(2)),
            line(1, "") + &line(2, ""),
            line(1, "\"event\":\"it's a\",") + &line(2, "\"event\":\"it's a\","),
        ];
        for (cursor, expected) in cursors.iter_mut().zip(&expected) {
            for is_copied in [false, true] {
                let mut batch = Batch::default();
                batch.copy_small = is_copied;
                if !is_copied {
                    assert_eq!(&read(cursor, &mut batch), expected);
                    continue;
                }
                assert!(cursor.seek(Position { seq: 0, ..id(1) }));
                assert_eq!(&read(cursor, &mut batch), expected);
            }
        }
        assert_eq!(budget.used(), used, "readers find the encodings made");
        // A feed that is created later encodes at its first read.
        writer.append(vec![event(3, "b")]);
        drop(cursors);
        let mut late = open(ndjson, Start::After(id(1)));
        assert_eq!(read(&mut late, &mut Batch::default()), line(2, ""));
    }
}
