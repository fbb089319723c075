//! Event ids: one position per source of an event stream, `tag-seq-fingerprint` joined by dots.
//!
//! ```text
//! 3fa9c1-18422-7d3e.000001-0
//! tag    seq   fingerprint   second source, no fingerprint
//! ```
//!
//! The tag identifies the sequence (stream name and creation time, a configured identity, or one
//! process), so a recreated stream is recognised by its tag. A stream that was restored from a
//! snapshot keeps its tag; the fingerprint of the message at `seq` reveals that. All pods and
//! releases compute the same values. Clients treat an id as opaque.

use std::fmt;

use sha2::{Digest, Sha256};

/// Tag of a sequence: 24 bits, written as six hex digits.
///
/// A stream that is deleted and created again has another tag, so its sequence numbers cannot be
/// mistaken for the old ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceTag(u32);

impl SourceTag {
    /// Tag of a JetStream stream, from its name and its creation time in unix nanoseconds.
    #[must_use]
    pub fn of_stream(name: &str, created_unix_nanos: i128) -> Self {
        Self::hash(&["stream", name, &created_unix_nanos.to_string()])
    }

    /// Tag of a source with a configured identity, instead of name and creation time: a mirror and
    /// its origin share it.
    #[must_use]
    pub fn of_identity(identity: &str) -> Self {
        Self::hash(&["identity", identity])
    }

    /// Tag of the core subjects of one process, from a text unique to the process.
    #[must_use]
    pub fn of_process(unique: &str) -> Self {
        Self::hash(&["process", unique])
    }

    fn hash(parts: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part.as_bytes());
            hasher.update([0]);
        }
        let digest = hasher.finalize();
        Self(u32::from_be_bytes([0, digest[0], digest[1], digest[2]]))
    }
}

impl fmt::Display for SourceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

impl fmt::Debug for SourceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Position in one source: after the message with this sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Tag of the sequence.
    pub tag: SourceTag,
    /// Last sequence number passed; 0 is before the first.
    pub seq: u64,
    /// Fingerprint of the message at `seq`: 16 bits of its publish time. `None` if no message is
    /// known to exist there.
    pub fingerprint: Option<u16>,
}

impl Position {
    /// Folds a publish time in unix nanoseconds into a fingerprint.
    #[must_use]
    pub fn fingerprint_of(published_unix_nanos: i128) -> u16 {
        let bytes = published_unix_nanos.to_be_bytes();
        bytes.chunks_exact(2).fold(0, |fingerprint, pair| {
            fingerprint ^ u16::from_be_bytes([pair[0], pair[1]])
        })
    }

    fn parse(text: &str) -> Result<Self, InvalidId> {
        let mut parts = text.split('-');
        let (Some(tag), Some(seq), fingerprint, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidId::Format);
        };
        if seq.is_empty() || !seq.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidId::Format);
        }
        Ok(Self {
            tag: SourceTag(hex(tag, 6)?),
            seq: seq.parse().map_err(|_| InvalidId::Format)?,
            fingerprint: fingerprint
                .map(|fingerprint| hex(fingerprint, 4).map(|value| value as u16))
                .transpose()?,
        })
    }
}

/// Parses exactly `digits` lower-case hex digits.
fn hex(text: &str, digits: usize) -> Result<u32, InvalidId> {
    let is_valid = text.len() == digits
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !is_valid {
        return Err(InvalidId::Format);
    }
    u32::from_str_radix(text, 16).map_err(|_| InvalidId::Format)
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Formatted without `write!`, from the end, because every event has an id.
        let mut text = [0; POSITION_LENGTH_MAX];
        let mut start = text.len();
        let mut put = |byte| {
            start -= 1;
            text[start] = byte;
        };
        let digit = |value: u32| b"0123456789abcdef"[(value % 16) as usize];
        if let Some(fingerprint) = self.fingerprint {
            (0..4).for_each(|nth| put(digit(u32::from(fingerprint) >> (4 * nth))));
            put(b'-');
        }
        let mut seq = self.seq;
        loop {
            put(b'0' + (seq % 10) as u8);
            seq /= 10;
            if seq == 0 {
                break;
            }
        }
        put(b'-');
        (0..6).for_each(|nth| put(digit(self.tag.0 >> (4 * nth))));
        f.write_str(std::str::from_utf8(&text[start..]).unwrap_or_default())
    }
}

/// Tag, twenty digits, fingerprint and separators.
const POSITION_LENGTH_MAX: usize = 6 + 1 + 20 + 1 + 4;

/// Event id: one position per source, found by its tag, not by its place in the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventId {
    positions: Vec<Position>,
}

/// Reason why a text is not an event id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidId {
    /// Longer than [`EventId::LENGTH_MAX`].
    TooLong,
    /// More positions than a route can have sources.
    TooMany,
    /// Two positions with the same tag.
    DuplicateTag,
    /// Not `tag-seq` or `tag-seq-fingerprint`, joined by dots.
    Format,
}

impl EventId {
    /// Maximum length in bytes: browsers send longer values cross-origin only after a preflight
    /// (whatwg/fetch#568).
    pub const LENGTH_MAX: usize = 128;
    /// Maximum number of positions: the maximum number of sources of a route.
    pub const POSITIONS_MAX: usize = 4;

