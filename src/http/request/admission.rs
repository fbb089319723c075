//! Admission: whether this pod can serve another request, by its own resources.

use super::rejection_code::RejectionCode;
use crate::http::context::Context;
use crate::limit::{FdHeadroom, LoadLevel};

/// Checks that the pod can serve another event stream. `over_limit`: the connection of the request
/// exceeds `limits.connections`.
pub(super) fn admit(context: &Context, over_limit: bool) -> Result<(), RejectionCode> {
    if context.is_draining() {
        return Err(RejectionCode::Draining);
    }
    admit_request(context, over_limit)
}

/// Checks that the pod can serve another request that opens no event stream.
pub(in crate::http) fn admit_request(
    context: &Context,
    over_limit: bool,
) -> Result<(), RejectionCode> {
    if over_limit {
        return Err(RejectionCode::TooManyConnections);
    }
    if context.connection_limiter.headroom() >= FdHeadroom::Reserved {
        return Err(RejectionCode::NoFileDescriptors);
    }
    if context.load_level.level() >= LoadLevel::Reject {
        return Err(RejectionCode::Overloaded);
    }
    Ok(())
}
