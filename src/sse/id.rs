//! Event ids: a position in every source of one event stream, `tag-seq-check` joined by dots.

use std::fmt;

use sha2::{Digest, Sha256};

/// Which sequence of numbers a position counts in: 24 bits, written as six hex digits.
///
/// A stream that is deleted and created again has another tag, so its numbers are never mistaken for the old ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceTag(u32);

impl SourceTag {
    /// The tag of a JetStream stream: from its name and its creation time in unix nanoseconds.
    #[must_use]
    pub fn of_stream(name: &str, created_unix_nanos: i128) -> Self {
        Self::hash(&["stream", name, &created_unix_nanos.to_string()])
    }

    /// The tag of a source with a configured identity, which replaces name and creation time: a mirror and its
    /// origin share it.
    #[must_use]
    pub fn of_identity(identity: &str) -> Self {
        Self::hash(&["identity", identity])
    }

    /// The tag of the core subjects of one process, from a text that is unique to it.
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

/// The position in one source: after the message with this sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Which numbers these are.
    pub tag: SourceTag,
    /// The sequence number that was passed last; 0 stands before the first.
    pub seq: u64,
    /// Sixteen bits of the publish time of the message at `seq`; none when no message is known to stand there.
    pub check: Option<u16>,
}

impl Position {
    /// Folds a publish time (unix nanoseconds) into the check of the message.
    #[must_use]
    pub fn check_of(published_unix_nanos: i128) -> u16 {
        let bytes = published_unix_nanos.to_be_bytes();
        bytes.chunks_exact(2).fold(0, |check, pair| {
            check ^ u16::from_be_bytes([pair[0], pair[1]])
        })
    }

    fn parse(text: &str) -> Result<Self, InvalidId> {
        let mut parts = text.split('-');
        let (Some(tag), Some(seq), check, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidId::Form);
        };
        if seq.is_empty() || !seq.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidId::Form);
        }
        Ok(Self {
            tag: SourceTag(hex(tag, 6)?),
            seq: seq.parse().map_err(|_| InvalidId::Form)?,
            check: check
                .map(|check| hex(check, 4).map(|value| value as u16))
                .transpose()?,
        })
    }
}

/// Exactly `digits` lower-case hex digits.
fn hex(text: &str, digits: usize) -> Result<u32, InvalidId> {
    let sound = text.len() == digits
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !sound {
        return Err(InvalidId::Form);
    }
    u32::from_str_radix(text, 16).map_err(|_| InvalidId::Form)
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand, from behind: every event that comes bears one.
        let mut text = [0; COMPONENT_LENGTH_MAX];
        let mut start = text.len();
        let mut put = |byte| {
            start -= 1;
            text[start] = byte;
        };
        let digit = |value: u32| b"0123456789abcdef"[(value % 16) as usize];
        if let Some(check) = self.check {
            (0..4).for_each(|place| put(digit(u32::from(check) >> (4 * place))));
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
        (0..6).for_each(|place| put(digit(self.tag.0 >> (4 * place))));
        f.write_str(std::str::from_utf8(&text[start..]).unwrap_or_default())
    }
}

/// A tag, twenty digits, a check, and what parts them.
const COMPONENT_LENGTH_MAX: usize = 6 + 1 + 20 + 1 + 4;

/// A whole id: one component per source, found by tag, not by place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventId {
    components: Vec<Position>,
}

/// Why a text is no event id of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidId {
    /// Longer than [`EventId::LENGTH_MAX`].
    TooLong,
    /// More components than a route can have sources.
    TooMany,
    /// The same tag twice.
    Repeated,
    /// Not `tag-seq` or `tag-seq-check` joined by dots.
    Form,
}

impl EventId {
    /// The longest id in bytes: what browsers will let cross origins without asking first (whatwg/fetch#568).
    pub const LENGTH_MAX: usize = 128;
    /// The most components: the most sources of a route.
    pub const COMPONENTS_MAX: usize = 4;

    /// An id of these components, in this order.
    #[must_use]
    pub fn new(components: Vec<Position>) -> Self {
        debug_assert!(
            components.len() <= Self::COMPONENTS_MAX,
            "a route has at most four sources"
        );
        Self { components }
    }

