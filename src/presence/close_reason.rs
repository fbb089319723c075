//! The reasons that end an event stream: one closed enum for metric labels, logs and clients.

use tracing::Level;

/// Reason for the end of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client disconnected or no longer answers.
    Client,
    /// The pod drains: the client continues on another pod.
    Drain,
    /// The event stream reached the route's `max_age`.
    Age,
    /// The client read too slowly.
    Slow,
    /// The source no longer exists, or NATS rejects reading it until an operator changes something.
    Upstream,
    /// The event stream was still open at the deadline of a drain.
    Cut,
    /// The principal of the client expired. It continues when it has authenticated again. Anonymous
    /// clients never expire.
    Expired,
    /// The credentials of the client, or its name, were revoked. It is rejected when it returns
    /// with them.
    Revoked,
    /// An operator or an application ended the event streams of the client once. It may return.
    Kicked,
    /// The deadline that the client of a gRPC call has set is over.
    Deadline,
    /// The client has every event of a finite event stream.
    End,
    /// A long poll was answered: its client continues with the next one.
    Answered,
}

/// Representation of one reason.
struct Row {
    /// Label of metrics and logs.
    label: &'static str,
    /// The client receives the label in `sidestream.close`.
    is_sent: bool,
    level: Level,
}

impl CloseReason {
    /// Every reason, in the order of the variants.
    pub const ALL: [Self; 12] = [
        Self::Client,
        Self::Drain,
        Self::Age,
        Self::Slow,
        Self::Upstream,
        Self::Cut,
        Self::Expired,
        Self::Revoked,
        Self::Kicked,
        Self::Deadline,
        Self::End,
        Self::Answered,
    ];

    const fn row(self) -> Row {
        let (label, is_sent, level) = match self {
            Self::Client => ("client", false, Level::INFO),
            Self::Drain => ("drain", true, Level::INFO),
            Self::Age => ("age", true, Level::INFO),
            Self::Slow => ("slow", true, Level::WARN),
            Self::Upstream => ("upstream", true, Level::WARN),
            Self::Cut => ("cut", false, Level::WARN),
            Self::Expired => ("expired", true, Level::INFO),
            Self::Revoked => ("revoked", true, Level::INFO),
            Self::Kicked => ("kicked", true, Level::INFO),
            Self::Deadline => ("deadline", true, Level::INFO),
            // The client receives `sidestream.end` instead.
            Self::End => ("end", false, Level::INFO),
            // One line for each poll would hide all others.
            Self::Answered => ("answered", false, Level::DEBUG),
        };
        Row {
            label,
            is_sent,
            level,
        }
    }

    /// Returns the `reason` label of metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        self.row().label
    }

    /// Returns the reason in the event `sidestream.close`. `None`: it ends without one.
    #[must_use]
    pub const fn client_reason(self) -> Option<&'static str> {
        let row = self.row();
        if row.is_sent { Some(row.label) } else { None }
    }

    /// Returns the level of the log line.
    #[must_use]
    pub const fn level(self) -> Level {
        self.row().level
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reasons_have_distinct_labels_in_the_order_of_the_variants() {
        let labels: BTreeSet<_> = CloseReason::ALL.map(CloseReason::label).into();
        assert_eq!(labels.len(), CloseReason::ALL.len());
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }

    #[test]
    fn clients_receive_eight_of_the_reasons() {
        let sent: Vec<_> = CloseReason::ALL
            .into_iter()
            .filter_map(CloseReason::client_reason)
            .collect();
        assert_eq!(
            sent,
            [
                "drain", "age", "slow", "upstream", "expired", "revoked", "kicked", "deadline"
            ]
        );
    }
}
