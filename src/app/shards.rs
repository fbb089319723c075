//! Shards: for each core one thread with a single-threaded runtime and its own listeners.
//!
//! Every shard binds the same addresses with `SO_REUSEPORT`; the kernel spreads connections over
//! the shards, and a connection stays on the shard that accepted it. So its tasks never move
//! between cores and need no work stealing (decision 0003). The first shard is the main thread; the
//! others are joined when the drain is over. Each shard runs the loop-lag probe, the feed
//! dispatcher and one accept loop per listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::error::StartError;
use crate::feed;
use crate::http::{self, Context};
use crate::lifecycle::health::{Health, Status};
use crate::lifecycle::shutdown::{self, Token, Trigger};
use crate::limit::LoopLagProbes;
use crate::net::ListenConfig;
use crate::net::listener::{self, Listener, Sharing};
use crate::net::tls::{Purpose, ReloadError, Tls};

/// Running shards and the triggers that stop them.
pub(super) struct Shards {
    /// Closes the listeners; completes when all are closed.
    pub(super) listeners: Trigger,
    /// Sends GOAWAY or `Connection: close`; completes when every connection has sent it.
    pub(super) goaway: Trigger,
    /// Completes when all connections have ended.
    pub(super) connections: Trigger,
    /// All shards but the first.
    pub(super) others: Others,
    /// Ports of the listeners.
    pub(super) ports: Vec<u16>,
}

/// Threads; each ends when its sender is dropped.
pub(super) type Others = Vec<(oneshot::Sender<()>, JoinHandle<()>)>;

/// Bound listeners without an accept loop yet.
type Bound = Vec<(std::net::TcpListener, Option<Tls>)>;

/// Returns the runtime of one shard.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

impl Shards {
    /// Binds every listener once per shard and serves. The calling task's runtime is the first
    /// shard.
    pub(super) async fn start(
        listen: &[ListenConfig],
        context: &Arc<Context>,
        health: &Health,
        loop_lag: &LoopLagProbes,
    ) -> Result<Self, StartError> {
        // Respects the CPU quota of the cgroup, not only the number of cores.
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let sharing = if count > 1 {
            Sharing::Shared
        } else {
            Sharing::Alone
        };
        let (listeners, listening) = shutdown::channel();
        let (goaway, goaway_token) = shutdown::channel();
        let (connections, end_token) = shutdown::channel();
        let tokens = Tokens {
            listening,
            drain: http::Drain {
                goaway: goaway_token,
                end: end_token,
            },
        };
        let mut ports = Vec::new();
        let mut shards: Vec<Bound> = (0..count).map(|_| Vec::new()).collect();
        for config in listen {
            let tls = config.tls.clone();
            let tls = tls
                .map(|files| Tls::load(files, Purpose::Clients))
                .transpose();
            let tls = tls.map_err(|error| StartError::Configuration(error.to_string()))?;
            let address = bind(config.address, sharing, &tls, &mut shards)?;
            ports.push(address.port());
            tracing::info!(%address, tls = tls.is_some(), "listening");
            if let Some(tls) = tls {
                let check = health.check(format!("tls:{address}"), "not read yet");
                tokio::spawn(tls.follow(move |reload| check.set(certificate_status(reload))));
            }
        }
        let mut others = Vec::new();
        for (place, bound) in shards.into_iter().enumerate() {
            let (context, tokens) = (context.clone(), tokens.clone());
            let probe = loop_lag.run_probe();
            if place == 0 {
                tokio::spawn(probe);
                tokio::spawn(feed::run_dispatcher());
                serve(bound, &context, &tokens);
                continue;
            }
            let (stop, stopped) = oneshot::channel::<()>();
            let system = |error: std::io::Error| StartError::System(error.to_string());
            let runtime = runtime().map_err(system)?;
            let shard = move || {
                runtime.block_on(async {
                    tokio::spawn(probe);
                    tokio::spawn(feed::run_dispatcher());
                    serve(bound, &context, &tokens);
                    // Tokens held here would make the drain wait for this thread, which waits for
                    // the drain.
                    drop(tokens);
                    // Returns when the sender is dropped.
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

/// Joins the other threads, after their connections have ended.
pub(super) fn stop(others: Others) {
    for (stop, thread) in others {
        drop(stop);
        if thread.join().is_err() {
            tracing::error!("shard thread panicked");
        }
    }
}

/// Health of a TLS listener after a reload of its certificate: a failed one leaves the pod ready.
fn certificate_status(reload: Result<(), ReloadError>) -> Status {
    match reload {
        Ok(()) => Status::Ok,
        Err(error) => Status::Degraded(error.to_string()),
    }
}

/// Binds one listener in every shard. For port 0 the first bind chooses the port of all.
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

/// Shutdown tokens of everything in a shard.
#[derive(Clone)]
struct Tokens {
    listening: Token,
    drain: http::Drain,
}

fn serve(bound: Bound, context: &Arc<Context>, tokens: &Tokens) {
    for (bound, tls) in bound {
        let Tokens { listening, drain } = tokens.clone();
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
            Err(error) => tracing::error!(%error, "cannot serve listener"),
        }
    }
}
