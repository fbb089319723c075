//! Label selectors in the syntax of kubectl: `app=orders`, `tier!=db`, `env in (a, b)`, `!legacy`,
//! joined by commas.
//!
//! `sidestream inject --selector` selects workloads by the labels of their pod templates. The
//! syntax and the results are those of `kubectl get pods --selector`, including its less known
//! parts: a requirement with `!=` or `notin` is met if the label is missing, and `in ()` matches an
//! empty value. An empty selector is an error (see [`Selector::parse`]).

use serde_json::{Map, Value};

use super::options::INJECT;

/// 63 characters: the longest value of a label, and the longest name after the prefix of a key.
const NAME_CHARS_MAX: usize = 63;

/// Requirements on labels; a workload must meet all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

/// Condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    /// Met if the label is missing, too.
    NotIn(Vec<String>),
    Above(i64),
    Below(i64),
}

/// Invalid selector: a sentence with the position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

impl Selector {
    /// Parses a selector. An empty one, which matches everything for kubectl, is an error here: it
    /// is more often a shell variable without a value.
    ///
    /// # Errors
    /// If the text is not a selector.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.trim().is_empty() {
            return Err(SelectorError(
                "the selector is empty; without one every workload is selected".into(),
            ));
        }
        let mut reader = Reader { rest: text };
        let mut requirements = vec![reader.requirement()?];
        while reader.skip(",") {
            requirements.push(reader.requirement()?);
        }
        match reader.rest.trim_start() {
            "" => Ok(Self(requirements)),
            rest => Err(unexpected(rest, "`,` or the end")),
        }
    }

    /// Selector of pods that request the sidecar, as in the webhook configuration.
    #[must_use]
    pub fn injected() -> Self {
        Self(vec![Requirement {
            key: INJECT.into(),
            test: Test::In(vec!["true".into()]),
        }])
    }

    /// Returns whether labels meet every requirement. A label that is not a string counts as empty.
    #[must_use]
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels
                .and_then(|labels| labels.get(&requirement.key))
                .map(|value| value.as_str().unwrap_or(""));
            requirement.test.is_met(value)
        })
    }
}

impl Test {
    fn is_met(&self, value: Option<&str>) -> bool {
        let is_in = |values: &[String]| {
            value.is_some_and(|value| values.iter().any(|other| other == value))
        };
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(values) => is_in(values),
            Self::NotIn(values) => !is_in(values),
            Self::Above(bound) => number().is_some_and(|number| number > *bound),
            Self::Below(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

/// Unread part of a selector.
struct Reader<'t> {
    rest: &'t str,
}

impl<'t> Reader<'t> {
    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.skip("!") {
            return Ok(Requirement {
                key: self.key()?,
                test: Test::Absent,
            });
        }
        let key = self.key()?;
        let test = if self.skip("==") || self.skip("=") {
            Test::In(vec![self.value()?])
        } else if self.skip("!=") {
            Test::NotIn(vec![self.value()?])
        } else if self.skip(">") {
            Test::Above(self.number()?)
        } else if self.skip("<") {
            Test::Below(self.number()?)
        } else {
            match self.word() {
                "" => Test::Exists,
                "in" => Test::In(self.values()?),
                "notin" => Test::NotIn(self.values()?),
                word => return Err(unexpected(word, "`=`, `!=`, `in`, `notin`, `<` or `>`")),
            }
        };
        Ok(Requirement { key, test })
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let before = self.rest;
        let key = self.word();
        let (prefix, name) = key
            .split_once('/')
            .map_or((None, key), |(prefix, name)| (Some(prefix), name));
        let is_prefix = |prefix: &str| super::options::is_object_name(prefix);
        if name.is_empty() || !is_label_text(name) || !prefix.is_none_or(is_prefix) {
            return Err(unexpected(before, "the key of a label"));
        }
        Ok(key.to_owned())
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        let before = self.rest;
        let value = self.word();
        if is_label_text(value) {
            Ok(value.to_owned())
        } else {
            Err(unexpected(before, "the value of a label"))
        }
    }

    /// `(a, b)`; each may be empty, as in `()`.
    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        if !self.skip("(") {
            return Err(unexpected(self.rest, "`(`"));
        }
        let mut values = vec![self.value()?];
        while self.skip(",") {
            values.push(self.value()?);
        }
        if !self.skip(")") {
            return Err(unexpected(self.rest, "`,` or `)`"));
        }
        Ok(values)
    }

