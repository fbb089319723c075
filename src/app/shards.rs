//! Shards: one thread, one runtime and one set of listeners per core; a connection stays where it was accepted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::StartError;
use crate::http::{self, Context};
use crate::lifecycle::drain::{self, Signal, Watch};
use crate::lifecycle::health::Health;
use crate::limit::Pulses;
use crate::net::ListenConfig;
use crate::net::listener::{self, Listener, Sharing};
use crate::net::tls::Tls;

/// The running shards, and the two ways in which they are told to end.
pub(super) struct Shards {
    /// To close the listeners; over when all are closed.
    pub(super) listeners: Signal,
    /// To end the connections; over when all have ended.
    pub(super) connections: Signal,
    /// Other shards than the first.
    others: Others,
}

/// Threads, each of which ends when its sender is dropped.
pub(super) type Others = Vec<(oneshot::Sender<()>, JoinHandle<()>)>;

/// Listeners that are bound and not yet served.
type Bound = Vec<(std::net::TcpListener, Option<Tls>)>;

/// The runtime of one shard.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

impl Shards {
    /// Binds every listener once per shard and serves. The calling task's runtime is the first shard.
    pub(super) async fn start(
        listen: &[ListenConfig],
        context: &Arc<Context>,
        health: &Health,
        pulses: &Pulses,
    ) -> Result<Self, StartError> {
        // The CPU quota of the cgroup counts too, not only the cores of the machine.
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let sharing = if count > 1 { Sharing::Shared } else { Sharing::Alone };
        let (listeners, listening) = drain::channel();
        let (connections, connected) = drain::channel();
        let mut shards: Vec<Bound> = (0..count).map(|_| Vec::new()).collect();
        for config in listen {
            let tls = config.tls.clone().map(Tls::load).transpose();
            let tls = tls.map_err(|error| StartError::Configuration(error.to_string()))?;
            let address = bind(config.address, sharing, &tls, &mut shards)?;
            tracing::info!(%address, tls = tls.is_some(), "listening");
            if let Some(tls) = tls {
                tokio::spawn(tls.follow(health.check(format!("tls:{address}"), "not read yet")));
            }
        }
        let mut others = Vec::new();
        for (place, bound) in shards.into_iter().enumerate() {
            let (context, listening, connected) = (context.clone(), listening.clone(), connected.clone());
            let beat = pulses.beat();
            if place == 0 {
                tokio::spawn(beat);
                serve(bound, &context, &listening, &connected);
                continue;
            }
            let (stop, stopped) = oneshot::channel::<()>();
            let system = |error: std::io::Error| StartError::System(error.to_string());
            let runtime = runtime().map_err(system)?;
            let shard = move || {
                runtime.block_on(async {
                    tokio::spawn(beat);
                    serve(bound, &context, &listening, &connected);
                    drop((listening, connected));
                    // Its end is the message.
                    drop(stopped.await);
                });
            };
            let thread = std::thread::Builder::new().name(format!("shard-{place}")).spawn(shard).map_err(system)?;
            others.push((stop, thread));
        }
        tracing::info!(shards = count, "serving");
        Ok(Self { listeners, connections, others })
    }
}

/// Ends the other threads; their connections have ended before.
pub(super) fn stop(others: Others) {
    for (stop, thread) in others {
        drop(stop);
        if thread.join().is_err() {
            tracing::error!("a shard's thread had panicked");
        }
    }
}

impl Shards {
    /// The parts, to be ended one after the other.
    pub(super) fn into_parts(self) -> (Signal, Signal, Others) {
        (self.listeners, self.connections, self.others)
    }
}

/// Binds one listener in every shard; the first decides the port where any is asked for.
fn bind(
    address: SocketAddr,
    sharing: Sharing,
    tls: &Option<Tls>,
    shards: &mut [Bound],
) -> Result<SocketAddr, StartError> {
    let mut address = address;
    for shard in shards {
        let refused = |error| StartError::System(format!("listen.address {address}: {error}"));
        let bound = listener::bind(address, sharing).map_err(refused)?;
        address = bound.local_addr().map_err(refused)?;
        shard.push((bound, tls.clone()));
    }
    Ok(address)
}

fn serve(bound: Bound, context: &Arc<Context>, listening: &Watch, connected: &Watch) {
    for (bound, tls) in bound {
        match Listener::new(bound) {
            Ok(listener) => {
                tokio::spawn(http::serve(context.clone(), listener, tls, listening.clone(), connected.clone()));
            }
            Err(error) => tracing::error!(%error, "a listener cannot be served"),
        }
    }
}
