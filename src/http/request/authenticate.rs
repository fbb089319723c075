//! Authentication: determines the principal of a request before any variable is filled.
//!
//! ```text
//! route, method, Accept, body -> authenticate -> variables, subjects -> admission -> client limits
//! ```
//!
//! There is no provider yet: every request is anonymous. A provider runs here. It is asynchronous,
//! because it may ask another service, and its failure is a [`Rejection`].

use super::rejection::Rejection;
use super::request::{AuthenticatedRequest, Request};
use crate::auth::Principal;

/// Determines the principal of a request.
///
/// # Errors
/// None yet: an anonymous request needs no credentials.
pub(in crate::http) async fn authenticate(
    request: Request<'_>,
) -> Result<AuthenticatedRequest<'_>, Rejection> {
    Ok(AuthenticatedRequest {
        request,
        principal: Principal::Anonymous,
    })
}
