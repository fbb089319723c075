//! One connection to NATS and what is known of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use async_nats::Client;
use tokio::sync::watch;

/// One connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct NatsConnection {
    pub(super) clients: Arc<ClientSlot>,
    pub(super) state: watch::Receiver<ConnectionState>,
}

/// The library's client of one connection, and how often those before it had connected.
///
/// A client reconnects by itself. It ends with its task, should that panic; then nothing of that client works.
#[derive(Debug)]
pub(super) struct ClientSlot(ArcSwap<(Client, u64)>);

impl ClientSlot {
    pub(super) fn new(client: Client) -> Self {
        Self(ArcSwap::from_pointee((client, 0)))
    }

    /// The one that is used now.
    pub(super) fn current(&self) -> Client {
        self.0.load().0.clone()
    }

    /// Puts another in the place of one that is over.
    pub(super) fn replace(&self, client: Client) {
        self.0.store(Arc::new((client, self.generation())));
    }

    /// How often this connection was made, by all of them.
    pub(super) fn generation(&self) -> u64 {
        let current = self.0.load();
        current.1 + current.0.statistics().connects.load(Ordering::SeqCst)
    }
}

/// What is known of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnectionState {
    /// Whether it is up.
    pub(crate) up: bool,
    /// How often it was made: another number means that messages may be missing between the two.
    pub(crate) generation: u64,
    /// Grows when the client dropped messages that nobody took in time; which ones, and how many, it does not say.
    pub(crate) overflows: u64,
    /// How often the server refused which subject, since the connection was made.
    pub(crate) denied: Arc<BTreeMap<Box<str>, u64>>,
}

/// Why nothing more comes on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is gone.
    Gone,
    /// The server refuses this subject.
    Denied(String),
}

impl ConnectionState {
    /// How often the server refused this subject on this connection.
    pub(crate) fn denials(&self, subject: &str) -> u64 {
        self.denied.get(subject).copied().unwrap_or(0)
    }
}

impl NatsConnection {
    /// The client of the library, as it is now.
    pub(crate) fn client(&self) -> Client {
        self.clients.current()
    }

    /// How often the connection was made, exact at the moment of the call.
    ///
    /// Read after a message was received it is at least the generation that brought the message: the library counts
    /// a connection before it reads from it.
    pub(crate) fn generation(&self) -> u64 {
        self.clients.generation()
    }

    /// What is known now.
    pub(crate) fn now(&self) -> ConnectionState {
        self.state.borrow().clone()
    }

    /// Returns at the next change; never if nobody watches the connection any more.
    pub(crate) async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns the generation of the connection as soon as it is up.
    pub(crate) async fn up(&mut self) -> u64 {
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

    /// Returns when the connection with this generation is gone.
    pub(crate) async fn gone(&mut self, generation: u64) {
        if self
            .state
            .wait_for(|state| !state.up || state.generation != generation)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when the connection with this generation is gone, or the server refuses one of these subjects on it.
    pub(crate) async fn ended(&mut self, generation: u64, subjects: &[String]) -> Ended {
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
            return Ended::Gone;
        }
        denied(&state).map_or(Ended::Gone, Ended::Denied)
    }

    /// Returns when the server refuses this subject more often than `known` times.
    pub(crate) async fn denied(&self, subject: &str, known: u64) {
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
