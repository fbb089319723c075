//! Shutdown of tasks: a trigger requests it, and it completes when the last token is dropped.
//!
//! [`channel`] returns a [`Trigger`] and a [`Token`]. Every task that takes part holds a clone of
//! the token: it awaits [`Token::requested`], finishes its work and drops the token.
//! [`Trigger::completed`] returns when no token and no [`Guard`] is left, so completion is counted
//! by ownership and cannot be forgotten on an early return or a panic.
//!
//! ```text
//! Trigger::begin  -> Token::requested   finish in good order
//! Trigger::abort  -> Token::aborted     drop what is left
//! last Token or Guard dropped -> Trigger::completed
//! ```
//!
//! The order of requests only rises: after an abort a later `begin` changes nothing. A trigger that
//! is dropped without a request ends nothing. This is the mechanism inside the process; the
//! graceful shutdown of the pod that uses it is the drain (`app::drain`).

use tokio::sync::{mpsc, watch};

/// Returns a trigger and the first token.
#[must_use]
pub fn channel() -> (Trigger, Token) {
    let (request, requests) = watch::channel(Request::None);
    let (guard, guards) = mpsc::channel(1);
    (
        Trigger { request, guards },
        Token {
            requests,
            guard: Guard { _guard: guard },
        },
    )
}

/// The latest request. Later variants are stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Request {
    None,
    /// Finish in good order.
    End,
    /// Stop at once: the time to finish is over.
    Abort,
}

/// Requests a shutdown and waits for it to complete.
#[derive(Debug)]
pub struct Trigger {
    request: watch::Sender<Request>,
    guards: mpsc::Receiver<std::convert::Infallible>,
}

/// Receives the requests. The shutdown completes after the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Token {
    requests: watch::Receiver<Request>,
    guard: Guard,
}

/// Delays completion without receiving requests. A third of the size of a [`Token`].
#[derive(Clone, Debug)]
pub struct Guard {
    // Nothing is ever sent: the receiver only observes that every sender is dropped.
    _guard: mpsc::Sender<std::convert::Infallible>,
}

impl Trigger {
    /// Requests the end and returns when the last token is dropped.
    pub async fn shut_down(mut self) {
        self.begin();
        self.completed().await;
    }

    /// Requests the end.
    pub fn begin(&self) {
        self.request(Request::End);
    }

    /// Requests that what is left is dropped as it is.
    pub fn abort(&self) {
        self.request(Request::Abort);
    }

    /// Returns when the last token is dropped. Cancel safe; may be called again.
    pub async fn completed(&mut self) {
        // `None` once no sender is left.
        let ended = self.guards.recv().await;
        debug_assert!(ended.is_none(), "guards never send");
    }

    fn request(&self, request: Request) {
        self.request
            .send_modify(|before| *before = request.max(*before));
    }
}

impl Token {
    /// Returns when the end is requested; at once if it already is.
    pub async fn requested(&mut self) {
        self.at_least(Request::End).await;
    }

    /// Returns when the abort is requested; at once if it already is.
    pub async fn aborted(&mut self) {
        self.at_least(Request::Abort).await;
    }

    /// Gives up receiving requests; the shutdown still waits for the guard.
    #[must_use]
    pub fn into_guard(self) -> Guard {
        self.guard
    }

    /// True once the end is requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.requests.borrow() >= Request::End
    }

    async fn at_least(&mut self, wanted: Request) {
        // An error means that the trigger was dropped without a request: no request can follow.
        if self
            .requests
            .wait_for(|request| *request >= wanted)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const WHILE: Duration = Duration::from_secs(9);

    #[tokio::test(start_paused = true)]
    async fn shutdown_completes_when_the_last_token_is_dropped() {
        let (trigger, token) = channel();
        let mut second = token.clone();
        assert!(!token.is_requested());
        let mut ended = tokio::spawn(trigger.shut_down());
        second.requested().await;
        drop(second);
        assert!(timeout(WHILE, &mut ended).await.is_err());
        assert!(token.is_requested());
        drop(token);
        ended.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_in_time_receives_the_abort() {
        let (mut trigger, mut token) = channel();
        trigger.begin();
        token.requested().await;
        assert!(timeout(WHILE, token.aborted()).await.is_err());
        assert!(timeout(WHILE, trigger.completed()).await.is_err());
        trigger.abort();
        trigger.begin();
        token.aborted().await;
        drop(token);
        trigger.completed().await;
    }
}
