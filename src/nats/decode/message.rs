//! A message becomes an event: pure, total, and never a panic, whatever was published.

use std::sync::Arc;
use std::time::Instant;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde_json::json;

use crate::sse::{Event, EventName, Position, Tier};

/// The largest payload that becomes an event, in bytes. NATS itself recommends 8 MiB at the most; an event is one
/// piece for every client, so a larger one would hold up everything behind it.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 8 << 20;

/// The header that names an event.
const NAME: &str = "Sidestream-Event";
/// The header that gives its tier.
const TIER: &str = "Sidestream-Priority";

/// The header by which a repeated message is known.
const ID: &str = "Nats-Msg-Id";

/// The header of a message that a client of a KV bucket stores in place of a value that it deletes or purges.
const OPERATION: &str = "KV-Operation";
/// The header of a message that nats-server stores in place of what a limit or a request removed (NATS ADR-43).
const MARKER: &str = "Nats-Marker-Reason";
/// The values of both that say that something was removed.
const REMOVALS: [&str; 5] = ["DEL", "PURGE", "MaxAge", "Purge", "Remove"];

/// What an event is made of, borrowed from wherever it came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MessageFields<'a> {
    pub(crate) subject: &'a str,
    /// The header [`NAME`].
    pub(crate) name: Option<&'a str>,
    /// The header [`TIER`].
    pub(crate) tier: Option<&'a str>,
    /// The header [`ID`], of a message that was stored nowhere: JetStream has looked at the others.
    pub(crate) id: Option<&'a str>,
    /// Why what the subject held before is removed: the header [`OPERATION`] or [`MARKER`] of a message without payload.
    pub(crate) removed: Option<&'a str>,
    pub(crate) payload: &'a [u8],
    /// Size of a message of which the client kept no content, because it is too large; 0 of all others.
    pub(crate) dropped_bytes: usize,
}

impl<'a> MessageFields<'a> {
    /// The parts of a message that the client parsed.
    pub(crate) fn of(message: &'a Message) -> Self {
        let header = |name| {
            message
                .headers
                .as_ref()
                .and_then(|headers: &HeaderMap| headers.get(name))
                .map(|value| value.as_str())
        };
        let (subject, payload) = (message.subject.as_str(), &message.payload);
        // A marker has no payload: other messages are not searched for it.
        let removed = if payload.is_empty() {
            header(OPERATION).or_else(|| header(MARKER))
        } else {
            None
        };
        Self {
            subject,
            name: header(NAME),
            tier: header(TIER),
            id: None,
            removed: removed.filter(is_removal),
            payload,
            dropped_bytes: dropped_bytes(message),
        }
    }

    /// The parts of a message of a core subject.
    pub(crate) fn of_core(message: &'a Message) -> Self {
        let id = message
            .headers
            .as_ref()
            .and_then(|headers: &HeaderMap| headers.get(ID))
            .map(|value| value.as_str());
        // 255: what JetStream takes too is shorter; a longer one is nobody's name for a message.
        let is_usable = |id: &&str| !id.is_empty() && id.len() <= 255 && !is_damaged(id);
        Self {
            id: id.filter(is_usable),
            ..Self::of(message)
        }
    }
}

/// The size of a message that was larger than the client keeps: it announces a length and has no content.
fn dropped_bytes(message: &Message) -> usize {
    if !message.payload.is_empty() || message.headers.is_some() {
        return 0;
    }
    let around = message.subject.len() + message.reply.as_ref().map_or(0, |reply| reply.len());
    message.length.saturating_sub(around)
}

/// Whether a header value held what is no text: bytes that are not UTF-8, or a CR. The client puts U+FFFD in their place,
/// so two different values may have become the same one.
fn is_damaged(value: &str) -> bool {
    value.contains(char::REPLACEMENT_CHARACTER)
}

fn is_removal(reason: &&str) -> bool {
    REMOVALS.contains(reason)
}

/// What a message became.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// Nothing when the payload is larger than [`PAYLOAD_BYTES_MAX`].
    pub(crate) event: Option<Event>,
    /// The publisher gave a name that cannot stand in an `event:` field.
    pub(crate) name_refused: bool,
    /// The publisher gave a tier that is none.
    pub(crate) tier_refused: bool,
}

