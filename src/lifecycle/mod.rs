//! Life of the process: signals, health checks, the shutdown mechanism and the timing of a drain.
//!
//! | file | job |
//! | --- | --- |
//! | `signals` | SIGTERM, SIGINT and SIGHUP as values in a channel |
//! | `health` | named checks for `/health` and readiness |
//! | `backoff` | delays between attempts, with jitter |
//! | `shutdown` | trigger, tokens and guards: request an end and count its completion |
//! | `drain`, `schedule`, `phase` | settings, moments and progress of the pod's graceful shutdown |
//!
//! Nothing here knows NATS or HTTP; `app` connects these parts.

pub mod backoff;
pub mod drain;
pub mod health;
pub mod phase;
pub mod schedule;
pub mod shutdown;
pub mod signals;
