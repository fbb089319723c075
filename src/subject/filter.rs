//! A filter: a NATS subject that may hold the wildcards `*` (one token) and `>` (all that follow).

use std::fmt;
use std::sync::Arc;

/// A valid filter. Two filters are equal when they select the same subjects.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter(Arc<str>);

/// Why a text is no filter that may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidFilter {
    /// Empty, or longer than [`Filter::LENGTH_MAX`].
    Length,
    /// More tokens than [`Filter::TOKENS_MAX`].
    Tokens,
    /// An empty token: a dot at the beginning, the end or beside another.
    EmptyToken,
    /// White space or a control character.
    Character,
    /// `*` inside a token, or `>` inside one or before the end.
    Wildcard,
    /// Begins with `$` or `_INBOX`: NATS's own subjects are never served.
    Reserved,
}

impl InvalidFilter {
    /// What is wrong, as a sentence.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Self::Length => "a subject has 1 to 255 bytes",
            Self::Tokens => "a subject has at most 16 tokens",
            Self::EmptyToken => {
                "a subject has no empty token: no dot first, last or twice in a row"
            }
            Self::Character => "a subject has no white space and no control characters",
            Self::Wildcard => "`*` stands for one whole token and `>` for all the last ones",
            Self::Reserved => {
                "subjects that begin with `$` or `_INBOX` belong to NATS and are never served"
            }
        }
    }
}

impl Filter {
    /// The longest filter, in bytes.
    pub const LENGTH_MAX: usize = 255;
    /// The most tokens.
    pub const TOKENS_MAX: usize = 16;

    /// Takes a filter that may be served.
    ///
    /// # Errors
    /// [`InvalidFilter`] by the rules of NATS and the subjects that are never served.
    pub fn parse(text: &str) -> Result<Self, InvalidFilter> {
        if text.is_empty() || text.len() > Self::LENGTH_MAX {
            return Err(InvalidFilter::Length);
        }
        if text
            .chars()
            .any(|char| char.is_whitespace() || char.is_control())
        {
            return Err(InvalidFilter::Character);
        }
        let count = text.split('.').count();
        for (index, token) in text.split('.').enumerate() {
            match token {
                "" => return Err(InvalidFilter::EmptyToken),
                "*" => {}
                ">" if index + 1 == count => {}
                _ if token.contains(['*', '>']) => return Err(InvalidFilter::Wildcard),
                _ => {}
            }
        }
        if count > Self::TOKENS_MAX {
            return Err(InvalidFilter::Tokens);
        }
        if is_reserved(text) {
            return Err(InvalidFilter::Reserved);
        }
        Ok(Self(Arc::from(text)))
    }

    /// The filter as NATS reads it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tokens.
    pub fn tokens(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.split('.')
    }

    /// Whether it selects this subject. A wildcard in the first place selects none of NATS's own either.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        if is_reserved(subject) {
            return false;
        }
        // Byte by byte, for every message: a wildcard is always a whole token, so nothing has to be split.
        let (subject, mut at) = (subject.as_bytes(), 0);
        for &own in self.0.as_bytes() {
            match own {
                b'>' => return true,
                b'*' => {
                    at += subject[at..]
                        .iter()
                        .take_while(|byte| **byte != b'.')
                        .count()
                }
                own if subject.get(at) == Some(&own) => at += 1,
                _ => return false,
            }
        }
        at == subject.len()
    }

    /// Whether every subject that `other` selects is selected by this one too: token by token, never as text.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let mut theirs = other.tokens();
        for own in self.tokens() {
            match (own, theirs.next()) {
                (_, None) => return false,
                (">", Some(_)) => return true,
                ("*", Some(token)) if token != ">" => {}
                (own, Some(token)) if own == token => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }

    /// Whether some subject is selected by both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.tokens(), other.tokens());
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(one), Some(two)) if one == two || one == "*" || two == "*" => {}
                _ => return false,
            }
        }
    }

    /// The narrowest filter that covers both, token by token.
    #[must_use]
    pub fn widened(&self, other: &Self) -> Self {
        let mut tokens: Vec<&str> = Vec::new();
        let (mut ours, mut theirs) = (self.tokens(), other.tokens());
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => break,
                (Some(one), Some(two)) if one != ">" && two != ">" => {
                    tokens.push(if one == two { one } else { "*" })
                }
                (None, _) | (_, None) => {
                    // One ends where the other goes on: `>` needs at least one token, so it takes the last one too.
                    tokens.pop();
                    tokens.push(">");
                    break;
                }
                _ => {
                    tokens.push(">");
                    break;
                }
            }
        }
        Self(Arc::from(tokens.join(".")))
    }
}

