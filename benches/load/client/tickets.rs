//! TLS sessions of the clients, all for one server.
//!
//! The first visit of the clients fills the store; when they return, each takes one ticket. The store
//! of rustls keeps eight for each server, but thousands of clients share one store here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

/// Tickets of TLS 1.3 that no client has used yet.
#[derive(Debug, Default)]
pub(super) struct TicketStore {
    tickets: Mutex<Vec<Tls13ClientSessionValue>>,
    is_return: AtomicBool,
}

impl TicketStore {
    /// Ends the first visit: from now on the clients use their tickets and keep no new ones.
    pub(super) fn begin_return(&self) {
        self.is_return.store(true, Ordering::Relaxed);
    }

    fn is_return(&self) -> bool {
        self.is_return.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Tls13ClientSessionValue>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for TicketStore {
    fn set_kx_hint(&self, _server: ServerName<'static>, _group: NamedGroup) {}

    fn kx_hint(&self, _server: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _server: ServerName<'static>, _session: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _server: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        if !self.is_return() {
            self.lock().push(ticket);
        }
    }

    fn take_tls13_ticket(&self, _server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.is_return().then(|| self.lock().pop())?
    }
}
