//! All clients of a run.
//!
//! A fleet opens its clients with a bounded number of simultaneous connection attempts, keeps them
//! reading, and closes them when it is dropped. Every client is a task on the thread of the load
//! tool; an HTTP/2 connection is one task with a subtask for each of its streams.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::crowd::Crowd;
use super::{http1, http2};

/// HTTP version and number of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) enum Shape {
    /// One connection for each client.
    #[serde(rename = "http/1.1")]
    Http1 {
        /// Number of clients.
        clients: usize,
    },
    /// Many clients in each connection.
    #[serde(rename = "http/2")]
    Http2 {
        /// Number of connections.
        connections: usize,
        /// Number of clients in each connection.
        streams: usize,
    },
}

impl Shape {
    /// Returns the number of event streams.
    pub(crate) fn clients(self) -> usize {
        match self {
            Self::Http1 { clients } => clients,
            Self::Http2 {
                connections,
                streams,
            } => connections * streams,
        }
    }

    /// Returns the number of connections.
    pub(crate) fn connections(self) -> usize {
        match self {
            Self::Http1 { clients } => clients,
            Self::Http2 { connections, .. } => connections,
        }
    }

    /// Returns the shape with a connection for each client.
    pub(crate) fn as_http1(self) -> Self {
        Self::Http1 {
            clients: self.clients(),
        }
    }
}

/// Clients that read until the fleet is dropped.
pub(crate) struct Fleet {
    /// Dropping the set ends its tasks, and with them the connections.
    clients: JoinSet<()>,
}

impl Fleet {
    /// Starts to open clients of all `shapes`.
    pub(crate) fn open(shapes: &[Shape], crowd: Crowd) -> Self {
        let mut clients = JoinSet::new();
        let (crowd, shapes) = (Arc::new(crowd), shapes.to_vec());
        clients.spawn(async move {
            // Owned by this task, so that all clients end with it.
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
