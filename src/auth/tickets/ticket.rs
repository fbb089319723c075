//! A ticket: 256 random bits in base64url, and the key under which a store has its entry.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};

/// Number of random bytes: 256 bits cannot be guessed.
const BYTES: usize = 32;

/// A ticket. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket(Box<str>);

/// Key of a ticket in the store: the SHA-256 of its text, in base64url. The ticket cannot be
/// computed from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketKey(Box<str>);

impl Ticket {
    /// Returns a new ticket; `None` if the system has no random numbers.
    pub(super) fn random() -> Option<Self> {
        let mut bytes = [0; BYTES];
        SystemRandom::new().fill(&mut bytes).ok()?;
        Some(Self(URL_SAFE_NO_PAD.encode(bytes).into()))
    }

    /// Returns its text, for the client.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns its key.
    pub(super) fn key(&self) -> TicketKey {
        TicketKey::hash(&self.0)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl TicketKey {
    /// Returns the key of a text; `None` if the text cannot be a ticket.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let mut bytes = [0; BYTES];
        let is_ticket = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) == Ok(BYTES);
        is_ticket.then(|| Self::hash(text))
    }

    /// Returns the text of the key: letters, digits, `-` and `_`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn hash(text: &str) -> Self {
        Self(
            URL_SAFE_NO_PAD
                .encode(digest(&SHA256, text.as_bytes()))
                .into(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_differ_and_have_the_key_of_their_text() {
        let (one, two) = (Ticket::random().unwrap(), Ticket::random().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.as_str().len(), 43);
        assert_eq!(TicketKey::of(one.as_str()), Some(one.key()));
        assert!(!format!("{one:?}{:?}", one.key()).contains(one.as_str()));
        let zeros = TicketKey::of(&"A".repeat(43)).unwrap();
        assert_eq!(
            zeros.as_str(),
            "DwBzhbb51LfusnSGBa_hqYSgo7-j8BTQnip4TOnlzRo"
        );
    }

    #[test]
    fn text_of_another_form_is_not_a_ticket() {
        for text in [
            "",
            "undefined",
            &"A".repeat(42),
            &"A".repeat(44),
            &"A".repeat(100_000),
            &format!("{}=", "A".repeat(43)),
            &format!("{}B", "A".repeat(42)),
            &format!("{}*", "A".repeat(42)),
            &format!("{}.>", "A".repeat(41)),
        ] {
            assert_eq!(TicketKey::of(text), None, "{text:.50}");
        }
    }
}
