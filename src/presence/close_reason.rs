//! Why an event stream ended: one closed list for labels, logs and what the client is told.

use tracing::Level;

/// Why an event stream ended, or is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client went away, or no longer answered.
    Client,
    /// Handed over to another pod.
    Drain,
    /// The connection reached the route's `max_age`.
    Age,
    /// The client took its events too slowly.
    Slow,
    /// This pod needs the resources.
    Overload,
    /// What the client may read has changed or run out.
    Unauthorized,
    /// An operator ended it.
    Killed,
    /// NATS: what it reads from is gone for good, or NATS rejects reading it until an operator changes something.
    Upstream,
    /// A defect of the sidecar.
    Error,
    /// Still open when the time for the process's end was up.
    Cut,
}

impl CloseReason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Client,
        Self::Drain,
        Self::Age,
        Self::Slow,
        Self::Overload,
        Self::Unauthorized,
        Self::Killed,
        Self::Upstream,
        Self::Error,
        Self::Cut,
    ];

    /// The label of metrics and logs; what the client is told, if it is told at all; how loud the log is.
    const fn row(self) -> (&'static str, Option<&'static str>, Level) {
        match self {
            Self::Client => ("client", None, Level::INFO),
            Self::Drain => ("drain", Some("drain"), Level::INFO),
            Self::Age => ("age", Some("age"), Level::INFO),
            Self::Slow => ("slow", Some("slow"), Level::WARN),
            Self::Overload => ("overload", Some("overload"), Level::WARN),
            Self::Unauthorized => ("unauthorized", Some("unauthorized"), Level::INFO),
            Self::Killed => ("killed", None, Level::WARN),
            Self::Upstream => ("upstream", Some("upstream"), Level::WARN),
            Self::Error => ("error", None, Level::ERROR),
            Self::Cut => ("cut", None, Level::WARN),
        }
    }

    /// The `reason` label of metrics and logs.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        self.row().0
    }

    /// The reason in the event `sidestream.close`; none: the stream ends without one.
    #[must_use]
    pub const fn told(self) -> Option<&'static str> {
        self.row().1
    }

    /// Whether the client may come back, here or to another pod, and have its events.
    #[must_use]
    pub const fn comes_back(self) -> bool {
        !matches!(self, Self::Unauthorized)
    }

    /// How loud its line in the log is.
    #[must_use]
    pub const fn level(self) -> Level {
        self.row().2
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_label_of_its_own_and_clients_receive_six_of_them() {
        let reasons: BTreeSet<_> = CloseReason::ALL
            .iter()
            .map(|close| close.reason())
            .collect();
        assert_eq!(reasons.len(), CloseReason::ALL.len());
        let told: Vec<_> = CloseReason::ALL
            .iter()
            .filter_map(|close| close.told())
            .collect();
        assert_eq!(
            told,
            [
                "drain",
                "age",
                "slow",
                "overload",
                "unauthorized",
                "upstream"
            ]
        );
    }
}
