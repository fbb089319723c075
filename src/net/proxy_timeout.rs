//! Ages at which proxies and load balancers end event streams by default.

use std::time::Duration;

/// Timeout of a product by default, in seconds.
const TIMEOUTS: [(u64, &str); 9] = [
    (15, "the route `timeout` of Envoy, 15 s by default"),
    (29, "the integration timeout of an AWS API Gateway, 29 s"),
    (
        30,
        "the backend `timeoutSec` of a Google Cloud load balancer, or of a Heroku router, 30 s by default",
    ),
    (
        50,
        "`timeout client` and `timeout server` in the examples of HAProxy, 50 s",
    ),
    (55, "the idle timeout of a Heroku router, 55 s"),
    (
        60,
        "`proxy_read_timeout` of nginx, or the idle timeout of an AWS ALB, 60 s by default",
    ),
    (
        100,
        "the proxy read timeout of Cloudflare, 100 s by default",
    ),
    (
        240,
        "the idle timeout of an Azure load balancer, 4 min by default",
    ),
    (350, "the idle timeout of an AWS NLB or NAT gateway, 350 s"),
];

/// Returns the usual cause of ends at this age. A peer is reported up to a second after its timer.
#[must_use]
pub fn usual_cause(age: Duration) -> Option<&'static str> {
    let seconds = age.as_secs_f64();
    TIMEOUTS
        .iter()
        .map(|(timeout, cause)| (seconds - *timeout as f64, *cause))
        .filter(|(after, _)| (-0.5..1.5).contains(after))
        .min_by(|(one, _), (two, _)| one.abs().total_cmp(&two.abs()))
        .map(|(_, cause)| cause)
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
