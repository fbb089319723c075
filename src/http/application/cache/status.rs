//! Field `Cache-Status` (RFC 9211).

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Reason why a request went to the application (RFC 9211, 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http::application) enum Reason {
    /// The cache does not answer such requests.
    Bypass,
    /// The method is neither GET nor HEAD.
    Method,
    /// No response of this URI is stored.
    UriMiss,
    /// None of the stored responses has the fields of the request that `Vary` names.
    VaryMiss,
    /// The stored response is not fresh.
    Stale,
    /// The stored response is fresh, but the client does not accept it.
    Request,
}

/// Adds the status of a response that came from the cache.
pub(super) fn add_hit(headers: &mut HeaderMap) {
    add(headers, HeaderValue::from_static("sidestream; hit"));
}

/// Adds the status of a stored response that the application has confirmed.
pub(super) fn add_revalidated(headers: &mut HeaderMap, reason: Reason) {
    add_text(headers, reason, "; fwd-status=304");
}

impl Reason {
    /// Adds the status of a response of the application.
    pub(in crate::http::application) fn add_to(self, headers: &mut HeaderMap) {
        add_text(headers, self, "");
    }

    /// Adds the status of a response of the application that is stored.
    pub(super) fn add_stored(self, headers: &mut HeaderMap) {
        add_text(headers, self, "; stored");
    }

    fn label(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

fn add_text(headers: &mut HeaderMap, reason: Reason, rest: &str) {
    let text = format!("sidestream; fwd={}{rest}", reason.label());
    if let Ok(value) = HeaderValue::try_from(text) {
        add(headers, value);
    }
}

/// Appends a member to the list, after those of caches nearer to the application.
fn add(headers: &mut HeaderMap, value: HeaderValue) {
    headers.append(CACHE_STATUS, value);
}
