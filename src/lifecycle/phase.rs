//! Where a drain stands: its phases by name and number, and how far it has come.

/// The phases of a drain, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// No drain.
    #[default]
    Running,
    /// Readiness has just failed.
    ReadyOff,
    /// Everything is accepted and served as ever, until load balancers have heard.
    Accepting,
    /// The listeners are closed, after what was queued at them.
    ListenersClosed,
    /// Connections are told not to be used again.
    Goaway,
    /// The event streams end, one by one.
    Ending,
    /// What was written is waited for until clients have it.
    Lingering,
    /// NATS is left in order.
    Upstream,
    /// Nothing is left.
    Done,
}

impl Phase {
    /// Every phase, in its order.
    pub const ALL: [Self; 9] = [
        Self::Running,
        Self::ReadyOff,
        Self::Accepting,
        Self::ListenersClosed,
        Self::Goaway,
        Self::Ending,
        Self::Lingering,
        Self::Upstream,
        Self::Done,
    ];

    /// As logs and `/health` write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::ReadyOff => "ready-off",
            Self::Accepting => "accepting",
            Self::ListenersClosed => "listeners-closed",
            Self::Goaway => "goaway",
            Self::Ending => "ending",
            Self::Lingering => "lingering",
            Self::Upstream => "upstream",
            Self::Done => "done",
        }
    }

    /// The value of `sidestream_drain_phase`: 0 is no drain.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// How far a drain has come: what `/health` shows. The drain sends it through a `tokio::sync::watch`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Where it stands.
    pub phase: Phase,
    /// Event streams that are still to be ended.
    pub streams_left: u64,
    /// Event streams that were cut at the deadline.
    pub cut: u64,
}

impl Progress {
    /// Whether a drain has begun: from then on the pod is not ready.
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
