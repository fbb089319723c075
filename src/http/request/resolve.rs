//! Resolves a request against its route: the filters of each source, and the client.
//!
//! Templates of the configuration are filled with the variables of the request. A value that cannot
//! be part of a subject, or a subject outside of the route's `allow`, is a rejection. The client is
//! the name by the route's `client`, or the address; limits, presence and the log use it.

use super::rejection::{Rejection, RejectionCode};
use super::request::AuthenticatedRequest;
use crate::http::route::Route;
use crate::net::AddressText;
use crate::subject::FilterSet;
use crate::subject::template::Unfilled;

/// Client of a request.
pub(in crate::http) struct ClientId {
    /// Name by the route's `client`, or the address: for limits, presence and the log.
    pub(in crate::http) name: Box<str>,
    /// The name comes from the route's `client` and is complete.
    pub(in crate::http) is_named: bool,
}

/// Longest name of a client in bytes, so that log lines and presence entries stay small.
const CLIENT_BYTES_MAX: usize = 256;

impl Route {
    /// Returns the filters of each source for a request.
    pub(in crate::http) fn filters(
        &self,
        request: &AuthenticatedRequest<'_>,
        subjects_max: usize,
    ) -> Result<Vec<FilterSet>, Rejection> {
        let mut sets = Vec::with_capacity(self.sources.len());
        let mut count = 0;
        for source in &self.sources {
            let mut all = Vec::new();
            for template in &source.subjects {
                all.extend(template.fill(request, &source.allow).map_err(reject)?);
            }
            count += all.len();
            sets.push(FilterSet::new(all));
        }
        if count > subjects_max.max(self.sources.len()) {
            return Err(RejectionCode::TooManySubjects.into());
        }
        Ok(sets)
    }

    /// Returns the client of a request.
    pub(in crate::http) fn client(&self, request: &AuthenticatedRequest<'_>) -> ClientId {
        let named = self
            .config
            .client
            .as_ref()
            .and_then(|template| template.fill(request));
        let Some(mut name) = named else {
            return ClientId {
                name: Box::from(&*AddressText::from(request.request.remote)),
                is_named: false,
            };
        };
        // A truncated name does not identify a client: others can begin with the same bytes.
        let is_named = name.len() <= CLIENT_BYTES_MAX;
        name.truncate(name.floor_char_boundary(CLIENT_BYTES_MAX));
        ClientId {
            name: name.into(),
            is_named,
        }
    }
}

fn reject(unfilled: Unfilled) -> Rejection {
    match unfilled {
        Unfilled::Missing(variable) | Unfilled::Token(variable) => Rejection::new(
            RejectionCode::BadVariable,
            format!("{variable} is missing or cannot be part of a subject"),
        ),
        Unfilled::Filter(invalid) => Rejection::new(RejectionCode::BadSubject, invalid.explain()),
        Unfilled::NotAllowed(filter) => Rejection::new(
            RejectionCode::SubjectNotAllowed,
            format!("this route does not allow {filter}"),
        ),
    }
}