/// NATS's own subjects: never served, whatever is allowed.
#[must_use]
pub fn is_reserved(subject: &str) -> bool {
    subject.starts_with('$') || subject.starts_with("_INBOX")
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn filter() -> impl Strategy<Value = Filter> {
        let token = prop_oneof![3 => "[ab]", 1 => Just("*".to_owned())];
        (prop::collection::vec(token, 1..4), any::<bool>()).prop_map(|(mut tokens, tail)| {
            if tail {
                tokens.push(">".to_owned());
            }
            Filter::parse(&tokens.join(".")).unwrap()
        })
    }

    /// Every subject over the letters a and b with up to five tokens: enough to tell apart all filters made above.
    pub(crate) fn subjects() -> impl Iterator<Item = String> {
        (1..=5u32).flat_map(|length| {
            (0..2u32.pow(length)).map(move |bits| {
                let token = |place| if bits >> place & 1 == 0 { "a" } else { "b" };
                (0..length).map(token).collect::<Vec<_>>().join(".")
            })
        })
    }

    proptest! {
        #[test]
        fn a_filter_selects_token_by_token(filter in filter(), extra in "[ab.]{0,6}") {
            let naive = |subject: &str| {
                let mut tokens = subject.split('.');
                for own in filter.tokens() {
                    match (own, tokens.next()) {
                        (_, None) => return false,
                        (">", Some(_)) => return true,
                        ("*", Some(_)) => {}
                        (own, Some(token)) if own == token => {}
                        _ => return false,
                    }
                }
                tokens.next().is_none()
            };
            for subject in subjects().chain([extra]) {
                prop_assert_eq!(filter.matches(&subject), naive(&subject), "{} {}", filter, subject);
            }
        }
    }

    #[test]
    fn a_wildcard_selects_nothing_of_nats_itself() {
        for filter in [">", "*.x", "*.>", "*"] {
            let filter = Filter::parse(filter).unwrap();
            for subject in ["$JS.x", "$x", "_INBOX.x", "_INBOX"] {
                assert!(!filter.matches(subject), "{filter} {subject}");
            }
        }
        assert!(Filter::parse(">").unwrap().matches("_inbox.x"));
    }

    proptest! {
        #[test]
        fn covering_means_every_subject_of_one_is_a_subject_of_the_other(one in filter(), two in filter()) {
            let naive = subjects().all(|subject| !two.matches(&subject) || one.matches(&subject));
            // The letters are only two, so `a` and `b` together look like `*`; a filter never needs both.
            prop_assert!(!one.covers(&two) || naive, "{one} {two}");
            if !naive {
                prop_assert!(!one.covers(&two));
            }
        }

        #[test]
        fn overlapping_means_a_common_subject(one in filter(), two in filter()) {
            let naive = subjects().any(|subject| one.matches(&subject) && two.matches(&subject));
            prop_assert_eq!(one.overlaps(&two), naive, "{} {}", one, two);
        }

        #[test]
        fn a_widened_filter_covers_both(one in filter(), two in filter()) {
            let wide = one.widened(&two);
            prop_assert!(wide.covers(&one) && wide.covers(&two), "{one} {two} {wide}");
            prop_assert!(Filter::parse(wide.as_str()).is_ok(), "{wide}");
        }

        #[test]
        fn any_text_gets_an_answer(text in "\\PC{0,300}|[ab.*>$\\x00 ]{0,20}") {
            if let Ok(filter) = Filter::parse(&text) {
                prop_assert_eq!(filter.as_str(), text.as_str());
            }
        }
    }

    #[test]
    fn what_is_no_filter_says_why() {
        let invalid = |text: &str| Filter::parse(text).unwrap_err();
        assert_eq!(invalid(""), InvalidFilter::Length);
        assert_eq!(invalid(&"a".repeat(256)), InvalidFilter::Length);
        assert_eq!(invalid(&["a"; 17].join(".")), InvalidFilter::Tokens);
        for text in [".a", "a.", "a..b", "."] {
            assert_eq!(invalid(text), InvalidFilter::EmptyToken, "{text:?}");
        }
        for text in ["a b", "a\0", "a\n", "a.\u{a0}"] {
            assert_eq!(invalid(text), InvalidFilter::Character, "{text:?}");
        }
        for text in ["a*", "a.>b", ">.a", "a.>.b", "**"] {
            assert_eq!(invalid(text), InvalidFilter::Wildcard, "{text:?}");
        }
        for text in ["$SYS.>", "$JS", "_INBOX.x", "_INBOX_sse.x"] {
            assert_eq!(invalid(text), InvalidFilter::Reserved, "{text:?}");
        }
    }

    #[test]
    fn covering_compares_tokens_and_not_text() {
        let filter = |text: &str| Filter::parse(text).unwrap();
        assert!(filter("orders.>").covers(&filter("orders.42")));
        assert!(filter("orders.>").covers(&filter("orders.*.x.>")));
        assert!(!filter("orders.>").covers(&filter("orders")));
        assert!(!filter("orders.>").covers(&filter("orders2.x")));
        assert!(!filter("orders.*").covers(&filter("orders.>")));
        assert!(!filter("orders.4").covers(&filter("orders.42")));
        assert!(!filter("a.*").covers(&filter(">")));
    }
}
