//! Check of a request against the revocations, if there is a bucket of them.
//!
//! ```text
//! begin -> authenticate: principal -> client -> event stream is registered with its mark -> confirm
//!                        jti, sid, sub  client                                   if anything changed
//! ```
//!
//! A revocation that arrives while a request is answered is in the table before the generation
//! changes, and open event streams are searched after that. So either [`RevocationCheck::confirm`]
//! sees another generation, or the search finds the event stream.

use std::sync::Arc;

use super::challenge::Challenge;
use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::request::AuthenticatedRequest;
use super::resolve::ClientId;
use crate::auth::revocations::{Denial, Mark, Revocations};
use crate::http::context::Context;
use crate::http::stream::state::StreamState;
use crate::presence::{CloseReason, StreamHandle as _};

/// Check of one request.
pub(in crate::http) struct RevocationCheck<'c>(Option<Snapshot<'c>>);

struct Snapshot<'c> {
    revocations: &'c Arc<Revocations>,
    /// Generation before the first check.
    generation: u64,
}

impl<'c> RevocationCheck<'c> {
    pub(in crate::http) fn begin(context: &'c Context) -> Self {
        Self(context.revocations().map(|revocations| Snapshot {
            revocations,
            generation: revocations.generation(),
        }))
    }

    /// Checks the name of the client. An address is not a name.
    pub(in crate::http) fn client(
        &self,
        request: &AuthenticatedRequest<'_>,
        client: &ClientId,
    ) -> Result<(), Rejection> {
        let Some(snapshot) = self.0.as_ref().filter(|_| client.is_named) else {
            return Ok(());
        };
        snapshot
            .revocations
            .check_client(&client.name, &request.principal)
            .map_err(Rejection::from)
    }

    /// Returns what the event stream keeps.
    pub(super) fn mark(
        &self,
        request: &AuthenticatedRequest<'_>,
        client: &ClientId,
    ) -> Option<Mark> {
        let snapshot = self.0.as_ref()?;
        let name = client.is_named.then_some(&*client.name);
        Some(snapshot.revocations.mark(&request.principal, name))
    }

    /// Ends the event stream if its credentials were revoked since the check.
    pub(super) fn confirm(
        &self,
        request: &AuthenticatedRequest<'_>,
        is_named: bool,
        stream: &StreamState,
    ) {
        let Some(snapshot) = &self.0 else { return };
        let Snapshot {
            revocations,
            generation,
        } = snapshot;
        if revocations.generation() == *generation {
            return;
        }
        let principal = &request.principal;
        let client = || revocations.check_client(&stream.client, principal);
        if revocations.check_principal(principal) == Err(Denial::Revoked)
            || (is_named && client() == Err(Denial::Revoked))
        {
            stream.close(CloseReason::Revoked);
        }
    }
}

impl From<Denial> for Rejection {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Unavailable => RejectionCode::AuthenticationUnavailable.into(),
            Denial::Revoked => Self {
                challenge: Some(Challenge::InvalidToken("the credentials are revoked")),
                ..RejectionCode::Revoked.into()
            },
        }
    }
}
