//! Principal of a request: anonymous, or an identity with claims and an expiry.
//!
//! An anonymous principal is a null pointer: it costs no allocation. The claims of an identity live
//! as long as its request: an event stream keeps the expiry only.

use std::borrow::Cow;
use std::time::Instant;

use serde_json::{Map, Value};

use crate::subject::ClaimPath;

/// Client of a request, as far as authentication knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Principal {
    /// The route does not authenticate its clients.
    #[default]
    Anonymous,
    /// A provider has proved the identity.
    Identified(Box<Identity>),
}

/// Identity that a provider has proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the provider in the configuration.
    pub provider: Box<str>,
    /// Name of the client, unique within the provider.
    pub subject: Box<str>,
    /// Claims of the credentials.
    pub claims: Map<String, Value>,
    /// End of the credentials. `None`: they do not expire.
    pub expires: Option<Expiry>,
}

/// End of credentials. The provider converts wall-clock time once, so that a clock step does not
/// move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Time at which the credentials expire, in seconds since 1970.
    pub unix_seconds: u64,
    /// The same time by the monotonic clock.
    pub at: Instant,
    /// Time at which the principal is no longer valid here: later by the tolerated difference of
    /// clocks.
    pub end: Instant,
}

impl Principal {
    /// Returns the end of the credentials.
    #[must_use]
    pub fn expires(&self) -> Option<Expiry> {
        match self {
            Self::Anonymous => None,
            Self::Identified(identity) => identity.expires,
        }
    }

    /// Returns a claim as the text of a variable. Only strings and numbers have one; `None` for
    /// any other value and for a claim that is missing.
    #[must_use]
    pub fn claim_text(&self, path: &ClaimPath) -> Option<Cow<'_, str>> {
        match self.claim(path)? {
            Value::String(text) => Some(Cow::Borrowed(text)),
            Value::Number(number) => Some(Cow::Owned(number.to_string())),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// Returns a claim as texts: a text, or a list. The elements of a list that are not texts are
    /// left out. `None` for any other value and for a claim that is missing.
    #[must_use]
    pub fn claim_texts(&self, path: &ClaimPath) -> Option<Vec<Cow<'_, str>>> {
        match self.claim(path)? {
            Value::String(text) => Some(vec![Cow::Borrowed(text)]),
            Value::Array(values) => {
                let texts = values.iter().filter_map(Value::as_str);
                Some(texts.map(Cow::Borrowed).collect())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
        }
    }

    /// Returns a claim, through the objects on its path.
    #[must_use]
    pub fn claim(&self, path: &ClaimPath) -> Option<&Value> {
        let Self::Identified(identity) = self else {
            return None;
        };
        let mut names = path.names();
        let first = identity.claims.get(names.next()?)?;
        names.try_fold(first, |value, name| value.as_object()?.get(name))
    }
}

#[cfg(test)]
impl Principal {
    /// Returns the client `alice` of the provider `idp` with these claims, an object.
    pub(crate) fn with_claims(claims: Value) -> Self {
        let Value::Object(claims) = claims else {
            panic!("claims are an object")
        };
        Self::Identified(Box::new(Identity {
            provider: "idp".into(),
            subject: "alice".into(),
            claims,
            expires: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(principal: &Principal, path: &str) -> Option<String> {
        let path = ClaimPath::parse(path).unwrap();
        principal.claim_text(&path).map(Cow::into_owned)
    }

    #[test]
    fn claims_with_text_are_strings_and_numbers() {
        let principal = Principal::with_claims(serde_json::json!({
            "sub": "alice", "tenant": 42, "share": 0.5, "admin": true, "none": null,
            "roles": ["a"], "org": { "id": "7", "": "x" },
            "https://example.com/roles": { "first.second": "reader" },
        }));
        for (path, expected) in [
            (".sub", Some("alice")),
            (".tenant", Some("42")),
            (".share", Some("0.5")),
            (".org.id", Some("7")),
            (
                r#"["https://example.com/roles"]["first.second"]"#,
                Some("reader"),
            ),
            (".admin", None),
            (".none", None),
            (".roles", None),
            (".org", None),
            (".missing", None),
            (".org.missing", None),
            (".sub.id", None),
            (".roles.0", None),
        ] {
            assert_eq!(text(&principal, path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn claim_of_texts_is_a_text_or_a_list() {
        let principal = Principal::with_claims(serde_json::json!({
            "one": "a.>", "some": ["a.*", 7, null, "b"], "empty": [], "number": 7,
            "org": { "subjects": ["c"] },
        }));
        for (path, expected) in [
            (".one", Some(vec!["a.>"])),
            (".some", Some(vec!["a.*", "b"])),
            (".empty", Some(vec![])),
            (".org.subjects", Some(vec!["c"])),
            (".number", None),
            (".org", None),
            (".missing", None),
        ] {
            let path = ClaimPath::parse(path).unwrap();
            let texts = principal.claim_texts(&path);
            assert_eq!(
                texts.as_deref(),
                expected
                    .as_deref()
                    .map(|texts| texts
                        .iter()
                        .map(|text| Cow::Borrowed(*text))
                        .collect::<Vec<_>>())
                    .as_deref(),
                "{path}"
            );
        }
    }

    #[test]
    fn anonymous_principal_has_no_claims_and_costs_one_pointer() {
        assert_eq!(text(&Principal::Anonymous, ".sub"), None);
        assert_eq!(Principal::default().expires(), None);
        assert_eq!(size_of::<Principal>(), size_of::<usize>());
    }
}
