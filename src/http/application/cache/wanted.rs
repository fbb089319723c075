//! Demands of a request on the cache: what bypasses it, and which stored responses the client
//! accepts (RFC 9111, 5.2.1).

use std::time::Duration;

use hyper::Method;
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, PRAGMA, RANGE, UPGRADE,
};
use hyper::http::request::Parts;

use super::status::Reason;

/// `Cache-Control` of a request. Stale responses are never sent, so `max-stale` has no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) only_if_cached: bool,
    pub(super) no_cache: bool,
    pub(super) max_age: Option<Duration>,
    pub(super) min_fresh: Option<Duration>,
    no_store: bool,
}

impl Wanted {
    /// Reads the fields of a request.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut wanted = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            // RFC 9111, 5.4.
            let pragma = headers
                .get(PRAGMA)
                .map_or(&[][..], |value| value.as_bytes());
            wanted.no_cache = pragma.eq_ignore_ascii_case(b"no-cache");
            return wanted;
        }
        let lines = headers.get_all(CACHE_CONTROL).iter();
        for line in lines.filter_map(|line| line.to_str().ok()) {
            for directive in line.split(',') {
                wanted.add(directive);
            }
        }
        wanted
    }

    fn add(&mut self, directive: &str) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        // A value that is not a number is the strictest one.
        let seconds = |strictest| {
            let value = value.trim().trim_matches('"');
            Some(Duration::from_secs(value.parse().unwrap_or(strictest)))
        };
        match name.trim().to_ascii_lowercase().as_str() {
            "no-cache" => self.no_cache = true,
            "no-store" => self.no_store = true,
            "only-if-cached" => self.only_if_cached = true,
            "max-age" => self.max_age = seconds(0),
            "min-fresh" => self.min_fresh = seconds(u64::MAX),
            _ => {}
        }
    }

    /// Returns whether the client may not accept the response to another request.
    pub(super) fn is_strict(&self) -> bool {
        self.no_cache || self.max_age.is_some() || self.min_fresh.is_some()
    }
}

/// Returns the reason why the cache neither answers a request nor stores its response.
pub(super) fn bypass(head: &Parts, has_body: bool, wanted: &Wanted) -> Option<Reason> {
    const BYPASS: [HeaderName; 6] = [
        AUTHORIZATION,
        RANGE,
        IF_RANGE,
        IF_MATCH,
        IF_UNMODIFIED_SINCE,
        UPGRADE,
    ];
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return Some(Reason::Method);
    }
    let is_bypassing =
        has_body || wanted.no_store || BYPASS.iter().any(|name| head.headers.contains_key(name));
    is_bypassing.then_some(Reason::Bypass)
}

/// Returns whether a request has a condition that a stored response can answer.
pub(super) fn is_conditional(headers: &HeaderMap) -> bool {
    headers.contains_key(IF_NONE_MATCH) || headers.contains_key(IF_MODIFIED_SINCE)
}
