//! The path at which clients buy tickets (`authentication.tickets`), and what redeems them on routes.

use std::sync::Arc;

use hyper::header::HeaderValue;

use super::request::cors;
use crate::auth::{Provider, Tickets};
use crate::http::config::TicketsConfig;

/// Tickets of the configuration in force.
#[derive(Debug)]
pub(in crate::http) struct TicketEndpoint {
    pub(in crate::http) config: TicketsConfig,
    pub(in crate::http) tickets: Arc<Tickets>,
    /// Providers of `authenticate`, in this order.
    pub(in crate::http) providers: Vec<Arc<dyn Provider>>,
    /// Request headers that a CORS preflight allows.
    pub(in crate::http) cors_headers: HeaderValue,
}

impl TicketEndpoint {
    pub(super) fn new(
        config: TicketsConfig,
        tickets: Arc<Tickets>,
        providers: Vec<Arc<dyn Provider>>,
    ) -> Self {
        Self {
            tickets,
            providers,
            cors_headers: cors::request_headers(std::iter::empty()),
            config,
        }
    }

    /// Returns whether requests with these providers can have a ticket: one of them is named in
    /// `tickets.authenticate`.
    pub(in crate::http) fn is_accepted_by(&self, providers: &[Arc<dyn Provider>]) -> bool {
        let is_sold = |provider: &Arc<dyn Provider>| {
            let mut names = self.config.authenticate.iter();
            names.any(|name| **name == *provider.name())
        };
        providers.iter().any(is_sold)
    }
}
