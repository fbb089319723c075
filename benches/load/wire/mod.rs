//! What stands in the bytes between publisher, server and client: stamps, order, events, HTTP/1.1.

pub(crate) mod events;
pub(crate) mod http1;
pub(crate) mod sequence;
pub(crate) mod stamp;
