//! Answer of an endpoint: its response as claims and times, or as a rejection.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{AGE, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use serde_json::{Map, Value};

use super::report::Outcome;
use crate::auth::expires::{expires, seconds};
use crate::auth::provider::EndpointRejection;

/// Answer about one request.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// The request is allowed.
    Allowed(Arc<Allowed>),
    /// The endpoint rejects the request.
    Rejected(EndpointRejection),
    /// The endpoint has not answered, or not as it should.
    Failed,
    /// Too many calls are in progress.
    Busy,
}

/// Permission by an endpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    /// Claims as JSON: a few bytes in the cache in place of a tree.
    json: Box<[u8]>,
    /// End of the permission, since 1970.
    pub(super) expires: Option<Duration>,
    /// Time for which the endpoint permits to use the answer. `None`: it names none.
    max_age: Option<Duration>,
}

/// 16 header fields: challenges of an endpoint.
const CHALLENGES_MAX: usize = 16;

/// Prefix of a header with a claim.
const CLAIM_PREFIX: &str = "sidestream-claim-";

impl Answer {
    /// Returns whether requests that asked the same at the same time may use this answer. One that
    /// must not be stored is for the request that caused it.
    pub(super) fn is_for_several(&self) -> bool {
        match self {
            Self::Allowed(allowed) => allowed.max_age != Some(Duration::ZERO),
            Self::Rejected(_) | Self::Failed | Self::Busy => true,
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Allowed(_) => Outcome::Allowed,
            Self::Rejected(_) => Outcome::Rejected,
            Self::Failed => Outcome::Failed,
            Self::Busy => Outcome::Busy,
        }
    }
}

impl Allowed {
    /// Reads a response with a status of success. `now` is the time since 1970.
    ///
    /// # Errors
    /// A phrase about what is wrong with it.
    pub(super) fn new(
        headers: &HeaderMap,
        body: &[u8],
        now: Duration,
    ) -> Result<Option<Self>, &'static str> {
        let mut claims = if is_json(headers) && !body.trim_ascii().is_empty() {
            serde_json::from_slice(body).map_err(|_| "a body that is not a JSON object")?
        } else {
            Map::new()
        };
        add_claims(headers, &mut claims)?;
        let expires = expires(headers)?;
        if expires.is_some_and(|expires| expires <= now) {
            return Ok(None);
        }
        let json = serde_json::to_vec(&claims).map_err(|_| "claims that are not JSON")?;
        Ok(Some(Self {
            json: json.into(),
            expires,
            max_age: max_age(headers),
        }))
    }

    pub(super) fn claims(&self) -> Map<String, Value> {
        // It was written from a map.
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    /// Returns the number of bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.json.len()
    }

    /// Returns the time for which the answer may be used again, at most `longest`.
    pub(super) fn lifetime(&self, longest: Duration, now: Duration) -> Duration {
        let left = self.expires.map(|expires| expires.saturating_sub(now));
        [self.max_age, left]
            .into_iter()
            .flatten()
            .fold(longest, Duration::min)
    }
}

/// Returns whether the body is JSON (RFC 8259, RFC 6839).
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Reads the status of a response without success. `None`: it is no answer.
pub(super) fn rejection(status: StatusCode, headers: &HeaderMap) -> Option<EndpointRejection> {
    let is_forbidden = match status {
        StatusCode::UNAUTHORIZED => false,
        StatusCode::FORBIDDEN => true,
        _ => return None,
    };
    let challenges = headers.get_all(WWW_AUTHENTICATE).iter();
    Some(EndpointRejection {
        is_forbidden,
        challenges: challenges.take(CHALLENGES_MAX).cloned().collect(),
    })
}

/// Adds the claims of headers to those of the body; a header wins. Several fields of one name are a
/// list.
fn add_claims(headers: &HeaderMap, claims: &mut Map<String, Value>) -> Result<(), &'static str> {
    for name in headers.keys() {
        let Some(claim) = name.as_str().strip_prefix(CLAIM_PREFIX) else {
            continue;
        };
        let mut texts = Vec::new();
        for value in headers.get_all(name) {
            let text = std::str::from_utf8(value.as_bytes());
            texts.push(Value::from(text.map_err(|_| "a claim that is not UTF-8")?));
        }
        let value = match (texts.pop(), texts.is_empty()) {
            (Some(only), true) => only,
            (last, _) => texts.into_iter().chain(last).collect(),
        };
        claims.insert(claim.to_owned(), value);
    }
    Ok(())
}

/// Reads the time for which a response is fresh (RFC 9111, 4.2 and 5.2.2). `s-maxage` wins over
/// `max-age`; an invalid time is zero.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let (mut shared, mut own) = (None, None);
    for value in headers.get_all(CACHE_CONTROL) {
        let text = value.to_str().unwrap_or("no-store");
        for directive in text.split(',') {
            let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
            let argument = seconds(argument.trim().trim_matches('"')).unwrap_or_default();
            match &*name.trim().to_ascii_lowercase() {
                "no-store" | "no-cache" => return Some(Duration::ZERO),
                "s-maxage" => shared = Some(argument),
                "max-age" => own = Some(argument),
                _ => {}
            }
        }
    }
    let age = headers.get(AGE).and_then(|age| seconds(age.to_str().ok()?));
    let fresh = shared.or(own)?;
    Some(fresh.saturating_sub(age.unwrap_or_default()))
}