    /// Creates an id of these positions, in this order.
    #[must_use]
    pub fn new(positions: Vec<Position>) -> Self {
        debug_assert!(
            positions.len() <= Self::POSITIONS_MAX,
            "a route has at most four sources"
        );
        Self { positions }
    }

    /// Parses an id from any bytes.
    ///
    /// # Errors
    /// [`InvalidId`] for anything that [`fmt::Display`] does not write.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidId> {
        if bytes.len() > Self::LENGTH_MAX {
            return Err(InvalidId::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| InvalidId::Format)?;
        let mut positions: Vec<Position> = Vec::with_capacity(1);
        for part in text.split('.') {
            let position = Position::parse(part)?;
            if positions.len() == Self::POSITIONS_MAX {
                return Err(InvalidId::TooMany);
            }
            if positions.iter().any(|known| known.tag == position.tag) {
                return Err(InvalidId::DuplicateTag);
            }
            positions.push(position);
        }
        Ok(Self { positions })
    }

    /// Positions in the order of the text.
    #[must_use]
    pub fn positions(&self) -> &[Position] {
        &self.positions
    }

    /// True if a text is this id, with its positions in any order.
    #[must_use]
    pub fn is_same(&self, text: &str) -> bool {
        Self::parse(text.as_bytes()).is_ok_and(|other| {
            other.positions.len() == self.positions.len()
                && self
                    .positions
                    .iter()
                    .all(|at| other.find(at.tag) == Some(*at))
        })
    }

    /// Position with this tag.
    #[must_use]
    pub fn find(&self, tag: SourceTag) -> Option<Position> {
        self.positions
            .iter()
            .copied()
            .find(|position| position.tag == tag)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Joined(&self.positions), f)
    }
}

/// Positions in the format of an id, without allocating an [`EventId`].
#[derive(Clone, Copy, Debug)]
pub struct Joined<'c>(pub &'c [Position]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, position) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            write!(f, "{position}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position() -> impl Strategy<Value = Position> {
        (0u32..1 << 24, 0..=i64::MAX as u64, any::<Option<u16>>()).prop_map(
            |(tag, seq, fingerprint)| Position {
                tag: SourceTag(tag),
                seq,
                fingerprint,
            },
        )
    }

    proptest! {
        #[test]
        fn formatted_id_parses_to_itself(positions in prop::collection::vec(position(), 1..=4)) {
            let mut positions = positions;
            positions.sort_by_key(|position| position.tag);
            positions.dedup_by_key(|position| position.tag);
            let id = EventId::new(positions);
            let text = id.to_string();
            prop_assert!(text.len() <= EventId::LENGTH_MAX);
            let by_format = |Position { tag, seq, fingerprint }: &Position| {
                format!("{tag}-{seq}{}", fingerprint.map_or(String::new(), |fingerprint| format!("-{fingerprint:04x}")))
            };
            prop_assert_eq!(&text, &id.positions.iter().map(by_format).collect::<Vec<_>>().join("."));
            prop_assert_eq!(EventId::parse(text.as_bytes()), Ok(id));
        }

        #[test]
        fn parsing_any_bytes_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(id) = EventId::parse(&bytes) {
                // Leading zeros of a number are the only other spelling of the same position.
                prop_assert_eq!(EventId::parse(id.to_string().as_bytes()), Ok(id));
            }
        }

        #[test]
        fn parsing_near_misses_does_not_panic(text in "[0-9a-g.-]{0,140}") {
            let parsed = EventId::parse(text.as_bytes());
            prop_assert!(text.len() <= 128 || parsed == Err(InvalidId::TooLong));
        }
    }

    #[test]
    fn id_has_the_documented_format() {
        let one = Position {
            tag: SourceTag(0x3f_a9c1),
            seq: 18422,
            fingerprint: Some(0x7d3e),
        };
        let two = Position {
            tag: SourceTag(1),
            seq: 0,
            fingerprint: None,
        };
        assert_eq!(
            EventId::new(vec![one, two]).to_string(),
            "3fa9c1-18422-7d3e.000001-0"
        );
    }

    #[test]
    fn tags_and_fingerprints_are_the_same_on_every_pod_and_release() {
        assert_eq!(
            SourceTag::of_stream("ORDERS", 1_700_000_000_000_000_000).to_string(),
            "ed9319"
        );
        assert_eq!(SourceTag::of_identity("orders").to_string(), "616b44");
        assert_eq!(Position::fingerprint_of(1_700_000_000_123_456_789), 0x7bf9);
    }

    #[test]
    fn invalid_id_reports_the_reason() {
        let invalid = |text: &str| EventId::parse(text.as_bytes()).unwrap_err();
        for text in [
            "",
            ".",
            "abc",
            "3fa9c1",
            "3fa9c1-",
            "3fa9c1-1-",
            "3FA9C1-1",
            "3fa9c1-1-7d3",
            "3fa9c1-+1",
            "3fa9c1--1",
            "3fa9c1-1-7d3e-0",
            "3fa9c1-1.",
            "3fa9c1-99999999999999999999",
            "3fa9c1-1\0",
        ] {
            assert_eq!(invalid(text), InvalidId::Format, "{text:?}");
        }
        assert_eq!(invalid(&"0".repeat(129)), InvalidId::TooLong);
        assert_eq!(
            invalid("000001-1.000002-1.000003-1.000004-1.000005-1"),
            InvalidId::TooMany
        );
        assert_eq!(invalid("000001-1.000001-2"), InvalidId::DuplicateTag);
    }
}
