//! Beginning and end: signals, the counted drain, and what the probes are told.

pub mod drain;
pub mod health;
pub mod phase;
pub mod schedule;
pub mod shutdown;
pub mod signals;
