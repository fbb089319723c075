//! Error of a reader that cannot be opened.

/// Reason why a reader cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The source has not started, or NATS does not answer.
    NotReady,
    /// NATS rejects what the reader needs until an operator changes something.
    Rejected,
    /// The limit `limits.feeds` is reached.
    TooManyFeeds,
    /// The limit `limits.replays.queued` is reached.
    TooManyReplays,
    /// The state of the reader's subjects does not fit into memory.
    StateTooLarge,
}