    /// Reads any bytes: an id, or why they are none.
    ///
    /// # Errors
    /// [`InvalidId`] for anything that this format does not write.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidId> {
        if bytes.len() > Self::LENGTH_MAX {
            return Err(InvalidId::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| InvalidId::Form)?;
        let mut components: Vec<Position> = Vec::with_capacity(1);
        for part in text.split('.') {
            let component = Position::parse(part)?;
            if components.len() == Self::COMPONENTS_MAX {
                return Err(InvalidId::TooMany);
            }
            if components.iter().any(|known| known.tag == component.tag) {
                return Err(InvalidId::Repeated);
            }
            components.push(component);
        }
        Ok(Self { components })
    }

    /// The components, in the order of the text.
    #[must_use]
    pub fn components(&self) -> &[Position] {
        &self.components
    }

    /// Whether a text is this id, with its components in any order.
    #[must_use]
    pub fn is_same(&self, text: &str) -> bool {
        Self::parse(text.as_bytes()).is_ok_and(|other| {
            other.components.len() == self.components.len()
                && self
                    .components
                    .iter()
                    .all(|at| other.find(at.tag) == Some(*at))
        })
    }

    /// The component with this tag.
    #[must_use]
    pub fn find(&self, tag: SourceTag) -> Option<Position> {
        self.components
            .iter()
            .copied()
            .find(|component| component.tag == tag)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Joined(&self.components), f)
    }
}

/// Components as an id is written, without making one.
#[derive(Clone, Copy, Debug)]
pub struct Joined<'c>(pub &'c [Position]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, component) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            write!(f, "{component}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn component() -> impl Strategy<Value = Position> {
        (0u32..1 << 24, 0..=i64::MAX as u64, any::<Option<u16>>()).prop_map(|(tag, seq, check)| {
            Position {
                tag: SourceTag(tag),
                seq,
                check,
            }
        })
    }

    proptest! {
        #[test]
        fn every_id_that_is_written_is_read_back(components in prop::collection::vec(component(), 1..=4)) {
            let mut components = components;
            components.sort_by_key(|component| component.tag);
            components.dedup_by_key(|component| component.tag);
            let id = EventId::new(components);
            let text = id.to_string();
            prop_assert!(text.len() <= EventId::LENGTH_MAX);
            let by_the_book = |Position { tag, seq, check }: &Position| {
                format!("{tag}-{seq}{}", check.map_or(String::new(), |check| format!("-{check:04x}")))
            };
            prop_assert_eq!(&text, &id.components.iter().map(by_the_book).collect::<Vec<_>>().join("."));
            prop_assert_eq!(EventId::parse(text.as_bytes()), Ok(id));
        }

        #[test]
        fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(id) = EventId::parse(&bytes) {
                // Leading zeros of a number are the only other spelling of the same position.
                prop_assert_eq!(EventId::parse(id.to_string().as_bytes()), Ok(id));
            }
        }

        #[test]
        fn near_misses_get_an_answer(text in "[0-9a-g.-]{0,140}") {
            let answer = EventId::parse(text.as_bytes());
            prop_assert!(text.len() <= 128 || answer == Err(InvalidId::TooLong));
        }
    }

    #[test]
    fn the_written_form_is_the_documented_one() {
        let one = Position {
            tag: SourceTag(0x3f_a9c1),
            seq: 18422,
            check: Some(0x7d3e),
        };
        let two = Position {
            tag: SourceTag(1),
            seq: 0,
            check: None,
        };
        assert_eq!(
            EventId::new(vec![one, two]).to_string(),
            "3fa9c1-18422-7d3e.000001-0"
        );
    }

    #[test]
    fn tags_and_checks_are_the_same_on_every_pod_and_release() {
        assert_eq!(
            SourceTag::of_stream("ORDERS", 1_700_000_000_000_000_000).to_string(),
            "ed9319"
        );
        assert_eq!(SourceTag::of_identity("orders").to_string(), "616b44");
        assert_eq!(Position::check_of(1_700_000_000_123_456_789), 0x7bf9);
    }

    #[test]
    fn what_is_no_id_says_why() {
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
            assert_eq!(invalid(text), InvalidId::Form, "{text:?}");
        }
        assert_eq!(invalid(&"0".repeat(129)), InvalidId::TooLong);
        assert_eq!(
            invalid("000001-1.000002-1.000003-1.000004-1.000005-1"),
            InvalidId::TooMany
        );
        assert_eq!(invalid("000001-1.000001-2"), InvalidId::Repeated);
    }
}
