//! Check `stream_ages`: degraded while many event streams end at the age of a usual proxy timeout.
//!
//! A proxy that ends event streams looks like clients that leave. Their ages show it: people and
//! programs leave at any age.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::http::{Context, PeerEnds};
use crate::lifecycle::health::{Health, Status};
use crate::net::proxy_timeout::TIMEOUTS;

/// 10 s: an operator sees a change within one scrape.
const INTERVAL: Duration = Duration::from_secs(10);

/// 5 min: as long as a pod with few clients needs for enough ends.
const SPAN: usize = 30;

/// 10 ends at one age: fewer are an accident.
const ENDS_MIN: u64 = 10;

/// Three of ten ends by peers: two seconds of a minute hold one of thirty by chance.
const SHARE_MIN: f64 = 0.3;

/// Compares the ends until the runtime ends.
pub(super) async fn watch(context: Arc<Context>, health: Health) {
    let check = health.degraded("stream_ages", Status::Ok);
    let mut before = VecDeque::from([context.stream_ages.peer_ends()]);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = context.stream_ages.peer_ends();
        let oldest = before.front().copied().unwrap_or_default();
        check.set(status(now.since(oldest)));
        before.push_back(now);
        if before.len() > SPAN {
            before.pop_front();
        }
    }
}

/// Returns the status for the ends of [`SPAN`].
fn status(ends: PeerEnds) -> Status {
    let all = ends.at_timeouts.iter().sum::<u64>() + ends.at_other_ages;
    let most = ends.at_timeouts.into_iter().zip(TIMEOUTS);
    let Some((count, timeout)) = most.max_by_key(|(count, _)| *count) else {
        return Status::Ok;
    };
    if count < ENDS_MIN || (count as f64) < all as f64 * SHARE_MIN {
        return Status::Ok;
    }
    Status::Degraded(format!(
        "of {all} event streams that their clients ended within 5 min, {count} were {} s old: \
         usually {}. `sidestream doctor URL` finds the proxy",
        timeout.seconds, timeout.cause
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(at_a_minute: u64, at_other_ages: u64) -> PeerEnds {
        let mut ends = PeerEnds {
            at_other_ages,
            ..PeerEnds::default()
        };
        let minute = TIMEOUTS.iter().position(|timeout| timeout.seconds == 60);
        ends.at_timeouts[minute.unwrap()] = at_a_minute;
        ends
    }

    #[test]
    fn many_ends_at_one_age_name_the_usual_timeout() {
        let Status::Degraded(text) = status(ends(12, 8)) else {
            panic!("12 of 20 are many");
        };
        assert!(text.contains("12 were 60 s old"), "{text}");
        assert!(text.contains("proxy_read_timeout"), "{text}");
    }

    #[test]
    fn few_ends_and_ends_at_any_age_are_no_timeout() {
        assert_eq!(status(ends(9, 0)), Status::Ok);
        assert_eq!(status(ends(12, 100)), Status::Ok);
        assert_eq!(status(PeerEnds::default()), Status::Ok);
    }
}