    fn number(&mut self) -> Result<i64, SelectorError> {
        let before = self.rest;
        self.word()
            .parse()
            .map_err(|_| unexpected(before, "a whole number"))
    }

    /// Reads up to white space or an operator.
    fn word(&mut self) -> &'t str {
        let rest = self.rest.trim_start();
        let is_end = |char: char| {
            char.is_whitespace() || matches!(char, ',' | '=' | '!' | '(' | ')' | '<' | '>')
        };
        let (word, rest) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
        self.rest = rest;
        word
    }

    fn skip(&mut self, sign: &str) -> bool {
        let Some(rest) = self.rest.trim_start().strip_prefix(sign) else {
            return false;
        };
        self.rest = rest;
        true
    }
}

/// Returns whether a text may be the value of a label: letters, digits, `-`, `_` and `.`, with a
/// letter or digit at both ends.
fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    text.len() <= NAME_CHARS_MAX
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && ends.into_iter().flatten().all(u8::is_ascii_alphanumeric)
}

fn unexpected(found: &str, expected: &str) -> SelectorError {
    let found: String = found.trim_start().chars().take(NAME_CHARS_MAX).collect();
    let found = if found.is_empty() {
        "the end".into()
    } else {
        format!("`{found}`")
    };
    SelectorError(format!(
        "the selector has {found} where {expected} is expected"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn matches(selector: &str, labels: &Value) -> bool {
        Selector::parse(selector)
            .unwrap()
            .matches(labels.as_object())
    }

    /// The expected results are those of `kubectl get pods --selector`.
    #[test]
    fn selectors_select_what_kubectl_selects() {
        let labels = json!({ "app": "orders", "env": "", "example.dev/tier": "web", "size": "7", "in": "a" });
        for selector in [
            "app",
            "app=orders",
            "app==orders",
            " app = orders , example.dev/tier = web ",
            "env=",
            "env",
            "!legacy",
            "! legacy",
            "app!=db",
            "legacy!=db",
            "app in (orders)",
            "app in ( db, orders )",
            "env in (,x)",
            "env in ()",
            "app notin (db,cache)",
            "legacy notin (db)",
            "size>6",
            "size < 8",
            "in=a",
            "in in (a),app notin (in,notin)",
        ] {
            assert!(matches(selector, &labels), "{selector}");
        }
        for selector in [
            "legacy",
            "app=",
            "app=Orders",
            "!app",
            "app!=orders",
            "app in (db)",
            "app notin (orders)",
            "env!=",
            "size>7",
            "size<7",
            "app>1",
            "legacy>1",
            "app,legacy",
            "app=orders,!env",
        ] {
            assert!(!matches(selector, &labels), "{selector}");
        }
        assert!(
            Selector::parse("!app").unwrap().matches(None)
                && !Selector::parse("app").unwrap().matches(None)
        );
    }

    #[test]
    fn invalid_selector_is_reported_with_the_position() {
        for (text, expected) in [
            ("", "the selector is empty"),
            (" ", "the selector is empty"),
            ("=x", "`=x` where the key"),
            (",app", "`,app` where the key"),
            ("app,", "the end where the key"),
            ("a b", "`b` where `=`, `!=`, `in`"),
            ("app in", "the end where `(`"),
            ("app in (a", "the end where `,` or `)`"),
            ("app=a b", "`b` where `,` or the end"),
            ("app=-a", "`-a` where the value"),
            ("x/y/z", "`x/y/z` where the key"),
            ("X/y", "`X/y` where the key"),
            ("app>many", "`many` where a whole number"),
            ("app!", "`!` where `,` or the end"),
            ("app=\"orders\"", "`\"orders\"` where the value"),
        ] {
            let error = Selector::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-z!=<>(), /.-]{0,40}") {
            drop(Selector::parse(&text));
        }
    }
}
