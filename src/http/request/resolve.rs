//! Resolves a request against its route: the filters of each source, and the client.
//!
//! Templates of the configuration are filled with the variables of the request. A value that cannot
//! be part of a subject, or a subject outside of the route's `allow`, is a rejection. Claims can be
//! part of the names of events, with which the feeds of the route encode them. The client is
//! the name by the route's `client`; without one it is provider and subject of the principal, or the
//! address of an anonymous client. Limits, presence and the log use it.

use std::net::IpAddr;

use super::challenge::Challenge;
use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::request::AuthenticatedRequest;
use crate::auth::Principal;
use crate::encoding::{Coding, Framing};
use crate::event::{EventName, Version};
use crate::feed::FeedOptions;
use crate::http::route::Route;
use crate::http::stream::subscriptions::{ChosenSubjects, Subscriptions};
use crate::http::stream_options::StreamOptions;
use crate::net::AddressText;
use crate::subject::template::SampleValues;
use crate::subject::{
    FilterSet, SubjectTemplate, TextTemplate, Unfilled, Variable, Variables as _,
};

/// Client of a request.
pub(in crate::http) struct ClientId {
    /// Name for limits, presence and the log.
    pub(in crate::http) name: Box<str>,
    /// The name is complete, and not an address.
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
            let reject = |unfilled| reject(unfilled, &request.principal);
            let bounds = source.allow.bounds(request).map_err(reject)?;
            for template in &source.subjects {
                all.extend(template.fill(request, &bounds).map_err(reject)?);
            }
            count += all.len();
            sets.push(FilterSet::new(all));
        }
        if count > subjects_max.max(self.sources.len()) {
            return Err(RejectionCode::TooManySubjects.into());
        }
        Ok(sets)
    }

    /// Returns the subjects of a WebSocket, if its client can change some: subjects of JetStream
    /// streams that it names in the query of the URL, within `allow`.
    ///
    /// # Errors
    /// As [`Self::filters`].
    pub(in crate::http) fn subscriptions(
        &self,
        request: &AuthenticatedRequest<'_>,
        options: &StreamOptions,
        subjects_max: usize,
    ) -> Result<Option<Box<Subscriptions>>, Rejection> {
        let reject = |unfilled| reject(unfilled, &request.principal);
        let mut sources = Vec::with_capacity(self.sources.len());
        for (index, source) in self.sources.iter().enumerate() {
            let bounds = source.allow.bounds(request).map_err(reject)?;
            let can_change = !self.config.finite
                && !bounds.is_empty()
                && source.source.are_positions_shared()
                && source.subjects.iter().any(is_of_query);
            let (mut fixed, mut chosen) = (Vec::new(), Vec::new());
            for template in &source.subjects {
                let filters = template.fill(request, &bounds).map_err(reject)?;
                if can_change && is_of_query(template) {
                    chosen.extend(filters);
                } else {
                    fixed.extend(filters);
                }
            }
            let chosen = can_change.then_some(chosen);
            sources.push(ChosenSubjects::new(index, fixed, chosen, bounds));
        }
        Ok(Subscriptions::new(sources, options.clone(), subjects_max))
    }

    /// Returns the options of the feeds that a request reads. Claims in the route's `event` are part
    /// of them: principals with equal claims share the feeds.
    ///
    /// # Errors
    /// The principal does not have a claim of the route's `event`, or its value cannot be part of
    /// the name of an event.
    pub(in crate::http) fn feed_options(
        &self,
        framing: Framing,
        coding: Option<Coding>,
        version: Option<Version>,
        request: &AuthenticatedRequest<'_>,
    ) -> Result<StreamOptions, Rejection> {
        let options = self.options(framing, coding, version);
        let Some(event) = self
            .config
            .event
            .as_ref()
            .filter(|event| event.has_claims())
        else {
            return Ok(options.clone());
        };
        let event = event
            .with_claims(request)
            .map_err(|unfilled| reject(unfilled, &request.principal))?;
        let name = event.fill(&SampleValues);
        if name.as_deref().and_then(EventName::parse).is_none() {
            let message = "a claim cannot be part of the name of an event";
            return Err(Rejection::new(RejectionCode::BadVariable, message));
        }
        Ok(self.named_options.share(FeedOptions {
            event: Some(event),
            ..FeedOptions::clone(&options.options)
        }))
    }

    /// Returns the client of a request.
    ///
    /// # Errors
    /// The principal does not have a claim of the route's `client`.
    pub(in crate::http) fn client(
        &self,
        request: &AuthenticatedRequest<'_>,
    ) -> Result<ClientId, Rejection> {
        let named = match (&self.config.client, &request.principal) {
            (Some(template), _) => {
                check_claims(template, request)?;
                template.fill(request)
            }
            (None, Principal::Identified(identity)) => {
                Some(format!("{}:{}", identity.provider, identity.subject))
            }
            (None, Principal::Anonymous) => None,
        };
        Ok(ClientId::new(named, request.request.remote))
    }
}

impl ClientId {
    /// Returns the client of this name, or of this address if it has no name.
    pub(in crate::http) fn new(name: Option<String>, address: IpAddr) -> Self {
        let Some(mut name) = name else {
            return Self {
                name: Box::from(&*AddressText::from(address)),
                is_named: false,
            };
        };
        // A truncated name does not identify a client: others can begin with the same bytes.
        let is_named = name.len() <= CLIENT_BYTES_MAX;
        name.truncate(name.floor_char_boundary(CLIENT_BYTES_MAX));
        Self {
            name: name.into(),
            is_named,
        }
    }
}

/// True if the subjects are all values of a query parameter.
fn is_of_query(template: &SubjectTemplate) -> bool {
    let mut variables = template.variables();
    template.is_whole_variable() && matches!(variables.next(), Some(Variable::Query(_)))
}

/// Checks that the principal has every claim of a template.
fn check_claims(
    template: &TextTemplate,
    request: &AuthenticatedRequest<'_>,
) -> Result<(), Rejection> {
    let missing = template.variables().find(|variable| {
        matches!(variable, Variable::Claim(_)) && request.values(variable).is_empty()
    });
    missing.map_or(Ok(()), |variable| {
        let unfilled = Unfilled::Missing(variable.clone());
        Err(reject(unfilled, &request.principal))
    })
}

fn reject(unfilled: Unfilled, principal: &Principal) -> Rejection {
    let rejection = match unfilled {
        Unfilled::Missing(variable @ Variable::Claim(_)) => Rejection::new(
            RejectionCode::ClaimMissing,
            format!("the credentials have no claim {variable}"),
        ),
        Unfilled::Missing(variable) | Unfilled::Token(variable) => Rejection::new(
            RejectionCode::BadVariable,
            format!("{variable} is missing or cannot be part of a subject"),
        ),
        Unfilled::Filter(invalid) => Rejection::new(RejectionCode::BadSubject, invalid.explain()),
        Unfilled::NotAllowed(filter) => Rejection::new(
            RejectionCode::SubjectNotAllowed,
            format!("this route does not allow {filter}"),
        ),
    };
    let is_forbidden = matches!(
        rejection.code,
        RejectionCode::ClaimMissing | RejectionCode::SubjectNotAllowed
    );
    let is_authenticated = matches!(principal, Principal::Identified(_));
    Rejection {
        challenge: (is_forbidden && is_authenticated).then_some(Challenge::InsufficientScope),
        ..rejection
    }
}
