//! Ages at which proxies and load balancers end event streams by default.

use std::time::Duration;

/// Timeout of a product by default.
#[derive(Clone, Copy, Debug)]
pub struct Timeout {
    /// Seconds.
    pub seconds: u64,
    /// Product and setting, for people.
    pub cause: &'static str,
}

/// Number of timeouts.
pub const COUNT: usize = 9;

/// The usual timeouts, from the shortest to the longest.
pub const TIMEOUTS: [Timeout; COUNT] = [
    Timeout::new(15, "the route `timeout` of Envoy, 15 s by default"),
    Timeout::new(29, "the integration timeout of an AWS API Gateway, 29 s"),
    Timeout::new(
        30,
        "the backend `timeoutSec` of a Google Cloud load balancer, or of a Heroku router, 30 s by default",
    ),
    Timeout::new(
        50,
        "`timeout client` and `timeout server` in the examples of HAProxy, 50 s",
    ),
    Timeout::new(55, "the idle timeout of a Heroku router, 55 s"),
    Timeout::new(
        60,
        "`proxy_read_timeout` of nginx, or the idle timeout of an AWS ALB, 60 s by default",
    ),
    Timeout::new(
        100,
        "the proxy read timeout of Cloudflare, 100 s by default",
    ),
    Timeout::new(
        240,
        "the idle timeout of an Azure load balancer, 4 min by default",
    ),
    Timeout::new(350, "the idle timeout of an AWS NLB or NAT gateway, 350 s"),
];

impl Timeout {
    const fn new(seconds: u64, cause: &'static str) -> Self {
        Self { seconds, cause }
    }
}

/// Returns the index of the timeout that ends an event stream at this age. An end is seen up to a
/// second after the timer of the proxy.
#[must_use]
pub fn nearest(age: Duration) -> Option<usize> {
    let after = |timeout: &Timeout| age.as_secs_f64() - timeout.seconds as f64;
    let near = TIMEOUTS
        .iter()
        .enumerate()
        .map(|(index, timeout)| (after(timeout), index))
        .filter(|(after, _)| (-0.5..1.5).contains(after));
    let nearest = near.min_by(|(one, _), (two, _)| one.abs().total_cmp(&two.abs()));
    nearest.map(|(_, index)| index)
}

/// Returns the usual cause of ends at this age.
#[must_use]
pub fn usual_cause(age: Duration) -> Option<&'static str> {
    nearest(age).map(|index| TIMEOUTS[index].cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_names_the_nearest_timeout() {
        let cause = |seconds| usual_cause(Duration::from_secs_f64(seconds)).unwrap_or_default();
        assert!(cause(15.2).contains("Envoy"));
        assert!(cause(29.1).contains("API Gateway"));
        assert!(cause(30.1).contains("Google"));
        assert!(cause(60.4).contains("nginx"));
        assert_eq!(cause(20.0), "");
        assert_eq!(cause(3600.0), "");
    }
}
