//! All clients of a run: opened at a bounded rate, held, and closed by dropping.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::endpoint::Endpoint;
use super::meter::Meter;
use super::visit::Visit;
use super::{http1, http2};

/// How the clients of a fleet reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) enum Shape {
    /// One connection for each client.
    #[serde(rename = "http/1.1")]
    Http1 {
        /// How many.
        clients: usize,
    },
    /// Many clients in each connection.
    #[serde(rename = "http/2")]
    Http2 {
        /// How many connections.
        connections: usize,
        /// How many clients in each.
        streams: usize,
    },
}

impl Shape {
    /// How many event streams there are.
    pub(crate) fn clients(self) -> usize {
        match self {
            Self::Http1 { clients } => clients,
            Self::Http2 {
                connections,
                streams,
            } => connections * streams,
        }
    }

    /// As many clients, each with a connection of its own.
    pub(crate) fn as_http1(self) -> Self {
        Self::Http1 {
            clients: self.clients(),
        }
    }
}

/// What all clients of a fleet have in common.
pub(crate) struct Crowd {
    /// Where they go.
    pub(crate) endpoint: Endpoint,
    /// Client `k` reads the subject numbered `k % groups`.
    pub(crate) groups: usize,
    /// At most so many are between connect and first byte at one time.
    pub(crate) connecting: usize,
    /// How they come.
    pub(crate) visit: Visit,
    /// Where they tell what they see.
    pub(crate) meter: Arc<Meter>,
}

/// Clients that read until the fleet is dropped.
pub(crate) struct Fleet {
    /// Dropping the set ends all its tasks, and with them the connections.
    clients: JoinSet<()>,
}

impl Fleet {
    /// Begins to open `shapes`.
    pub(crate) fn open(shapes: &[Shape], crowd: Crowd) -> Self {
        let mut clients = JoinSet::new();
        let (crowd, shapes) = (Arc::new(crowd), shapes.to_vec());
        clients.spawn(async move {
            // Inside the task, so that the sets of tasks end with it.
            let mut tasks = JoinSet::new();
            let permits = Arc::new(Semaphore::new(crowd.connecting));
            let mut first = 0;
            for shape in shapes {
                let (step, count) = match shape {
                    Shape::Http1 { clients } => (1, clients),
                    Shape::Http2 {
                        connections,
                        streams,
                    } => (streams, connections),
                };
                for begin in (0..count).map(|index| first + index * step) {
                    let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                        return;
                    };
                    let crowd = Arc::clone(&crowd);
                    match shape {
                        Shape::Http1 { .. } => {
                            tasks.spawn(async move { http1::follow(&crowd, begin, permit).await })
                        }
                        Shape::Http2 { .. } => {
                            tasks.spawn(http2::follow(crowd, begin..begin + step, permit))
                        }
                    };
                }
                first += shape.clients();
            }
            while tasks.join_next().await.is_some() {}
        });
        Self { clients }
    }

    /// Closes all connections.
    pub(crate) async fn close(mut self) {
        self.clients.shutdown().await;
    }
}
