//! Response in the cache: which ones are stored, how long they are fresh, which requests they
//! answer, and how a 304 updates them (RFC 9111, 3 and 4).
//!
//! `http-cache-semantics` decides by `Cache-Control`, `Expires`, `Pragma`, `Age` and `Date` if a
//! response may be stored and how long it is fresh. It receives a head with these fields only, in
//! lower case and with a bounded age: it compares directives as they are written, and a large age
//! overflows. It compares one line of each field that `Vary` names, drops repeated fields and
//! writes other dates, so the rest is here.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_cache_semantics::{CacheOptions, CachePolicy};
use hyper::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG,
    EXPIRES, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
    PRAGMA, SET_COOKIE, TRAILER, TRANSFER_ENCODING, VARY,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Version};

use super::wanted::Wanted;
use crate::http::application::fields;

/// 2^31 s: maximum of an age and of a lifetime (RFC 9111, 1.2.2).
const SECONDS_MAX: u64 = 1 << 31;

/// 512 bytes: memory of a stored response without its fields and its body.
const OVERHEAD: usize = 512;
/// 128 bytes: memory of a field without its name and its value.
const FIELD_OVERHEAD: usize = 128;

/// Response in the cache.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) status: StatusCode,
    /// Fields as clients receive them, without `Age`.
    headers: HeaderMap,
    pub(super) body: Bytes,
    /// Time of its request, or of the last validation.
    asked: Instant,
    /// Age at that time.
    age: Duration,
    /// Age at which it is stale.
    lifetime: Duration,
    vary: Selection,
}

/// Fields of a request that `Vary` names, with all their lines.
pub(super) type Selection = Vec<(HeaderName, Vec<HeaderValue>)>;

/// Stored response after a 304.
pub(super) struct Refreshed {
    pub(super) stored: Stored,
    /// It may be stored, and sent to other clients.
    pub(super) is_storable: bool,
}

/// Time of a request, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    wall: SystemTime,
    monotonic: Instant,
}

struct Freshness {
    age: Duration,
    lifetime: Duration,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            monotonic: Instant::now(),
        }
    }
}

impl Stored {
    /// Returns a response without its body if the application permits to store it. `asked`: time of
    /// the request, from which its age counts (RFC 9111, 4.2.3).
    pub(super) fn new<B>(request: &Parts, response: &Response<B>, asked: Moment) -> Option<Self> {
        let headers = response.headers();
        // The end of another one may be a lost connection.
        let has_end = response.version() == Version::HTTP_2
            || headers.contains_key(CONTENT_LENGTH)
            || headers.contains_key(TRANSFER_ENCODING);
        if request.method != Method::GET
            || !has_end
            || headers.contains_key(TRAILER)
            || headers.contains_key(CONTENT_RANGE)
            || !is_shareable(headers)
        {
            return None;
        }
        let freshness = freshness(response.status(), headers, asked.wall)?;
        let vary = selection(headers, &request.headers)?;
        let mut shown = for_client(headers);
        if !shown.contains_key(DATE) {
            shown.insert(DATE, date_field(asked.wall)?);
        }
        shown.remove(AGE);
        Some(Self {
            status: response.status(),
            headers: copied(&shown),
            body: Bytes::new(),
            asked: asked.monotonic,
            age: freshness.age,
            lifetime: freshness.lifetime,
            vary,
        })
    }

