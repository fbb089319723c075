//! Event ids: one position per source of an event stream, `tag-seq-fingerprint` joined by dots.
//!
//! ```text
//! 3fa9c1-18422-2k7d3ew.000001-0
//! tag    seq   fingerprint      second source, no fingerprint
//! ```
//!
//! The tag identifies the sequence (stream name and creation time, a configured identity, or one
//! process), so a recreated stream is recognised by its tag. A stream that was restored from a
//! snapshot keeps its tag; the fingerprint of the message at `seq` reveals that. All pods and
//! releases compute the same values. Clients treat an id as opaque.
//!
//! A fingerprint has seven characters of [`BASE32`]. Version 0.1 wrote 16 of its 32 bits as four hex
//! digits; such ids are parsed and compared ([`Fingerprint::agrees_with`]).
//!
//! The exceptions are positions at which the pod knows no message. They have no fingerprint: the
//! beginning of an empty stream, most gaps, positions after messages that no filter of the pod
//! selects, and every position in core subjects, which have no messages but those of the process
//! that the tag names.

use std::fmt;

use sha2::{Digest, Sha256};

/// Tag of a sequence: 24 bits, written as six hex digits.
///
/// A stream that is deleted and created again has another tag, so its sequence numbers cannot be
/// mistaken for the old ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceTag([u8; 3]);

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
        Self([digest[0], digest[1], digest[2]])
    }
}

impl fmt::Display for SourceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, third] = self.0;
        write!(f, "{first:02x}{second:02x}{third:02x}")
    }
}

impl fmt::Debug for SourceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Checksum of the publish time of one message: distinguishes it from another message that has the
/// same sequence number, in a stream that was restored.
///
/// Compare two of them with [`Self::agrees_with`]: `==` also compares the form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fingerprint {
    /// 32 bits, big-endian: bytes without alignment, so that a [`Position`] has 16 bytes.
    Full([u8; 4]),
    /// 16 bits, big-endian: the form of version 0.1, only in ids of clients.
    Short([u8; 2]),
}

impl Fingerprint {
    /// Fingerprint of a message: the exclusive or of all 4-byte words of its publish time in unix
    /// nanoseconds.
    #[must_use]
    pub fn of_publish_time(unix_nanos: i128) -> Self {
        let folded = unix_nanos ^ (unix_nanos >> 64);
        Self::Full(((folded ^ (folded >> 32)) as u32).to_be_bytes())
    }

    /// Returns true if both can belong to the same message. If one has 16 bits, only these are
    /// compared.
    #[must_use]
    pub fn agrees_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::Full(_), Self::Full(_)) => self == other,
            _ => self.short_bytes() == other.short_bytes(),
        }
    }

    /// The form of version 0.1: the exclusive or of both halves.
    #[must_use]
    pub fn to_short(self) -> Self {
        Self::Short(self.short_bytes())
    }

    fn short_bytes(self) -> [u8; 2] {
        match self {
            Self::Full([a, b, c, d]) => [a ^ c, b ^ d],
            Self::Short(bytes) => bytes,
        }
    }

    /// Parses either form; they differ in their length.
    fn parse(text: &str) -> Result<Self, InvalidId> {
        if text.len() == SHORT_LENGTH {
            let [_, _, bytes @ ..] = hex(text, SHORT_LENGTH)?.to_be_bytes();
            return Ok(Self::Short(bytes));
        }
        if text.len() != FULL_LENGTH {
            return Err(InvalidId::Format);
        }
        let mut value: u64 = 0;
        for byte in text.bytes() {
            let digit = BASE32.binary_search(&byte).map_err(|_| InvalidId::Format)?;
            value = value << 5 | digit as u64;
        }
        let value = u32::try_from(value).map_err(|_| InvalidId::Format)?;
        Ok(Self::Full(value.to_be_bytes()))
    }

    /// Text of 32 bits.
    fn full_text(bytes: [u8; 4]) -> [u8; FULL_LENGTH] {
        let value = u32::from_be_bytes(bytes) as usize;
        std::array::from_fn(|nth| BASE32[(value >> (5 * (FULL_LENGTH - 1 - nth))) % BASE32.len()])
    }
}

/// Alphabet of fingerprints: Crockford's base 32 in lower case, without i, l, o and u. Ascending.
pub const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 7 characters of 5 bits; the first one has 2 bits.
const FULL_LENGTH: usize = 7;
/// 4 hex digits.
const SHORT_LENGTH: usize = 4;

/// Position in one source: after the message with this sequence number.
///
/// Every event and every client has one: its members are arranged for 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Tag of the sequence.
    pub tag: SourceTag,
    /// Last sequence number passed; 0 is before the first.
    pub seq: u64,
    /// Fingerprint of the message at `seq`. `None` if no message is known to exist there.
    pub fingerprint: Option<Fingerprint>,
}

