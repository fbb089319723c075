//! Shards: one thread, one runtime and one set of listeners per core; a connection stays where it was accepted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::StartError;
use crate::feed;
use crate::http::{self, Context};
use crate::lifecycle::health::Health;
use crate::lifecycle::shutdown::{self, Token, Trigger};
use crate::limit::LoopLagProbes;
use crate::net::ListenConfig;
use crate::net::listener::{self, Listener, Sharing};
use crate::net::tls::Tls;

/// The running shards, and the ways in which they are told to end.
pub(super) struct Shards {
    /// To close the listeners; over when all are closed.
    pub(super) listeners: Trigger,
    /// To tell the connections not to be used again; over when all have been told.
    pub(super) goaway: Trigger,
    /// Over when all connections have ended.
    pub(super) connections: Trigger,
    /// Other shards than the first.
    pub(super) others: Others,
    /// Where clients connect.
    pub(super) ports: Vec<u16>,
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
        loop_lag: &LoopLagProbes,
    ) -> Result<Self, StartError> {
        // The CPU quota of the cgroup counts too, not only the cores of the machine.
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let sharing = if count > 1 {
            Sharing::Shared
        } else {
            Sharing::Alone
        };
        let (listeners, listening) = shutdown::channel();
        let (goaway, leaving) = shutdown::channel();
        let (connections, release) = shutdown::channel();
        let watches = Watches {
            listening,
            drain: http::Drain { leaving, release },
        };
        let mut ports = Vec::new();
        let mut shards: Vec<Bound> = (0..count).map(|_| Vec::new()).collect();
        for config in listen {
            let tls = config.tls.clone().map(Tls::load).transpose();
            let tls = tls.map_err(|error| StartError::Configuration(error.to_string()))?;
            let address = bind(config.address, sharing, &tls, &mut shards)?;
            ports.push(address.port());
            tracing::info!(%address, tls = tls.is_some(), "listening");
            if let Some(tls) = tls {
                tokio::spawn(tls.follow(health.check(format!("tls:{address}"), "not read yet")));
            }
        }
        let mut others = Vec::new();
        for (place, bound) in shards.into_iter().enumerate() {
            let (context, watches) = (context.clone(), watches.clone());
            let probe = loop_lag.run_probe();
            if place == 0 {
                tokio::spawn(probe);
                tokio::spawn(feed::answer());
                serve(bound, &context, &watches);
                continue;
            }
            let (stop, stopped) = oneshot::channel::<()>();
            let system = |error: std::io::Error| StartError::System(error.to_string());
            let runtime = runtime().map_err(system)?;
            let shard = move || {
                runtime.block_on(async {
                    tokio::spawn(probe);
                    tokio::spawn(feed::answer());
                    serve(bound, &context, &watches);
                    // Or the drain would wait for this thread's end, and this thread for the drain's.
                    drop(watches);
                    // Its end is the message.
                    drop(stopped.await);
                });
            };
            let thread = std::thread::Builder::new()
                .name(format!("shard-{place}"))
                .spawn(shard)
                .map_err(system)?;
            others.push((stop, thread));
        }
        tracing::info!(shards = count, "serving");
        Ok(Self {
            listeners,
            goaway,
            connections,
            others,
            ports,
        })
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

/// What everything in a shard hears of a drain.
#[derive(Clone)]
struct Watches {
    listening: Token,
    drain: http::Drain,
}

fn serve(bound: Bound, context: &Arc<Context>, watches: &Watches) {
    for (bound, tls) in bound {
        let Watches { listening, drain } = watches.clone();
        match Listener::new(bound) {
            Ok(listener) => {
                tokio::spawn(http::serve(
                    context.clone(),
                    listener,
                    tls,
                    listening,
                    drain,
                ));
            }
            Err(error) => tracing::error!(%error, "a listener cannot be served"),
        }
    }
}
