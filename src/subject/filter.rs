//! Filter: a NATS subject that may have the wildcards `*` (one token) and `>` (all that follow).
//!
//! [`Filter::parse`] applies the rules of NATS and refuses the reserved subjects (`$...`,
//! `_INBOX...`), so a `Filter` can always be served. Matching works on bytes and allocates nothing;
//! covering and overlapping work on tokens.

use std::fmt;
use std::sync::Arc;

/// Valid filter. Two filters are equal if they select the same subjects.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter(Arc<str>);

/// Reason why a text is not a filter that may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidFilter {
    /// Empty, or longer than [`Filter::LENGTH_MAX`].
    Length,
    /// More tokens than [`Filter::TOKENS_MAX`].
    Tokens,
    /// Empty token: a dot at the start, at the end or next to another.
    EmptyToken,
    /// White space or a control character.
    Character,
    /// `*` inside a token, or `>` inside one or before the end.
    Wildcard,
    /// Starts with `$` or `_INBOX`: subjects of NATS itself are never served.
    Reserved,
}

impl InvalidFilter {
    /// Error message.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Self::Length => "a subject has 1 to 255 bytes",
            Self::Tokens => "a subject has at most 16 tokens",
            Self::EmptyToken => {
                "a subject has no empty token: no dot first, last or twice in a row"
            }
            Self::Character => "a subject has no white space and no control characters",
            Self::Wildcard => "`*` must be a whole token, and `>` a whole token at the end",
            Self::Reserved => {
                "subjects that begin with `$` or `_INBOX` belong to NATS and are never served"
            }
        }
    }
}

impl Filter {
    /// Maximum length in bytes.
    pub const LENGTH_MAX: usize = 255;
    /// Maximum number of tokens.
    pub const TOKENS_MAX: usize = 16;

    /// Parses a filter that may be served.
    ///
    /// # Errors
    /// [`InvalidFilter`] for a subject that is invalid in NATS, or never served.
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

    /// Filter for a request to NATS: of subjects that begin with this prefix, which can be reserved. It
    /// selects no message here.
    #[must_use]
    pub fn prefixed(&self, prefix: &str) -> Self {
        Self(Arc::from(format!("{prefix}{}", self.0)))
    }

    /// The filter in NATS syntax.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Iterates over the tokens.
    pub fn tokens(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.split('.')
    }

    /// True if it selects this subject. A wildcard in the first token does not select reserved
    /// subjects.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        if is_reserved(subject) {
            return false;
        }
        // By bytes, because it runs for every message: a wildcard is a whole token, so no split is
        // needed.
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

    /// True if every subject that `other` selects is selected by this filter too.
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

    /// True if some subject is selected by both.
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

    /// Returns the narrowest filter that covers both, token by token.
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
                    // One filter is longer: `>` needs at least one token, so it replaces the last
                    // common one too.
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

/// True for subjects of NATS itself, which are never served.
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

    /// All subjects over the letters a and b with up to five tokens, enough to distinguish all
    /// filters generated above.
    pub(crate) fn subjects() -> impl Iterator<Item = String> {
        (1..=5u32).flat_map(|length| {
            (0..2u32.pow(length)).map(move |bits| {
                let token = |nth| if bits >> nth & 1 == 0 { "a" } else { "b" };
                (0..length).map(token).collect::<Vec<_>>().join(".")
            })
        })
    }

    proptest! {
        #[test]
        fn filter_matches_token_by_token(filter in filter(), extra in "[ab.]{0,6}") {
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
    fn wildcards_do_not_match_reserved_subjects() {
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
        fn covering_filter_selects_every_subject_of_the_other(one in filter(), two in filter()) {
            let naive = subjects().all(|subject| !two.matches(&subject) || one.matches(&subject));
            // With only two letters, `a` and `b` together equal `*`; a filter never needs both.
            prop_assert!(!one.covers(&two) || naive, "{one} {two}");
            if !naive {
                prop_assert!(!one.covers(&two));
            }
        }

        #[test]
        fn overlapping_filters_have_a_common_subject(one in filter(), two in filter()) {
            let naive = subjects().any(|subject| one.matches(&subject) && two.matches(&subject));
            prop_assert_eq!(one.overlaps(&two), naive, "{} {}", one, two);
        }

        #[test]
        fn widened_filter_covers_both(one in filter(), two in filter()) {
            let wide = one.widened(&two);
            prop_assert!(wide.covers(&one) && wide.covers(&two), "{one} {two} {wide}");
            prop_assert!(Filter::parse(wide.as_str()).is_ok(), "{wide}");
        }

        #[test]
        fn parsing_any_text_does_not_panic(text in "\\PC{0,300}|[ab.*>$\\x00 ]{0,20}") {
            if let Ok(filter) = Filter::parse(&text) {
                prop_assert_eq!(filter.as_str(), text.as_str());
            }
        }
    }

    #[test]
    fn invalid_filter_reports_the_reason() {
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
    fn covering_compares_tokens_not_text() {
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