/// Makes an event of a message.
pub(crate) fn to_event(parts: MessageFields<'_>, position: Position, received: Instant) -> Decoded {
    let name = match parts.removed {
        None => parts
            .name
            .filter(|name| !is_damaged(name))
            .and_then(EventName::parse),
        Some(_) => Some(EventName::removed()),
    };
    let tier = parts.tier.and_then(Tier::parse);
    let name_refused = parts.name.is_some() && name.is_none();
    let tier_refused = parts.tier.is_some() && tier.is_none();
    let event =
        (parts.payload.len() <= PAYLOAD_BYTES_MAX && parts.dropped_bytes == 0).then(|| Event {
            position,
            subject: Arc::from(parts.subject),
            name,
            tier,
            message_id: parts.id.map(Box::from),
            data: match parts.removed {
                // Copied: a slice of the client's read buffer would keep 64 KiB alive for a hundred bytes.
                None => Bytes::copy_from_slice(parts.payload),
                Some(reason) => {
                    Bytes::from(json!({ "subject": parts.subject, "reason": reason }).to_string())
                }
            },
            received,
        });
    Decoded {
        event,
        name_refused,
        tier_refused,
    }
}

/// Where a message stands that JetStream delivered: its reply subject.
///
/// `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<time>.<pending>`, or with the domain and
/// the account's hash before the stream and possibly more behind (NATS ADR-15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AckInfo {
    /// The sequence number in the JetStream stream.
    pub(crate) sequence: u64,
    /// The sequence number of the delivery: the next is one more, or something was lost.
    pub(crate) delivery: u64,
    /// When it was published, in unix nanoseconds.
    pub(crate) published: i128,
    /// How many more wait for this consumer.
    pub(crate) pending: u64,
}

impl AckInfo {
    pub(crate) fn parse(reply: &str) -> Option<Self> {
        let place = reply.strip_prefix("$JS.ACK.")?.as_bytes();
        // All dots first: which tokens are the numbers depends on how many there are.
        let (mut ends, mut dots) = ([0; 9], 0);
        for dot in memchr::memchr_iter(b'.', place) {
            if let Some(end) = ends.get_mut(dots) {
                *end = dot;
            }
            dots += 1;
        }
        let first = match dots + 1 {
            7 => 3,
            9.. => 5,
            _ => return None,
        };
        let token = |nth: usize| {
            let end = if nth < dots {
                *ends.get(nth)?
            } else {
                place.len()
            };
            number(place.get(ends.get(nth - 1)? + 1..end)?)
        };
        Some(Self {
            sequence: token(first)?,
            delivery: token(first + 1)?,
            published: token(first + 2)?.into(),
            pending: token(first + 3)?,
        })
    }
}

