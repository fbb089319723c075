//! The event streams of one HTTP/2 connection, which come of age together: the connection is what is handed over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::member::StreamState;
use crate::registry::{Close, Member as _};

/// 20 ms: the event streams of one connection, at most 256, come back over five seconds rather than in one moment.
const PACE: Duration = Duration::from_millis(20);

/// All event streams of a connection.
#[derive(Debug, Default)]
pub(super) struct Family {
    members: Mutex<Vec<Weak<StreamState>>>,
    aged: Notify,
    leaving: AtomicBool,
}

impl Family {
    /// Takes an event stream in; one that comes while the others are handed over goes with them.
    pub(super) fn add(&self, state: &Arc<StreamState>) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if members.len() == members.capacity() {
            // Before it grows: those that ended leave their places.
            members.retain(|member| member.strong_count() > 0);
        }
        members.push(Arc::downgrade(state));
        drop(members);
        if self.leaving.load(Ordering::Acquire) {
            state.close(Close::Age);
        }
    }

    /// The first of them has reached its age.
    pub(super) fn come_of_age(&self) {
        self.aged.notify_one();
    }

    /// Returns when the first of them has reached its age.
    pub(super) async fn aged(&self) {
        self.aged.notified().await;
    }

    /// Ends them one after the other. To be called when the connection has said that it takes no more.
    pub(super) async fn hand_over(&self) {
        self.leaving.store(true, Ordering::Release);
        let members = std::mem::take(&mut *self.members.lock().unwrap_or_else(PoisonError::into_inner));
        for member in members {
            let Some(state) = member.upgrade() else { continue };
            state.close(Close::Age);
            drop(state);
            sleep(PACE).await;
        }
    }
}