    /// Returns the response with its whole body.
    pub(super) fn with_body(mut self, body: Bytes) -> Self {
        if self.status != StatusCode::NO_CONTENT {
            self.headers
                .insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        self.body = body;
        self
    }

    /// Returns the response after a 304 (RFC 9111, 4.3.4), unless the 304 is about another one.
    pub(super) fn refreshed<B>(
        &self,
        request: &Parts,
        not_modified: &Response<B>,
        asked: Moment,
    ) -> Option<Refreshed> {
        const OF_THE_BODY: [HeaderName; 5] = [
            CONTENT_LENGTH,
            CONTENT_ENCODING,
            CONTENT_RANGE,
            CONTENT_TYPE,
            TRANSFER_ENCODING,
        ];
        let news = not_modified.headers();
        if !self.has_validator_of(news) {
            return None;
        }
        let mut headers = self.headers.clone();
        let shown = for_client(news);
        for name in shown.keys().filter(|name| !OF_THE_BODY.contains(name)) {
            headers.remove(name);
            for value in shown.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        if !news.contains_key(DATE) {
            headers.insert(DATE, date_field(asked.wall)?);
        }
        // `headers` has the `Age` of the 304, if there is one.
        let freshness = freshness(self.status, &headers, asked.wall);
        headers.remove(AGE);
        let vary = selection(&headers, &request.headers);
        let is_storable = is_shareable(news) && vary.is_some() && freshness.is_some();
        let stored = Self {
            status: self.status,
            headers: copied(&headers),
            body: self.body.clone(),
            asked: asked.monotonic,
            age: freshness.as_ref().map_or(Duration::ZERO, |fresh| fresh.age),
            lifetime: freshness.map_or(Duration::ZERO, |fresh| fresh.lifetime),
            vary: vary.unwrap_or_default(),
        };
        Some(Refreshed {
            stored,
            is_storable,
        })
    }

    /// Returns whether a 304 with these fields is about this response.
    fn has_validator_of(&self, news: &HeaderMap) -> bool {
        if let Some(etag) = news.get(ETAG) {
            let own = self.headers.get(ETAG);
            return own.is_some_and(|own| weak(own.as_bytes()) == weak(etag.as_bytes()));
        }
        let modified = news.get(LAST_MODIFIED);
        modified.is_none_or(|modified| Some(modified) == self.headers.get(LAST_MODIFIED))
    }

    pub(super) fn has_validator(&self) -> bool {
        self.headers.contains_key(ETAG) || self.headers.contains_key(LAST_MODIFIED)
    }

    /// Replaces the conditions of a request by one for this response.
    pub(super) fn set_condition(&self, request: &mut HeaderMap) {
        request.remove(IF_NONE_MATCH);
        request.remove(IF_MODIFIED_SINCE);
        if let Some(etag) = self.headers.get(ETAG) {
            request.insert(IF_NONE_MATCH, etag.clone());
        } else if let Some(modified) = self.headers.get(LAST_MODIFIED) {
            request.insert(IF_MODIFIED_SINCE, modified.clone());
        }
    }

    fn age_at(&self, now: Instant) -> Duration {
        self.age + now.saturating_duration_since(self.asked)
    }

    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.age_at(now) < self.lifetime
    }

    /// Returns whether the response answers a request without the application.
    pub(super) fn satisfies(&self, wanted: &Wanted, now: Instant) -> bool {
        let age = self.age_at(now);
        let left = self.lifetime.saturating_sub(age);
        self.is_fresh(now)
            && !wanted.no_cache
            && wanted.max_age.is_none_or(|max| age <= max)
            && wanted.min_fresh.is_none_or(|min| left >= min)
    }

    /// Returns whether the fields of a request select this response (RFC 9111, 4.1).
    pub(super) fn is_selected_by(&self, request: &HeaderMap) -> bool {
        self.vary
            .iter()
            .all(|(name, lines)| request.get_all(name).iter().eq(lines))
    }

    /// Returns the names of the fields that select this response.
    pub(super) fn selecting_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.vary.iter().map(|(name, _)| name)
    }

    /// Returns whether the same requests select both responses.
    pub(super) fn has_selection_of(&self, other: &Self) -> bool {
        self.vary == other.vary
    }

    /// Returns the response without `Age` for a client that has asked for this request.
    pub(super) fn answer(&self, request: &Parts) -> Response<Bytes> {
        let mut headers = self.headers.clone();
        let mut status = self.status;
        let mut body = Bytes::new();
        if self.is_known_to(&request.headers) {
            status = StatusCode::NOT_MODIFIED;
            for name in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING] {
                headers.remove(name);
            }
        } else if request.method != Method::HEAD {
            body = self.body.clone();
        }
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        answer
    }

    /// Returns `answer` with the age of the response.
    pub(super) fn answer_at(&self, request: &Parts, now: Instant) -> Response<Bytes> {
        let mut answer = self.answer(request);
        let age = HeaderValue::from(self.age_at(now).as_secs());
        answer.headers_mut().insert(AGE, age);
        answer
    }

    /// Returns whether a client has this response (RFC 9110, 13.2.2).
    fn is_known_to(&self, request: &HeaderMap) -> bool {
        if self.status != StatusCode::OK {
            return false;
        }
        if request.contains_key(IF_NONE_MATCH) {
            let own = self.headers.get(ETAG).map(|etag| weak(etag.as_bytes()));
            let lines = request.get_all(IF_NONE_MATCH).iter();
            let mut tags = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
            return tags.any(|tag| {
                let tag = tag.trim_ascii();
                tag == b"*" || own == Some(weak(tag))
            });
        }
        let since = request.get(IF_MODIFIED_SINCE).and_then(date);
        let modified = self.headers.get(LAST_MODIFIED).and_then(date);
        matches!((since, modified), (Some(since), Some(modified)) if modified <= since)
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        let field = |name: &HeaderName, value: &HeaderValue| {
            FIELD_OVERHEAD + name.as_str().len() + value.len()
        };
        let shown = self.headers.iter().map(|(name, value)| field(name, value));
        let selecting = self.vary.iter().flat_map(|(name, lines)| {
            let lines = lines.iter().map(move |value| field(name, value));
            lines.chain([FIELD_OVERHEAD])
        });
        OVERHEAD + self.body.len() + shown.chain(selecting).sum::<usize>()
    }
}