/// Decimal digits, by hand: every message has four such numbers.
fn number(digits: &[u8]) -> Option<u64> {
    let more = |number: u64, digit: &u8| {
        let digit = digit.wrapping_sub(b'0');
        if digit < 10 {
            number.checked_mul(10)?.checked_add(digit.into())
        } else {
            None
        }
    };
    digits
        .iter()
        .try_fold(0, more)
        .filter(|_| !digits.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sse::SourceTag;

    fn convert(parts: MessageFields<'_>) -> Decoded {
        let position = Position {
            tag: SourceTag::of_identity("x"),
            seq: 1,
            fingerprint: None,
        };
        to_event(parts, position, Instant::now())
    }

    fn message(
        subject: &str,
        headers: Option<HeaderMap>,
        payload: &[u8],
        length: usize,
    ) -> Message {
        let payload = Bytes::copy_from_slice(payload);
        Message {
            subject: subject.into(),
            reply: None,
            payload,
            headers,
            status: None,
            description: None,
            length,
        }
    }

    proptest! {
        #[test]
        fn no_message_makes_the_conversion_panic(
            subject in "\\PC*", value in prop::option::of("\\PC*"), payload in prop::collection::vec(any::<u8>(), 0..200),
            reply in "(\\$JS\\.ACK\\.)?[0-9a-z.-]{0,60}", length in any::<usize>(),
        ) {
            let headers = value.map(|value| HeaderMap::from_iter([NAME, TIER, ID].map(|name| (name.parse().unwrap(), value.parse().unwrap()))));
            let message = message(&subject, headers, &payload, length);
            let parts = MessageFields::of_core(&message);
            let is_kept = parts.dropped_bytes == 0;
            let event = convert(parts).event;
            prop_assert_eq!(event.is_some(), is_kept);
            if let Some(event) = event {
                prop_assert_eq!(&event.data[..], &payload[..]);
            }
            let _ = AckInfo::parse(&reply);
        }
    }

    #[test]
    fn a_publisher_names_an_event_and_gives_its_tier() {
        let converted = convert(MessageFields {
            name: Some("created"),
            tier: Some("Critical"),
            ..MessageFields::default()
        });
        let event = converted.event.unwrap();
        assert_eq!(event.name.unwrap().as_str(), "created");
        assert_eq!(event.tier, Some(Tier::Critical));
        assert!(!converted.name_refused && !converted.tier_refused);
    }

    #[test]
    fn a_message_that_marks_a_removal_becomes_an_event_of_its_own() {
        let removed = |headers: &[(&str, &str)], payload: &[u8]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let message = message("a.\"b", Some(HeaderMap::from_iter(headers)), payload, 0);
            let event = convert(MessageFields::of(&message)).event.unwrap();
            (
                event.name.map(|name| name.as_str().to_owned()),
                String::from_utf8(event.data.to_vec()).unwrap(),
            )
        };
        for (headers, reason) in [
            (&[("KV-Operation", "DEL")][..], "DEL"),
            (
                &[("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")],
                "PURGE",
            ),
            (
                &[("Nats-Marker-Reason", "MaxAge"), ("Nats-TTL", "5s")],
                "MaxAge",
            ),
            (
                &[("Sidestream-Event", "x"), ("Nats-Marker-Reason", "Remove")],
                "Remove",
            ),
        ] {
            let data = format!(r#"{{"reason":"{reason}","subject":"a.\"b"}}"#);
            assert_eq!(
                removed(headers, b""),
                (Some("sidestream.removed".to_owned()), data)
            );
            // With a payload it is what its publisher says.
            assert_eq!(removed(headers, b"x").1, "x");
        }
        assert_eq!(
            removed(&[("KV-Operation", "PUT")], b""),
            (None, String::new())
        );
        assert_eq!(removed(&[], b""), (None, String::new()));
    }

    #[test]
    fn an_unusable_name_or_tier_is_left_out_and_told() {
        let converted = convert(MessageFields {
            name: Some("a\nb"),
            tier: Some("urgent"),
            ..MessageFields::default()
        });
        let event = converted.event.unwrap();
        assert_eq!((event.name, event.tier), (None, None));
        assert!(converted.name_refused && converted.tier_refused);
    }

    #[test]
    fn a_payload_over_the_limit_is_no_event() {
        let payload = vec![0; PAYLOAD_BYTES_MAX + 1];
        assert!(
            convert(MessageFields {
                payload: &payload,
                ..MessageFields::default()
            })
            .event
            .is_none()
        );
        assert!(
            convert(MessageFields {
                payload: &payload[1..],
                ..MessageFields::default()
            })
            .event
            .is_some()
        );
    }

    #[test]
    fn a_damaged_name_or_id_is_not_used() {
        let damaged = HeaderMap::from_iter(
            [NAME, ID].map(|name| (name.parse().unwrap(), "a\u{fffd}".parse().unwrap())),
        );
        let message = message("a", Some(damaged), b"x", 0);
        let converted = convert(MessageFields::of_core(&message));
        assert!(converted.name_refused);
        let event = converted.event.unwrap();
        assert_eq!((event.name, event.message_id), (None, None));
    }

    #[test]
    fn a_message_without_its_content_is_no_event_and_an_empty_one_is() {
        let dropped = message("a.b", None, b"", 20_000_003);
        assert_eq!(MessageFields::of(&dropped).dropped_bytes, 20_000_000);
        assert!(convert(MessageFields::of(&dropped)).event.is_none());
        let empty = message("a.b", None, b"", 3);
        assert_eq!(convert(MessageFields::of(&empty)).event.unwrap().data, "");
    }

    #[test]
    fn a_place_is_read_in_both_of_its_forms() {
        let place = Some(AckInfo {
            sequence: 100,
            delivery: 7,
            published: 1_790_230_470_084_404_000,
            pending: 42,
        });
        assert_eq!(
            AckInfo::parse("$JS.ACK.events.c.3.100.7.1790230470084404000.42"),
            place
        );
        assert_eq!(
            AckInfo::parse("$JS.ACK._.hash.events.c.3.100.7.1790230470084404000.42"),
            place
        );
        assert_eq!(
            AckInfo::parse("$JS.ACK.hub.hash.events.c.3.100.7.1790230470084404000.42.token.more"),
            place
        );
        for other in [
            "",
            "$JS.ACK.a.b.c.d.e.f.g",
            "_INBOX.a.b",
            "$JS.ACK.events.c.3.100.7.1.42.8",
        ] {
            assert_eq!(AckInfo::parse(other), None, "{other:?}");
        }
    }
}
