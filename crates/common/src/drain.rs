//! Default durations of the sidecar's drain (`drain:` in the configuration).
//!
//! The sidecar uses them where its configuration has no value. The injector uses them to compute
//! the termination grace period of a pod, so that the drain completes before the kubelet sends
//! SIGKILL.

use std::time::Duration;

/// 5 s after readiness fails in which everything is accepted and served: load balancers need about
/// this long to stop routing to a pod that is not ready.
pub const ACCEPT_FOR: Duration = Duration::from_secs(5);

/// 20 s over which the ends of the event streams are spread.
pub const SPREAD: Duration = Duration::from_secs(20);

/// 40 s until the event streams that are left are cut: [`ACCEPT_FOR`] and [`SPREAD`], and 15 s for
/// clients to read what is pending.
pub const TIMEOUT: Duration = Duration::from_secs(40);