impl Position {
    /// The position, with the fingerprint of the message that is stored there instead of the short
    /// form of it.
    #[must_use]
    pub fn with_full(self, stored: Option<Fingerprint>) -> Self {
        let is_short = matches!(self.fingerprint, Some(Fingerprint::Short(_)));
        Self {
            fingerprint: stored.filter(|_| is_short).or(self.fingerprint),
            ..self
        }
    }

    /// Returns true if both are after the same message. Their fingerprints may differ in form.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let do_fingerprints_agree = match (self.fingerprint, other.fingerprint) {
            (Some(one), Some(other)) => one.agrees_with(other),
            (one, other) => one == other,
        };
        (self.tag, self.seq) == (other.tag, other.seq) && do_fingerprints_agree
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
        let [_, tag @ ..] = hex(tag, TAG_LENGTH)?.to_be_bytes();
        Ok(Self {
            tag: SourceTag(tag),
            seq: seq.parse().map_err(|_| InvalidId::Format)?,
            fingerprint: fingerprint.map(Fingerprint::parse).transpose()?,
        })
    }

    /// Writes the text so that it ends before `end`, and returns its start. Without `write!`, because
    /// every event has an id.
    fn write_before(&self, end: usize, text: &mut [u8]) -> usize {
        let mut start = end;
        let mut put = |part: &[u8]| {
            start -= part.len();
            text[start..start + part.len()].copy_from_slice(part);
        };
        match self.fingerprint {
            Some(Fingerprint::Full(bytes)) => put(&Fingerprint::full_text(bytes)),
            Some(Fingerprint::Short(bytes)) => put(&hex_text::<SHORT_LENGTH>(&bytes)),
            None => {}
        }
        if self.fingerprint.is_some() {
            put(b"-");
        }
        let mut seq = self.seq;
        while seq >= 10 {
            let pair = (seq % 100) as u8;
            put(&[b'0' + pair / 10, b'0' + pair % 10]);
            seq /= 100;
        }
        if seq > 0 || self.seq == 0 {
            put(&[b'0' + seq as u8]);
        }
        put(b"-");
        put(&hex_text::<TAG_LENGTH>(&self.tag.0));
        start
    }
}

/// Parses exactly `digits` lower-case hex digits, at most eight.
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

/// Hex digits of these bytes: `LENGTH` is twice their number.
fn hex_text<const LENGTH: usize>(bytes: &[u8]) -> [u8; LENGTH] {
    std::array::from_fn(|nth| {
        let digit = bytes[nth / 2] >> (4 * ((nth + 1) % 2)) & 0xf;
        b"0123456789abcdef"[usize::from(digit)]
    })
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; POSITION_LENGTH_MAX];
        let start = self.write_before(text.len(), &mut text);
        f.write_str(std::str::from_utf8(&text[start..]).unwrap_or_default())
    }
}

/// 6 hex digits.
const TAG_LENGTH: usize = 6;
/// Tag, twenty digits, fingerprint and separators.
const POSITION_LENGTH_MAX: usize = TAG_LENGTH + 1 + 20 + 1 + FULL_LENGTH;

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

    /// True if a text is this id, with its positions in any order and either form of fingerprints.
    #[must_use]
    pub fn is_same(&self, text: &str) -> bool {
        Self::parse(text.as_bytes()).is_ok_and(|other| {
            other.positions.len() == self.positions.len()
                && self
                    .positions
                    .iter()
                    .all(|at| other.find(at.tag).is_some_and(|other| other.is_same(at)))
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
///
/// If the text would exceed [`EventId::LENGTH_MAX`], the fingerprints are left out. That takes four
/// sources with sequence numbers of more than 16 digits on average.
#[derive(Clone, Copy, Debug)]
pub struct Joined<'c>(pub &'c [Position]);

impl Joined<'_> {
    /// Writes the text to the end of `text` and returns its start.
    fn write(&self, has_fingerprints: bool, text: &mut [u8; JOINED_LENGTH_MAX]) -> usize {
        let mut start = text.len();
        for position in self.0.iter().take(EventId::POSITIONS_MAX).rev() {
            if start < text.len() {
                start -= 1;
                text[start] = b'.';
            }
            let fingerprint = position.fingerprint.filter(|_| has_fingerprints);
            let position = Position {
                fingerprint,
                ..*position
            };
            start = position.write_before(start, text);
        }
        start
    }
}

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; JOINED_LENGTH_MAX];
        let mut start = self.write(true, &mut text);
        if text.len() - start > EventId::LENGTH_MAX {
            start = self.write(false, &mut text);
        }
        f.write_str(std::str::from_utf8(&text[start..]).unwrap_or_default())
    }
}

/// All positions with all digits, and separators.
const JOINED_LENGTH_MAX: usize = EventId::POSITIONS_MAX * (POSITION_LENGTH_MAX + 1);

#[cfg(test)]
mod tests;
