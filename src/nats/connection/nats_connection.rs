//! Handle to one connection: the current client and the connection's state.
//!
//! The supervisor writes the state into a watch channel; every user of the connection waits on it.
//! The *generation* counts how often the connection was established. Messages may be missing
//! between two generations, so a source compares generations to decide whether it reports a gap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use async_nats::Client;
use tokio::sync::watch;

/// Handle to one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct NatsConnection {
    pub(super) clients: Arc<ClientSlot>,
    pub(super) state: watch::Receiver<ConnectionState>,
}

/// Current client of one connection, and the number of connects of its predecessors.
///
/// A client reconnects by itself. If its task panics, the client is unusable and is replaced.
#[derive(Debug)]
pub(super) struct ClientSlot(ArcSwap<(Client, u64)>);

impl ClientSlot {
    pub(super) fn new(client: Client) -> Self {
        Self(ArcSwap::from_pointee((client, 0)))
    }

    /// Returns the client in use.
    pub(super) fn current(&self) -> Client {
        self.0.load().0.clone()
    }

    /// Replaces a client that has ended.
    pub(super) fn replace(&self, client: Client) {
        self.0.store(Arc::new((client, self.generation())));
    }

    /// Number of times the connection was established, over all clients.
    pub(super) fn generation(&self) -> u64 {
        let current = self.0.load();
        current.1 + current.0.statistics().connects.load(Ordering::SeqCst)
    }
}

/// State of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnectionState {
    /// The connection is established.
    pub(crate) up: bool,
    /// Number of times it was established. If it differs from an earlier one, messages may be
    /// missing.
    pub(crate) generation: u64,
    /// Increases when the client dropped messages because a queue was full. The subjects and the
    /// number of messages per subject are not known.
    pub(crate) overflows: u64,
    /// Number of permission violations by subject, since the connection was established.
    pub(crate) denied: Arc<BTreeMap<Box<str>, u64>>,
}

/// Reason why a connection stops delivering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionEnd {
    /// The connection is lost.
    Gone,
    /// The server denies this subject.
    Denied(String),
}

impl ConnectionState {
    /// Number of permission violations for this subject on the current connection.
    pub(crate) fn denials(&self, subject: &str) -> u64 {
        self.denied.get(subject).copied().unwrap_or(0)
    }
}

impl NatsConnection {
    /// Returns the current client of the library.
    pub(crate) fn client(&self) -> Client {
        self.clients.current()
    }

    /// Number of times the connection was established, exact at the time of the call.
    ///
    /// Read after a message was received, it is at least the generation that delivered the message:
    /// the library counts a connection before it reads from it.
    pub(crate) fn generation(&self) -> u64 {
        self.clients.generation()
    }

    /// Returns the current state.
    pub(crate) fn state(&self) -> ConnectionState {
        self.state.borrow().clone()
    }

    /// Returns at the next change. Never returns after the supervisor has stopped.
    pub(crate) async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the connection is up and returns its generation.
    pub(crate) async fn wait_up(&mut self) -> u64 {
        let found = self
            .state
            .wait_for(|state| state.up)
            .await
            .map(|state| state.generation);
        match found {
            Ok(generation) => generation,
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns when the connection with this generation is lost.
    pub(crate) async fn wait_down(&mut self, generation: u64) {
        if self
            .state
            .wait_for(|state| !state.up || state.generation != generation)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when the connection with this generation is lost, or the server denies one of these
    /// subjects on it.
    pub(crate) async fn wait_ended(
        &mut self,
        generation: u64,
        subjects: &[String],
    ) -> ConnectionEnd {
        let is_gone = |state: &ConnectionState| !state.up || state.generation != generation;
        let denied = |state: &ConnectionState| {
            subjects
                .iter()
                .find(|subject| state.denials(subject) > 0)
                .cloned()
        };
        let Ok(state) = self
            .state
            .wait_for(|state| is_gone(state) || denied(state).is_some())
            .await
        else {
            return std::future::pending().await;
        };
        if is_gone(&state) {
            return ConnectionEnd::Gone;
        }
        denied(&state).map_or(ConnectionEnd::Gone, ConnectionEnd::Denied)
    }

    /// Returns when the server has denied this subject more than `known` times.
    pub(crate) async fn wait_denied(&self, subject: &str, known: u64) {
        let mut state = self.state.clone();
        if state
            .wait_for(|state| state.denials(subject) > known)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }
}