/// Returns whether clients may share a response with these fields. `Sidestream-*` and `Set-Cookie`
/// are for one client.
fn is_shareable(headers: &HeaderMap) -> bool {
    let is_readable = |value: &HeaderValue| value.to_str().is_ok();
    !headers.contains_key(SET_COOKIE)
        && !headers.keys().any(fields::is_own)
        && headers.get_all(CACHE_CONTROL).iter().all(is_readable)
}

/// Returns the fields of a request that `Vary` names. `None`: they cannot be compared.
fn selection(response: &HeaderMap, request: &HeaderMap) -> Option<Selection> {
    let mut selection = Selection::new();
    for line in response.get_all(VARY) {
        let names = line.to_str().ok()?.split(',').map(str::trim);
        for name in names.filter(|name| !name.is_empty()) {
            // `*` is a valid name of a field, too.
            let name: HeaderName = name.parse().ok().filter(|_| name != "*")?;
            let lines = request.get_all(&name).iter().map(copy).collect();
            selection.push((name, lines));
        }
    }
    Some(selection)
}

/// Returns the age and the lifetime of a response that the application marks cacheable. There is no
/// heuristic.
fn freshness(status: StatusCode, headers: &HeaderMap, asked: SystemTime) -> Option<Freshness> {
    if !headers.contains_key(CACHE_CONTROL) && !headers.contains_key(EXPIRES) {
        return None;
    }
    let mut reduced = Response::new(());
    *reduced.status_mut() = status;
    for name in [CACHE_CONTROL, PRAGMA] {
        for value in headers.get_all(&name) {
            let lower = value.as_bytes().to_ascii_lowercase();
            let lower = HeaderValue::from_bytes(&lower).ok()?;
            reduced.headers_mut().append(&name, lower);
        }
    }
    for name in [EXPIRES, DATE] {
        if let Some(value) = headers.get(&name) {
            reduced.headers_mut().insert(name, value.clone());
        }
    }
    let options = CacheOptions {
        shared: true,
        cache_heuristic: 0.0,
        immutable_min_time_to_live: Duration::ZERO,
        ignore_cargo_cult: false,
    };
    // Without `Age`: the lifetime from the beginning.
    let policy = CachePolicy::new_options(&Request::new(()), &reduced, asked, options);
    let longest = Duration::from_secs(SECONDS_MAX);
    let lifetime = policy.time_to_live(asked).min(longest);
    let age = age(headers, asked).min(longest);
    (policy.is_storable() && age < lifetime).then_some(Freshness { age, lifetime })
}

/// Returns the larger one of `Age` and the time since `Date` (RFC 9111, 4.2.3).
fn age(headers: &HeaderMap, asked: SystemTime) -> Duration {
    let field = headers.get(AGE).map(|age| {
        let age = age.to_str().ok().and_then(|age| age.trim().parse().ok());
        Duration::from_secs(age.unwrap_or(SECONDS_MAX))
    });
    let since = headers.get(DATE).and_then(date);
    let apparent = since.and_then(|date| asked.duration_since(date).ok());
    field.unwrap_or_default().max(apparent.unwrap_or_default())
}

/// Returns the fields of a response as clients receive them.
fn for_client(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    fields::for_client(&mut headers);
    headers
}

/// Returns fields with memory of their own: values that were read from a socket share its buffer.
fn copied(headers: &HeaderMap) -> HeaderMap {
    let mut own = HeaderMap::with_capacity(headers.len() + 2);
    for (name, value) in headers {
        own.append(name, copy(value));
    }
    own
}

fn copy(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

/// Returns an entity tag for a weak comparison.
fn weak(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

fn date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

fn date_field(time: SystemTime) -> Option<HeaderValue> {
    HeaderValue::try_from(httpdate::fmt_http_date(time)).ok()
}
