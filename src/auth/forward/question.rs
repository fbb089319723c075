//! Question to an endpoint: what is sent about a request, and the key of its answer.
//!
//! The key is a digest of everything in the question that differs between requests. It is SHA-256:
//! two questions with one key would give one client the identity of another.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{ACCEPT, COOKIE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, Uri};
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use crate::auth::provider::Target;

/// Request to the endpoint.
pub(super) type EndpointRequest = Request<Empty<Bytes>>;

/// Key of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; SHA256_OUTPUT_LEN]);

/// Question about one request.
pub(super) struct Question<'r> {
    pub(super) target: Target<'r>,
    /// Header fields of the client's request.
    pub(super) headers: &'r HeaderMap,
    /// Names of those that are copied.
    pub(super) send: &'r [HeaderName],
}

impl Question<'_> {
    /// Returns the header fields that describe the request. The client's own ones of these names are
    /// never copied.
    fn described(&self) -> [(HeaderName, Cow<'_, str>); 5] {
        let target = &self.target;
        let uri = match &*target.query {
            "" => Cow::Borrowed(target.path),
            query => Cow::Owned(format!("{}?{query}", target.path)),
        };
        let name = HeaderName::from_static;
        [
            (name("x-forwarded-method"), target.method.as_str().into()),
            (name("x-forwarded-proto"), target.scheme.into()),
            (name("x-forwarded-host"), target.host.as_ref().into()),
            (name("x-forwarded-uri"), uri),
            (name("x-forwarded-for"), target.client.to_string().into()),
        ]
    }

    /// Returns the key of the answer. Lengths and counts are part of the digest, so that no value
    /// can be read as two, and an absent header differs from an empty one.
    pub(super) fn key(&self) -> Key {
        let mut digest = Context::new(&SHA256);
        let mut add = |bytes: &[u8]| {
            digest.update(&(bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        };
        for (_, value) in self.described() {
            add(value.as_bytes());
        }
        for name in self.send {
            let values = self.headers.get_all(name);
            add(&(values.iter().count() as u64).to_be_bytes());
            for value in values {
                add(value.as_bytes());
            }
        }
        let mut key = [0; SHA256_OUTPUT_LEN];
        key.copy_from_slice(digest.finish().as_ref());
        Key(key)
    }

    /// Returns the request to the endpoint. `None`: the host of the client's request is not text
    /// that a header can have.
    pub(super) fn request(&self, url: &Uri) -> Option<EndpointRequest> {
        const AGENT: HeaderValue =
            HeaderValue::from_static(concat!("sidestream/", env!("CARGO_PKG_VERSION")));
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = url.clone();
        let headers = request.headers_mut();
        headers.insert(
            ACCEPT,
            HeaderValue::from_static("application/json, */*;q=0.1"),
        );
        headers.insert(USER_AGENT, AGENT);
        for name in self.send {
            headers.remove(name);
            for value in self.values(name) {
                headers.append(name, value);
            }
        }
        for (name, value) in self.described() {
            headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
        }
        Some(request)
    }

    /// Returns the values of a header that is copied. HTTP/2 clients may send each cookie in a field
    /// of its own; over HTTP/1.1 they are one field (RFC 9113, 8.2.3).
    fn values(&self, name: &HeaderName) -> Vec<HeaderValue> {
        let values: Vec<_> = self.headers.get_all(name).iter().cloned().collect();
        if name != COOKIE || values.len() < 2 {
            return values;
        }
        let cookies: Vec<&[u8]> = values.iter().map(HeaderValue::as_bytes).collect();
        // Bytes that header values have are valid in one.
        HeaderValue::from_bytes(&cookies.join(&b"; "[..])).map_or(values, |value| vec![value])
    }
}
