//! Waiting with a deadline: a test waits for a fact, and its failure names the fact.

use std::time::{Duration, Instant};

/// 10 s: a hundred times longer than any step takes, so that only a defect or a starved machine
/// exceeds it.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// 30 s: the longest that a reconnect with its backoff takes on a busy machine.
pub const RECOVERY: Duration = Duration::from_secs(30);

/// 10 ms: short compared with the timings that tests assert, long enough not to load two cores.
const POLL: Duration = Duration::from_millis(10);

/// Result of a probe; `true` or `Some` is the awaited fact.
pub trait Fact {
    /// Value of the fact.
    type Value;

    /// Value of the fact if it holds.
    fn established(self) -> Option<Self::Value>;
}

impl Fact for bool {
    type Value = ();

    fn established(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Fact for Option<T> {
    type Value = T;

    fn established(self) -> Self {
        self
    }
}

/// Polls `probe` until it returns `true` or `Some`; panics with the sentence `fact` at the
/// deadline.
pub async fn eventually<F, P, T>(deadline: Duration, fact: &str, mut probe: P) -> T::Value
where
    P: FnMut() -> F,
    F: Future<Output = T>,
    T: Fact,
{
    let start = Instant::now();
    loop {
        if let Some(value) = probe().await.established() {
            return value;
        }
        assert!(
            start.elapsed() < deadline,
            "after {deadline:?} still not true: {fact}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Awaits `future`; panics with the sentence `fact` at the deadline.
pub async fn within<T>(deadline: Duration, fact: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(deadline, future).await {
        Ok(value) => value,
        Err(_) => panic!("after {deadline:?} still not true: {fact}"),
    }
}
