//! Reasons why an event stream ends: one closed list for metrics, logs and the client.

use tracing::Level;

/// Reason why an event stream ended or shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client disconnected, or its connection failed.
    Client,
    /// The pod is draining; another pod continues.
    Drain,
    /// The connection reached the route's `max_age`.
    Age,
    /// The client read its events too slowly.
    Slow,
    /// This pod is short of resources.
    Overload,
    /// The client's authorization changed or expired.
    Unauthorized,
    /// An operator closed it.
    Killed,
    /// The source is gone, or NATS rejects reading it until an operator acts.
    Upstream,
    /// A bug in the sidecar.
    Error,
    /// Still open at the end of the shutdown timeout.
    Cut,
}

impl CloseReason {
    /// All reasons, in the order of the documentation.
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

    /// Label in metrics and logs; reason sent to the client, if any; log level.
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
    pub const fn label(self) -> &'static str {
        self.row().0
    }

    /// Reason in the event `sidestream.close`. `None`: the event stream ends without that event.
    #[must_use]
    pub const fn client_reason(self) -> Option<&'static str> {
        self.row().1
    }

    /// Returns true if the client may reconnect, here or to another pod, and continue.
    #[must_use]
    pub const fn may_reconnect(self) -> bool {
        !matches!(self, Self::Unauthorized)
    }

    /// Level of its log line.
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
    fn every_reason_has_its_own_label_and_clients_receive_six_of_them() {
        let reasons: BTreeSet<_> = CloseReason::ALL.iter().map(|close| close.label()).collect();
        assert_eq!(reasons.len(), CloseReason::ALL.len());
        let client_reason: Vec<_> = CloseReason::ALL
            .iter()
            .filter_map(|close| close.client_reason())
            .collect();
        assert_eq!(
            client_reason,
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
