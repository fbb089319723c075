//! The clients: many event streams over few system calls, all seen by one meter.

pub(crate) mod endpoint;
pub(crate) mod fleet;
mod http1;
mod http2;
pub(crate) mod meter;
pub(crate) mod visit;
