//! What all pods are told of one event stream: its key and its value in a bucket.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Close, State};

/// Which event stream of which client: `<client>.<connection>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Who it is, by the route's `client`.
    pub client: String,
    /// Tells the event stream from all others, of all pods and times.
    pub connection: String,
}

impl Key {
    /// The key as NATS takes it, whatever the client is called.
    #[must_use]
    pub fn encode(&self) -> String {
        format!("{}.{}", token(&self.client), token(&self.connection))
    }

    /// Reads what [`Key::encode`] has written.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let (client, connection) = text.split_once('.')?;
        Some(Self { client: plain(client)?, connection: plain(connection)? })
    }
}

/// Any text as one token of a key (ADR-8: letters, digits and `-/_=`): what is no letter, digit, `-` or `_` becomes `=`
/// and two hex digits a byte, and nothing at all a single `=`.
#[must_use]
pub fn token(text: &str) -> String {
    if text.is_empty() {
        return "=".to_owned();
    }
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => token.push(char::from(byte)),
            _ => token.push_str(&format!("={byte:02X}")),
        }
    }
    token
}

fn plain(token: &str) -> Option<String> {
    if token == "=" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'=' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    (!bytes.is_empty()).then(|| String::from_utf8(bytes).ok())?
}

/// The value: what is told of one event stream. Times are in milliseconds of Unix time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which pod serves it, or did.
    pub pod: String,
    /// The path as it is configured.
    pub route: String,
    /// The filters that it reads.
    pub subjects: Vec<String>,
    /// Where it stands. `reconnecting` with a `reason`: it was handed over, and its client is expected at another pod.
    pub state: State,
    /// Since when.
    pub since: u64,
    /// The position that was handed out last; once it has ended by a drain, the last one that was sent.
    pub last_event_id: String,
    /// Why it ended; none while it is open.
    #[serde(default)]
    pub reason: Option<String>,
    /// After this it says nothing any more: its pod is gone, or everyone has had time to read it.
    pub expires: u64,
}

/// A minute: how long after a drain its clients may come back without a position, and how long an end is told.
pub const ENDED_FOR: Duration = Duration::from_secs(60);

/// Who comes back, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who it is, by the route's own `client`.
    pub client: String,
    /// The path as it is configured.
    pub route: String,
    /// The filters that it wants to read.
    pub subjects: Vec<String>,
    /// The position that it has itself: what was kept for it is not needed any more.
    pub last_event_id: Option<String>,
}

impl Entry {
    /// Whether it still says anything.
    #[must_use]
    pub fn is_current(&self, now: u64) -> bool {
        self.expires > now
    }

    /// Whether a drain has left it for whoever comes back so.
    #[must_use]
    pub fn is_left_for(&self, wanted: &Wanted, now: u64) -> bool {
        self.state == State::Reconnecting
            && self.reason.as_deref() == Some(Close::Drain.reason())
            && self.is_current(now)
            && now.saturating_sub(self.since) < ENDED_FOR.as_millis() as u64
            && self.route == wanted.route
            && self.subjects == wanted.subjects
    }

    /// The same, taken over: nobody else may.
    #[must_use]
    pub fn taken_over(&self, now: u64) -> Self {
        Self { state: State::Closed, since: now, expires: now + ENDED_FOR.as_millis() as u64, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_client_has_a_key_that_is_legal_and_read_back(client in any::<String>(), connection in "[a-f0-9-]{1,20}") {
            let key = Key { client, connection };
            let text = key.encode();
            prop_assert_eq!(text.matches('.').count(), 1);
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.".contains(&byte);
            prop_assert!(text.bytes().all(legal) && !text.starts_with('.'));
            prop_assert_eq!(Key::decode(&text), Some(key));
        }

        #[test]
        fn any_text_gets_an_answer(text in any::<String>()) {
            if let Some(key) = Key::decode(&text) {
                prop_assert_eq!(Key::decode(&key.encode()), Some(key));
            }
        }
    }

    #[test]
    fn keys_are_written_as_documented_and_what_is_none_is_not_read() {
        let key = |client: &str| Key { client: client.into(), connection: "7-1".into() }.encode();
        assert_eq!(key("42"), "42.7-1");
        assert_eq!(key("a.b@c é"), "a=2Eb=40c=20=C3=A9.7-1");
        assert_eq!(key(""), "=.7-1");
        for text in ["", "a", ".a", "a.", "a=2.b", "a=XX.b", "=FF.b", "a==.b"] {
            assert_eq!(Key::decode(text), None, "{text:?}");
        }
    }

    const NOW: u64 = 1_700_000_000_000;

    fn left() -> Entry {
        Entry {
            pod: "a".into(),
            route: "/events/{id}".into(),
            subjects: vec!["a.1".into(), "b".into()],
            state: State::Reconnecting,
            since: NOW,
            last_event_id: "3fa9c1-7".into(),
            reason: Some("drain".into()),
            expires: NOW + 60_000,
        }
    }

    fn wanted() -> Wanted {
        let (route, subjects) = (left().route, left().subjects);
        Wanted { client: "42".into(), route, subjects, last_event_id: None }
    }

    #[test]
    fn only_what_a_drain_left_within_a_minute_for_this_route_and_these_subjects_is_taken_over() {
        assert!(left().is_left_for(&wanted(), NOW) && left().is_left_for(&wanted(), NOW + 59_999));
        for (what, entry, wanted) in [
            ("other subjects", left(), Wanted { subjects: vec!["a.1".into()], ..wanted() }),
            ("another route", left(), Wanted { route: "/all".into(), ..wanted() }),
            ("resumes, and was not drained", Entry { reason: None, ..left() }, wanted()),
            ("ended otherwise", Entry { reason: Some("client".into()), ..left() }, wanted()),
            ("taken already", left().taken_over(NOW), wanted()),
            ("a minute ago", Entry { since: NOW - 60_000, expires: NOW + 1, ..left() }, wanted()),
            ("expired", Entry { expires: NOW, ..left() }, wanted()),
        ] {
            assert!(!entry.is_left_for(&wanted, NOW), "{what}");
        }
    }
}
