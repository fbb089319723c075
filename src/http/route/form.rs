//! Form of the responses of a route, as a client asks for it: the content coding, and `Vary`.

use hyper::HeaderMap;
use hyper::header::{HeaderValue, VARY};

use super::Route;
use crate::encoding::{Coding, Framing};
use crate::http::request::negotiate::negotiate_coding;

impl Route {
    /// Returns the content coding that a client prefers, of those of the route.
    pub(in crate::http) fn coding(&self, framing: Framing, headers: &HeaderMap) -> Option<Coding> {
        let compression = self.config.compression.as_ref()?;
        // The ids of a client of several sources are its own: it shares no bytes.
        if self.sources.len() != 1 || !Framing::COMPRESSED.contains(&framing) {
            return None;
        }
        negotiate_coding(headers, &compression.algorithms)
    }

    /// Adds the request fields on which its responses depend.
    pub(in crate::http) fn add_vary(&self, headers: &mut HeaderMap) {
        // Caches must not serve the answer in one form to a client of another.
        if self.varies_by_accept() {
            headers.append(VARY, HeaderValue::from_static("accept"));
        }
        if self.config.compression.is_some() {
            headers.append(VARY, HeaderValue::from_static("accept-encoding"));
        }
    }

    /// Returns whether its responses depend on the field `Accept`.
    fn varies_by_accept(&self) -> bool {
        self.config.framings.len() > 1 || self.config.versions.is_some()
    }
}
