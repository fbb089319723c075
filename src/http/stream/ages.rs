//! Ages of event streams at their end, by the side that ended them, and ends of peers at the
//! timeouts of proxies.
//!
//! [`StreamAges::record`] runs once per event stream. `app::stream_ages` compares [`PeerEnds`] of
//! different times, and reports an age at which many event streams end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::Histogram;

use crate::net::proxy_timeout;
use crate::presence::CloseReason;
use crate::telemetry::Metrics;

/// Records the ages at which event streams end.
#[derive(Debug)]
pub struct StreamAges {
    peer: Histogram,
    pod: Histogram,
    at_timeouts: [AtomicU64; proxy_timeout::COUNT],
    at_other_ages: AtomicU64,
}

/// Number of event streams that their peers have ended until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerEnds {
    /// By the timeout of [`proxy_timeout::TIMEOUTS`] at which they ended.
    pub at_timeouts: [u64; proxy_timeout::COUNT],
    /// At another age, above five seconds.
    pub at_other_ages: u64,
}

/// 5 s: no proxy has a shorter timeout, and a page that is opened and left says nothing.
const YOUNG: Duration = Duration::from_secs(5);

impl StreamAges {
    pub(in crate::http) fn new(metrics: &Metrics) -> Self {
        let [peer, pod] =
            ["peer", "pod"].map(|side| metrics.stream_age_seconds.with_label_values(&[side]));
        Self {
            peer,
            pod,
            at_timeouts: Default::default(),
            at_other_ages: AtomicU64::new(0),
        }
    }

    /// Records the end of an event stream. A long poll is answered, and has no age.
    pub(in crate::http) fn record(&self, close: CloseReason, age: Duration) {
        match close {
            CloseReason::Answered => {}
            CloseReason::Client => {
                self.peer.observe(age.as_secs_f64());
                self.count(age);
            }
            _ => self.pod.observe(age.as_secs_f64()),
        }
    }

    fn count(&self, age: Duration) {
        if age < YOUNG {
            return;
        }
        let count = match proxy_timeout::nearest(age) {
            Some(index) => &self.at_timeouts[index],
            None => &self.at_other_ages,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the ends by peers until now.
    #[must_use]
    pub fn peer_ends(&self) -> PeerEnds {
        PeerEnds {
            at_timeouts: self
                .at_timeouts
                .each_ref()
                .map(|count| count.load(Ordering::Relaxed)),
            at_other_ages: self.at_other_ages.load(Ordering::Relaxed),
        }
    }
}

impl PeerEnds {
    /// Returns the ends after `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let mut since = Self {
            at_other_ages: self.at_other_ages - before.at_other_ages,
            ..self
        };
        for (count, before) in since.at_timeouts.iter_mut().zip(before.at_timeouts) {
            *count -= before;
        }
        since
    }
}
