//! Progress of a drain: its phases and the number of event streams that are left.
//!
//! `app::drain` sends the progress through a watch channel; `/health` and the metrics read it.

/// Phases of a drain in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// No drain has started.
    #[default]
    Running,
    /// Readiness fails.
    NotReady,
    /// Everything is still accepted and served while load balancers notice.
    Accepting,
    /// The listeners are closed, after their accept queues were emptied.
    ListenersClosed,
    /// Connections get GOAWAY or `Connection: close`.
    Goaway,
    /// Event streams end one by one.
    Ending,
    /// Written bytes are on their way to the clients.
    Lingering,
    /// Consumers, subscriptions and NATS connections are closed.
    Upstream,
    /// The drain is complete.
    Done,
}

impl Phase {
    /// All phases in their order.
    pub const ALL: [Self; 9] = [
        Self::Running,
        Self::NotReady,
        Self::Accepting,
        Self::ListenersClosed,
        Self::Goaway,
        Self::Ending,
        Self::Lingering,
        Self::Upstream,
        Self::Done,
    ];

    /// Name in logs, metrics and `/health`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::NotReady => "not-ready",
            Self::Accepting => "accepting",
            Self::ListenersClosed => "listeners-closed",
            Self::Goaway => "goaway",
            Self::Ending => "ending",
            Self::Lingering => "lingering",
            Self::Upstream => "upstream",
            Self::Done => "done",
        }
    }

    /// The phase's number on `/health`: 0 is no drain.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// Progress of a drain, as `/health` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Current phase.
    pub phase: Phase,
    /// Event streams that have not ended yet.
    pub streams_left: u64,
    /// Event streams cut at the deadline.
    pub cut: u64,
}

impl Progress {
    /// True once a drain has started; from then on the pod is not ready.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.phase != Phase::Running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_numbered_in_their_order_from_0_for_no_drain() {
        let numbers: Vec<_> = Phase::ALL.iter().map(|phase| phase.number()).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(Phase::ALL.is_sorted());
        assert!(!Progress::default().is_draining());
    }
}
