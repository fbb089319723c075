//! The clients: many event streams, with one meter that counts for all of them.
//!
//! Clients must cost little, because they run on one core beside a server that is measured. They
//! share a read buffer, parse without allocating, and count into one [`meter::Meter`].

pub(crate) mod crowd;
pub(crate) mod endpoint;
pub(crate) mod fleet;
mod http1;
mod http2;
pub(crate) mod meter;
mod request;
mod tickets;
pub(crate) mod visit;
